"""Write the Hub's current commit of a recipe's base model into the file that names the model."""

import re
from collections.abc import Sequence
from pathlib import Path

from sft_recipes.errors import InputError, hub_reason
from sft_recipes.files import write_whole
from sft_recipes.recipes import recipe as recipes


def pin(name: str, overrides: Sequence[str] = ()) -> tuple[Path, str]:
    """Ask the Hub and write `model_revision`; returns the file that changed and the commit.

    Raises:
        InputError: The model is a local directory, or the Hub does not answer for it. Nothing is written then.
    """
    recipe = recipes.load(name, overrides)
    model = recipe.values["model_name_or_path"]
    path = Path(model.origin.rpartition(":")[0])
    if Path(model.value).exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", model.value):
        raise InputError(f"{model.origin}: {model.value} is not a Hub id, so it has no revision to pin")

    from huggingface_hub import HfApi

    try:
        commit = HfApi().model_info(model.value).sha
    except Exception as error:
        # The Hub's client raises whatever its transport raises; all of it means that there is no answer.
        raise InputError(
            f"{path} is unchanged: the Hub does not answer for {model.value}: {hub_reason(error)}"
        ) from None
    if not commit or not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise InputError(f"the Hub gave no commit for {model.value}; {path} is unchanged")
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    own = recipes.read(path)
    anchor = own.get("model_revision", own["model_name_or_path"])
    index = int(anchor.origin.rpartition(":")[2]) - 1
    lines[index : index + 1] = [*([] if "model_revision" in own else [lines[index]]), f"model_revision: {commit}\n"]
    write_whole(path, "".join(lines))
    return path, commit
