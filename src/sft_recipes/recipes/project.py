"""A project of one's own, where one experiment is one recipe."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sft_recipes.errors import InputError, refuse
from sft_recipes.recipes import editor
from sft_recipes.recipes import recipe as recipes
from sft_recipes.recipes.shipped import ROOT, located

MAKEFILE = "Makefile"
# What a run, the caches and the rows of a project are, and git need not keep.
IGNORED = "/runs/\n/data/\n.cache/\n"
HEADER = """\
# Written by sft-recipes init. `make help` lists the targets; each is a command of the program that PROGRAM names.
PROGRAM ?= sft-recipes
INSTALLED :=

"""


def unwritten(name: str, directory: Path = recipes.RECIPES) -> Path:
    """Where a new recipe of that name is written.

    Raises:
        InputError: The name is no name or taken.
    """
    if not recipes.NAME.fullmatch(name):
        raise InputError(f"NAME: invalid recipe name {name!r}: {recipes.LETTERS}")
    path = directory / f"{name}.yaml"
    if path.exists() or path.is_symlink():
        raise InputError(f"{path} exists and is never overwritten; choose another NAME=")
    return path


def write(path: Path, text: str) -> None:
    """Write a new recipe, and beside it what an editor needs to complete and explain its keys."""
    path.parent.mkdir(exist_ok=True)
    editor.write(path.parent)
    with path.open("x", encoding="utf-8") as file:
        file.write(text)


def new(
    name: str, base: str, directory: Path = recipes.RECIPES, said: Mapping[str, tuple[Any, str]] | None = None
) -> Path:
    """Write a recipe that extends another, for its author to change; one that is itself a variant lends its lines.

    Args:
        said: Values of keys that it says otherwise, each with the comment above it.

    Raises:
        InputError: The name is no name or taken, or there is no such base.
    """
    path = unwritten(name, directory)
    extended = recipes.find_base(base, directory)
    recipes.load(extended)
    lines = located(extended).read_text(encoding="utf-8").splitlines()
    # Two files tell the whole story, so a variant of a variant holds the lines of both.
    variant = (
        [line for line in lines if not line.startswith(("description:", editor.LINE))]
        if "extends" in recipes.read(extended)
        else [f"extends: {base}"]
    )
    variant = _without(variant, said or {})
    for key, (value, comment) in (said or {}).items():
        variant += [*([f"# {comment}"] if comment else []), recipes.line(key, value)]
    yours = "# The change, with its reason above it; sft-recipes why KEY says what is known about a value."
    text = "\n".join([editor.LINE, *variant, f"description: What {name} tries, in one line.", yours, ""])
    write(path, text)
    return path


def _without(lines: list[str], keys: Iterable[str]) -> list[str]:
    """The lines of a recipe without those of some keys, and the comments above them."""
    kept: list[str] = []
    dropping = False
    for line in lines:
        if not line.startswith((" ", "-", "#")) and line.strip():
            dropping = line.partition(":")[0] in set(keys)
            while dropping and kept and kept[-1].startswith("#"):
                kept.pop()
        elif line.startswith("#"):
            dropping = False
        if not dropping:
            kept.append(line)
    return kept


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
    there = (path for path in (*files, recipe) if path.exists() or path.is_symlink())
    refuse(f"{path} exists and is never overwritten; name another FOLDER" for path in there)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written = new(name, base, recipe.parent)
        for path, text in files.items():
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be written: {error.strerror}") from None
    return [written, *files]
