"""Write the Hub's current commit of a recipe's base model into the recipe, or into the model's file."""

import re
from collections.abc import Sequence
from pathlib import Path

from sft_recipes.errors import InputError, hub_reason
from sft_recipes.files import write_whole
from sft_recipes.recipes import recipe as recipes


def pin(name: str, overrides: Sequence[str] = ()) -> tuple[Path, str]:
    """Ask the Hub and write `model_revision`; returns the file that changed and the commit.

    The file is the recipe's own, whatever it extends, or with an override `model` that model's.

    Raises:
        InputError: The model is a local directory, the file ships with the program, or the Hub does not answer.
            Nothing is written then.
    """
    recipe = recipes.load(name, overrides)
    model = recipe.values["model_name_or_path"]
    of_model = "model" in recipes.parse_overrides(overrides)
    path = Path(model.origin.rpartition(":")[0]) if of_model else recipes.file_of(name)
    if Path(model.value).exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", model.value):
        raise InputError(f"{model.origin}: {model.value} is not a Hub id, so it has no revision to pin")
    if not path.is_file():
        raise InputError(f"{path} ships with the program; pin one of your own: sft-recipes new NAME --from {name}")

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
    line = f"model_revision: {commit}\n"
    if "model_revision" in own:
        lines[_index(own["model_revision"])] = line
    else:
        # Below the model where this file names it, and at the end where that is the base's.
        after = _index(own["model_name_or_path"]) + 1 if "model_name_or_path" in own else len(lines)
        lines[after - 1] = lines[after - 1].rstrip("\n") + "\n"
        lines.insert(after, line)
    write_whole(path, "".join(lines))
    return path, commit


def _index(item: recipes.Value) -> int:
    return int(item.origin.rpartition(":")[2]) - 1
