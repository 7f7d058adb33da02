"""What public collections of recipes say, counted: `python scripts/count_recipes.py [--newest]`.

Clones the repositories of src/sft_recipes/recipes/repositories.json into .cache/upstream and counts at the commits
that are recorded there, or at the newest ones, which are then recorded with their dates. The evidence of
hyperparameters has its counts from that file, and every link to one of these repositories its commit and date.
"""

import argparse
import json
import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from sft_recipes.recipes.why import REPOSITORIES

ROOT = Path(__file__).parents[1]
CLONES = Path(".cache") / "upstream"
# The collections, where their recipes are, and the key that names a commit or branch of the base.
FOLDERS = {
    "axolotl-ai-cloud/axolotl": "examples",
    "pytorch/torchtune": "recipes/configs",
    "hiyouga/LLaMA-Factory": "examples",
    "Lightning-AI/litgpt": "config_hub",
    "huggingface/alignment-handbook": "recipes",
}
REVISIONS = ("revision_of_model", "model_revision", "revision")

Recipes = list[dict[str, Any]]


def git(name: str, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(CLONES / name.replace("/", "+")), *arguments],  # noqa: S607
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def fetched(name: str) -> None:
    """A clone of the repository."""
    place = CLONES / name.replace("/", "+")
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["git", "clone", "--quiet", "--bare", f"https://github.com/{name}", str(place)],  # noqa: S607
            check=True,
        )


def recipes(name: str, commit: str) -> Recipes:
    """Every YAML file of a collection."""
    files = git(name, "ls-tree", "-r", "--name-only", commit, FOLDERS[name]).splitlines()
    texts = (git(name, "show", f"{commit}:{file}") for file in files if file.endswith((".yaml", ".yml")))
    return [found for found in map(yaml.safe_load, texts) if isinstance(found, dict)]


def having(found: Recipes, *path: str, is_: Callable[[Any], bool]) -> int:
    """How many recipes have such a value at a path of keys; None where they have none."""

    def at(recipe: Any) -> Any:
        for key in path:
            recipe = recipe.get(key) if isinstance(recipe, dict) else None
        return recipe

    return sum(is_(at(recipe)) for recipe in found)


def axolotl(found: Recipes) -> dict[str, int]:
    qlora = [each for each in found if each.get("adapter") == "qlora"]
    ratios = [each["lora_alpha"] / each["lora_r"] for each in qlora if each.get("lora_r")]
    rows = [each.get("micro_batch_size", 0) * each.get("gradient_accumulation_steps", 0) for each in qlora]
    adapters = [each for each in found if each.get("adapter") in ("lora", "qlora")]
    return {
        "qlora": len(qlora),
        "adapters": len(adapters),
        "neftune": having(adapters, "neftune_noise_alpha", is_=lambda value: value is not None),
        "warm_up_of_a_tenth": having(qlora, "warmup_ratio", is_=lambda value: value == 0.1),
        "one_epoch": having(qlora, "num_epochs", is_=lambda value: value == 1),
        "four_epochs": having(qlora, "num_epochs", is_=lambda value: value == 4),
        "adamw_8bit": having(qlora, "optimizer", is_=lambda value: "adamw" in value and "8bit" in value),
        "adamw_8bit_spellings": len({each["optimizer"] for each in qlora if "8bit" in each["optimizer"]}),
        "cosine": having(qlora, "lr_scheduler", is_=lambda value: value == "cosine"),
        "dropout_0.05": having(qlora, "lora_dropout", is_=lambda value: value == 0.05),
        "dropout_0": having(qlora, "lora_dropout", is_=lambda value: value in (0, None)),
        "weight_decay_0": having(qlora, "weight_decay", is_=lambda value: value == 0),
        "alpha_half_of_rank": ratios.count(0.5),
        "alpha_twice_the_rank": ratios.count(2),
        "rows_4_or_8": rows.count(4) + rows.count(8),
        "length_2048": having(qlora, "sequence_len", is_=lambda value: value == 2048),
        "micro_batch_1_or_2": having(qlora, "micro_batch_size", is_=lambda value: value in (1, 2)),
    }


def torchtune(found: Recipes) -> dict[str, int]:
    lora = [each for each in found if (each.get("model") or {}).get("lora_rank")]
    return {
        "lora": len(lora),
        "warm_up_of_100": having(lora, "lr_scheduler", "num_warmup_steps", is_=lambda value: value == 100),
        "one_epoch": having(lora, "epochs", is_=lambda value: value == 1),
        "no_clipping": having(lora, "clip_grad_norm", is_=lambda value: value is None),
        "weight_decay_0.01": having(lora, "optimizer", "weight_decay", is_=lambda value: value == 0.01),
        "rows_16": sum(each.get("batch_size", 0) * each.get("gradient_accumulation_steps", 1) == 16 for each in lora),
        "alpha_twice_the_rank": sum(each["model"]["lora_alpha"] == 2 * each["model"]["lora_rank"] for each in lora),
        "dropout": having(lora, "model", "lora_dropout", is_=bool),
    }


def llama_factory(found: Recipes) -> dict[str, int]:
    lora = [each for each in found if each.get("finetuning_type") == "lora" and each.get("do_train")]
    return {
        "lora": len(lora),
        "three_epochs": having(lora, "num_train_epochs", is_=lambda value: value == 3),
        "one_epoch": having(lora, "num_train_epochs", is_=lambda value: value == 1),
        "epochs_not_said": having(lora, "num_train_epochs", is_=lambda value: value is None),
        "alpha_not_said": having(lora, "lora_alpha", is_=lambda value: value is None),
        "dropout": having(lora, "lora_dropout", is_=bool),
        "cosine": having(lora, "lr_scheduler_type", is_=lambda value: value == "cosine"),
        "length_2048": having(lora, "cutoff_len", is_=lambda value: value == 2048),
        "rows_8": sum(
            each.get("per_device_train_batch_size", 0) * each.get("gradient_accumulation_steps", 0) == 8
            for each in lora
        ),
    }


def litgpt(found: Recipes) -> dict[str, int]:
    lora = [each for each in found if each.get("lora_r")]
    return {
        "lora": len(lora),
        "alpha_half_of_rank": sum(each["lora_alpha"] * 2 == each["lora_r"] for each in lora),
        "length_512": having(lora, "train", "max_seq_length", is_=lambda value: value == 512),
        "rows_8": having(lora, "train", "global_batch_size", is_=lambda value: value == 8),
    }


COUNTS: Mapping[str, Callable[[Recipes], dict[str, int]]] = {
    "axolotl-ai-cloud/axolotl": axolotl,
    "pytorch/torchtune": torchtune,
    "hiyouga/LLaMA-Factory": llama_factory,
    "Lightning-AI/litgpt": litgpt,
    "huggingface/alignment-handbook": lambda found: {
        "lora": having(found, "use_peft", is_=bool),
        "cosine": sum(bool(each.get("use_peft")) and each.get("lr_scheduler_type") == "cosine" for each in found),
    },
}


def pins(found: Recipes) -> dict[str, int]:
    """Recipes, those that name a commit of their base, and those that name all of it."""
    named = [str(each[key]) for each in found for key in REVISIONS if each.get(key) not in (None, "main")]
    commits = [name for name in named if set(name) <= set("0123456789abcdef")]
    whole = sum(len(commit) == 40 for commit in commits)
    return {"recipes": len(found), "short_commits": len(commits) - whole, "whole_commits": whole}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--newest", action="store_true", help="at the newest commits, which are recorded")
    newest = options.parse_args().newest
    os.chdir(ROOT)
    recorded = json.loads(REPOSITORIES.read_text(encoding="utf-8"))
    total: dict[str, int] = {}
    for name, facts in recorded["repositories"].items():
        fetched(name)
        if newest:
            git(name, "fetch", "--quiet", "origin", "HEAD")
            facts["commit"] = git(name, "rev-parse", "FETCH_HEAD").strip()
        facts["date"] = git(name, "show", "--no-patch", "--format=%cs", facts["commit"]).strip()
        if name in COUNTS:
            found = recipes(name, facts["commit"])
            facts["counts"] = COUNTS[name](found)
            total = {key: total.get(key, 0) + value for key, value in pins(found).items()}
    recorded["pinned_bases"] = total
    REPOSITORIES.write_text(json.dumps(recorded, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
