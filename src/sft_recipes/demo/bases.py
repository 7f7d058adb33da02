"""The base models that are made here, by the first command that needs one."""

import subprocess
import sys
from pathlib import Path

from sft_recipes.demo import demo_base, packaged
from sft_recipes.environment import quiet_environment
from sft_recipes.errors import InputError
from sft_recipes.files import locked
from sft_recipes.recipes.recipe import Recipe
from sft_recipes.terminal import say

MADE = {demo_base.DIRECTORY: demo_base, packaged.DIRECTORY: packaged}


def lacking() -> dict[Path, tuple[str, str] | None]:
    """Each of them, with what keeps it from being made here, and the remedy; None where nothing does."""
    packages = None if packaged.is_current(packaged.DIRECTORY) else packaged.lacking()
    return {demo_base.DIRECTORY: None, packaged.DIRECTORY: (packages, packaged.INSTALL) if packages else None}


def build_if_needed(recipe: Recipe) -> None:
    """Make the base model of a recipe if it is one of these and not there yet.

    Raises:
        InputError: It cannot be made.
    """
    directory = Path(recipe["model_name_or_path"])
    made = MADE.get(directory)
    if made is None or made.is_current(directory):
        return
    if lacks := lacking()[directory]:
        raise InputError("{}: {}; install them with: {}".format(directory, *lacks))
    directory.parent.mkdir(parents=True, exist_ok=True)
    with locked(directory.parent / ".lock"):
        # Another command may have made it while this one waited.
        if not made.is_current(directory):
            say("model", f"{made.SAID} in {directory}, once")
            builder = [sys.executable, "-m", made.__name__, str(directory)]
            subprocess.run(builder, env=quiet_environment(on_cpu=True) | {"TQDM_DISABLE": "1"}, check=True)
