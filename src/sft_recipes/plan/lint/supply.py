"""Rules about where models, data and results come from and go to."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from sft_recipes.plan.lint import Case, Said, rule
from sft_recipes.recipes.recipe import MODELS

COMMIT = re.compile(r"[0-9a-f]{40}")
# What each tracker needs from the environment before it can send anything.
CREDENTIALS = {"wandb": ("WANDB_API_KEY", "WANDB_MODE"), "mlflow": ("MLFLOW_TRACKING_URI",)}


@rule("model-unpinned", "info", "of 1,158 public recipes looked at, none pins its base model")
def model_unpinned(case: Case) -> Iterator[Said]:
    """The base model is named by a branch, which can change under a recipe."""
    name, revision = case.recipe["model_name_or_path"], str(case.recipe["model_revision"])
    where = Path(case.recipe.values["model_name_or_path"].origin.rpartition(":")[0])
    family = f" MODEL={where.stem}" if where.parent == MODELS else ""
    if not Path(name).exists() and not name.startswith(".") and not COMMIT.fullmatch(revision):
        yield Said(
            f"{name} is taken at '{revision}', which can change between two runs",
            f"make pin RECIPE={case.recipe.name}{family}",
        )


@rule("data-unpinned", "info", "a Hub dataset is read at its newest commit")
def data_unpinned(case: Case) -> Iterator[Said]:
    """The rows come from the Hub without a revision."""
    name = case.recipe["dataset_name"]
    if name and not Path(name).exists():
        yield Said(
            f"{name} is read at its newest commit; the run records a fingerprint of its rows, but cannot bring old "
            "ones back",
            "download it once and set train_file",
        )


@rule("remote-code", "blocking", "code of a model repository would run here with this user's rights")
def remote_code(case: Case) -> Iterator[Said]:
    """Code out of a model repository would be run."""
    if (case.recipe["model_init_kwargs"] or {}).get("trust_remote_code"):
        yield Said(
            "model_init_kwargs asks for trust_remote_code",
            "a model that transformers itself knows; or read its code, pin its commit and silence this rule",
        )


@rule("tracker-credentials", "warning", "wandb asks for a key on the terminal, where nobody is")
def tracker_credentials(case: Case) -> Iterator[Said]:
    """A remote tracker is asked for and its credentials are not in the environment."""
    asked = case.recipe["report_to"]
    for tracker in asked if isinstance(asked, list) else [asked]:
        needed = CREDENTIALS.get(str(tracker), ())
        if needed and not any(os.environ.get(name) for name in needed):
            yield Said(f"report_to: {tracker}, and {needed[0]} is not set", f"export {needed[0]}, or report_to: none")
