"""The arguments and options that commands share; what they are called and mean is their help."""

import dataclasses
import errno
import json
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from typer import Argument, BadParameter, Option

from sft_recipes.errors import shown
from sft_recipes.recipes import recipe as recipes

Known = Callable[[], list[str]] | None


# More processes, rows, trials or seconds than anybody has asked for; more would be counted for a long time.
MOST = 1_000_000


def _whole(given: str | int) -> int:
    text = str(given)
    if not re.fullmatch("[0-9]{1,7}", text) or not 1 <= int(text) <= MOST:
        raise BadParameter(f"{shown(text)} is not a whole number from 1 to {MOST}")
    return int(text)


def _amount(given: str | float) -> float:
    try:
        amount = float(given)
    except ValueError:
        amount = 0.0
    if not 0 < amount <= MOST:
        raise BadParameter(f"{shown(str(given))} is not a number above 0 and at most {MOST}")
    return amount


def names_in(directory: str) -> Callable[[], list[str]]:
    """The files of a directory by their names, for the shell to complete."""
    return lambda: recipes.names(Path(directory))


def known_runs() -> list[str]:
    return sorted(path.parent.name for path in Path("runs").glob("*/run.json"))


def opened(names: str | list[str] | None) -> str | list[str] | None:
    """Names of runs that exist, which is said before anything is imported for them."""
    from sft_recipes.runs.run import Run

    for name in [names] if isinstance(names, str) else names or ():
        Run.open(name)
    return names


def known_gpus() -> list[str]:
    from sft_recipes.plan import gpus

    return list(gpus.known())


def argument(metavar: str, text: str, known: Known = None, check: Callable[[Any], Any] | None = None) -> Any:
    """An argument by its place; the shell completes what is known."""
    return Argument(metavar=metavar, help=text, autocompletion=known, callback=check, show_default=False)


def option(metavar: str, text: str, known: Known = None, *names: str) -> Any:
    """An option of its parameter's name, or of another name."""
    return Option(*names, metavar=metavar, help=text, autocompletion=known)


def output(metavar: str, text: str) -> Any:
    """An option that names a file to write, which is known to be possible before anything is done for it."""
    return Option(metavar=metavar, help=text, callback=_writable)


def _writable(path: Path | None) -> Path | None:
    try:
        if path is None:
            return None
        if path.is_dir():
            raise BadParameter(f"{path} is a directory; name a file in it")
        if not path.parent.is_dir():
            raise BadParameter(f"{path} cannot be written: there is no directory {path.parent}")
        if not os.access(path.parent, os.W_OK):
            raise BadParameter(f"{path} cannot be written: {os.strerror(errno.EACCES)}")
        if path.exists() and not path.is_file():
            raise BadParameter(f"{path} is a pipe or a device; name a file")
    except OSError as error:
        raise BadParameter(f"{shown(str(path))} cannot be written: {error.strerror}") from None
    return path


def flag(name: str, text: str) -> Any:
    """A switch that is off where it is not given."""
    return Option(f"--{name}", metavar="", help=text)


def number(metavar: str, text: str) -> Any:
    """An option that takes a whole number from 1 to `MOST`."""
    return Option(metavar=metavar, help=text, parser=_whole)


def amount(metavar: str, text: str) -> Any:
    """An option that takes a number above 0."""
    return Option(metavar=metavar, help=text, parser=_amount)


RecipeName = Annotated[str, argument("RECIPE", "a name in recipes/, such as default", names_in("recipes"))]
RunName = Annotated[str, argument("RUN", "the run's name", known_runs, opened)]
OpenedRun = Annotated[str, argument("NAME", "the run's name", known_runs, opened)]
NewRun = Annotated[str | None, option("NAME", "the run's name; the recipe's name and the time without it")]
Site = Annotated[str | None, option("NAME", "a site of clusters/", names_in("clusters"))]
Gpu = Annotated[
    str | None, option("NAME", "a GPU to plan for, such as a100-80gb; the visible one without it", known_gpus)
]
Split = Annotated[Literal["test", "validation"], Option(help="which rows")]
Overrides = Annotated[list[str] | None, option("'KEY=VALUE ...'", "override recipe keys", None, "--set")]
Model = Annotated[str | None, option("NAME", "a model of models/, instead of the recipe's", names_in("models"))]


@dataclasses.dataclass
class Changes:
    """What a command changes of a recipe."""

    overrides: Overrides = None
    data: Annotated[str | None, option("FILE", "your rows, instead of all of the recipe's")] = None
    model: Model = None

    @property
    def words(self) -> list[str]:
        """All of it as overrides."""
        model = [] if self.model is None else [word("model", self.model)]
        data = [] if self.data is None else [word("data", self.data)]
        return [*(self.overrides or ()), *model, *data]


@dataclasses.dataclass
class Job(Changes):
    """What a command changes of a recipe, and where it runs."""

    accel: Annotated[
        str | None, option("NAME", "an accelerate config of accelerate_configs/", names_in("accelerate_configs"))
    ] = None
    gpus: Annotated[int | None, number("N", "processes, instead of the accelerate config's")] = None

    @property
    def where(self) -> dict[str, Any]:
        """All of it, as those that make a job of a recipe take it."""
        return {"accel": self.accel, "processes": self.gpus, "overrides": self.words}


def word(key: str, text: str) -> str:
    """A key and its text as an override, whatever characters the text has."""
    return shlex.quote(f"{key}={json.dumps(text)}")
