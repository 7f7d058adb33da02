"""A project of one's own, where one experiment is one recipe."""

from pathlib import Path

from sft_recipes.errors import InputError
from sft_recipes.recipes import recipe as recipes
from sft_recipes.recipes.shipped import ROOT

MAKEFILE = "Makefile"
# What a run, the caches and the rows of a project are, and git need not keep.
IGNORED = "/runs/\n/data/\n.cache/\n"
HEADER = """\
# Written by sft-recipes init. `make help` lists the targets; each is a command of the program that PROGRAM names.
PROGRAM ?= sft-recipes
INSTALLED :=

"""


def init(folder: Path, name: str, base: str) -> list[Path]:
    """Write a project into a folder: a Makefile, the accelerate configs, a first recipe, and what git ignores.

    Raises:
        InputError: Something of it is there already; nothing is written then.
    """
    files = {
        folder / MAKEFILE: HEADER + (ROOT / "commands.mk").read_text(encoding="utf-8"),
        folder / ".gitignore": IGNORED,
    }
    for path in sorted((ROOT / "accelerate_configs").glob("*.yaml")):
        files[folder / "accelerate_configs" / path.name] = path.read_text(encoding="utf-8")
    recipe = folder / recipes.RECIPES / f"{name}.yaml"
    if there := [str(path) for path in (*files, recipe) if path.exists() or path.is_symlink()]:
        raise InputError(*(f"{path} exists and is never overwritten; name another FOLDER" for path in there))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written = recipes.write_new(name, base, recipe.parent)
        for path, text in files.items():
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be written: {error.strerror}") from None
    return [written, *files]
