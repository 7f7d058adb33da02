"""The arguments and options that commands share; what they are called and mean is their help."""

import dataclasses
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from typer import Argument, BadParameter, Option

from sft_recipes.recipes import recipe as recipes

Known = Callable[[], list[str]] | None


def _whole(given: str | int) -> int:
    text = str(given)
    if not text.isdigit() or int(text) < 1:
        raise BadParameter(f"{text!r} is not a whole number above 0")
    return int(text)


def names_in(directory: str) -> Callable[[], list[str]]:
    """The files of a directory by their names, for the shell to complete."""
    return lambda: recipes.names(Path(directory))


def known_runs() -> list[str]:
    return sorted(path.parent.name for path in Path("runs").glob("*/run.json"))


def opened(names: str | list[str]) -> str | list[str]:
    """Names of runs that exist, which is said before anything is imported for them."""
    from sft_recipes.runs.run import Run

    for name in [names] if isinstance(names, str) else names:
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


def flag(name: str, text: str) -> Any:
    """A switch that is off where it is not given."""
    return Option(f"--{name}", metavar="", help=text)


def number(metavar: str, text: str) -> Any:
    """An option that takes a whole number above 0."""
    return Option(metavar=metavar, help=text, parser=_whole)


RecipeName = Annotated[str, argument("RECIPE", "a name in recipes/, such as default", names_in("recipes"))]
RunName = Annotated[str, argument("RUN", "the run's name", known_runs, opened)]
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
    data: Annotated[str | None, option("FILE", "training rows, instead of the recipe's train_file")] = None
    model: Model = None

    @property
    def words(self) -> list[str]:
        """All of it as overrides."""
        model = [] if self.model is None else [word("model", self.model)]
        data = [] if self.data is None else [word("train_file", self.data), "dataset_name=null"]
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
