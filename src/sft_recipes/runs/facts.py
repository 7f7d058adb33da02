"""What the files of a run hold: their shapes, and the one way to read each.

A run directory may come from somebody else, or from a disk that was full. What is read here has its shape, or is one
`InputError` that names the file, the place and what to do.
"""

import contextlib
import json
import types
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NotRequired, TypedDict, Union, get_args, get_origin, get_type_hints, is_typeddict

from sft_recipes.errors import InputError, refuse, shown
from sft_recipes.files import json_lines
from sft_recipes.recipes import recipe as recipes

# The version of run.json, log.jsonl and manifest.json; it grows when a reader of today would misread them.
SCHEMA = 1
MANIFEST = "manifest.json"
"""Of a checkpoint, written last."""

Status = Literal["running", "interrupted", "failed", "finished"]
# What a run may become, from what it is. One that was killed is found `running` without a lock, and is `interrupted`.
TRANSITIONS: dict[str | None, tuple[str, ...]] = {
    None: ("running",),
    "running": ("interrupted", "failed", "finished"),
    "interrupted": ("running",),
    "failed": ("running",),
    "finished": (),
}


class File(TypedDict):
    """A file as it was sealed."""

    bytes: int
    sha256: str


class Split(TypedDict):
    """Rows of one kind, and where they came from."""

    source: str
    sha256: str
    rows: int
    prepared_rows: int
    sources: NotRequired[list[dict[str, Any]]]


class Splits(TypedDict):
    """The rows by what they are for."""

    train: Split
    validation: NotRequired[Split]
    test: NotRequired[Split]


class Data(TypedDict):
    """The rows of a run."""

    source: dict[str, Any]
    fingerprint: str
    format: str
    conversational: bool
    holds: NotRequired[list[str]]
    variables: NotRequired[list[str]]
    columns: NotRequired[dict[str, str]]
    splits: Splits
    tokens: NotRequired[str]
    not_tokenised: NotRequired[str]


class Topology(TypedDict):
    """Where a run runs."""

    name: str
    backend: Literal["single", "ddp", "deepspeed", "fsdp"]
    processes: int
    zero_stage: int | None
    use_cpu: bool


class Base(TypedDict):
    """The base model: the Hub's commit, or None for a directory, and a hash of each file that was there."""

    commit: str | None
    files: dict[str, str]


class Identity(TypedDict):
    """What a run must still be when it is opened for work."""

    files: dict[str, str]
    settings: str
    base: Base | None
    adapter: NotRequired[Base | None]


class Continues(TypedDict):
    """The adapter that a run continues from, and the one before it."""

    adapter: str
    sha256: str
    run: str | None
    base: str
    revision: str | None
    continues: dict[str, Any] | None


class Event(TypedDict):
    """A change of status."""

    at: str
    status: Status
    step: int


class Resumed(TypedDict):
    """A launch after the first."""

    at: str
    step: int


class Measured(TypedDict):
    """What a launch measured."""

    step: int
    eval_loss: NotRequired[list[dict[str, float | None]]]
    saved: NotRequired[dict[str, File]]


class Merged(TypedDict):
    """What was merged, and where it lies."""

    directory: str
    files: dict[str, File]


class RunFacts(TypedDict):
    """run.json, as far as it is read; docs/run_directory.md says what each key holds."""

    schema: Literal[1]
    name: str
    recipe: str
    status: Status
    own: dict[str, Any]
    topology: Topology
    data: Data
    rehearsal: NotRequired[bool]
    overrides: NotRequired[dict[str, Any]]
    origins: NotRequired[dict[str, str]]
    differences: NotRequired[list[dict[str, Any]]]
    findings: NotRequired[list[dict[str, Any]]]
    git: NotRequired[dict[str, Any] | None]
    versions: NotRequired[dict[str, str]]
    gpus: NotRequired[list[str]]
    seconds: NotRequired[float]
    continues: NotRequired[Continues | None]
    identity: NotRequired[Identity]
    journal: NotRequired[list[Event]]
    resumed: NotRequired[list[Resumed]]
    problems: NotRequired[list[str] | None]
    error: NotRequired[str | None]
    in_effect: NotRequired[dict[str, dict[str, Any]]]
    measured: NotRequired[Measured]
    merged: NotRequired[Merged]
    evaluated: NotRequired[dict[str, dict[str, File]]]
    job: NotRequired[dict[str, Any]]


class Metrics(TypedDict):
    """metrics.json, as far as several read it; docs/evaluation.md says what each key holds."""

    schema: Literal[1]
    task: Literal["classification", "generation"]
    predict_by: str
    split: str
    settings: dict[str, Any]
    scored: int
    primary: str
    models: dict[str, dict[str, Any]]
    baselines: dict[str, dict[str, Any]]
    verdict: dict[str, Any]
    measured: dict[str, Any]


def read_run(path: Path) -> dict[str, Any]:
    """What a run.json holds.

    Raises:
        InputError: It is missing, cut off, or not of the shape of `RunFacts`; says every difference.
    """
    return _shaped(path, RunFacts, "put the file back from a copy, or start a new run")


def read_metrics(path: Path, again: str) -> dict[str, Any]:
    """What a metrics.json holds; `again` is the command that makes it anew.

    Raises:
        InputError: It is missing, cut off, or not of the shape of `Metrics`.
    """
    return _shaped(path, Metrics, f"make it anew: {again}")


def read_lines(path: Path, remedy: str, *, growing: bool = False) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file.

    Args:
        remedy: what to do about a line that is none.
        growing: leave out a last line that was cut off.

    Raises:
        InputError: The file cannot be read, or names a line of it that is no object.
    """
    with _readable(path, remedy):
        found = json_lines(path, cut_off=growing)
        for number, line in enumerate(found, 1):
            if not isinstance(line, dict):
                raise ValueError(f"entry {number} is {shown(line)}, not an object")
    return found


def read_log(path: Path) -> list[dict[str, Any]]:
    """The entries of a log.jsonl, which may be growing.

    Raises:
        InputError: A line is no entry; says which.
    """
    remedy = "take that line out, or put the file back from a copy"
    found = read_lines(path, remedy, growing=True) if path.exists() else []
    numbers = ("loss", "eval_loss", "learning_rate", "grad_norm", "tokens_per_second", "waiting_share")
    for number, entry in enumerate(found, 1):
        wrong = [*_wrong(entry, _Entry, "")]
        wrong += [text for key in numbers if key in entry for text in _wrong(entry[key], float | None, key)]
        if wrong:
            raise InputError(f"{path}: entry {number}: {'; '.join(wrong)}; {remedy}")
    return found


def read_recipe(path: Path) -> dict[str, recipes.Value]:
    """What the recipe.yaml of a run holds, each value with its line; by the loader that reads recipes.

    Raises:
        InputError: It is missing, no recipe, or says what no recipe may say.
    """
    with _readable(path, "put the file back from a copy, or start a new run"):
        path.stat()
    values = recipes.read(path)
    refuse(recipes.refused(values, resolved=True))
    return values


@contextlib.contextmanager
def as_written(run: Path) -> Iterator[None]:
    """For what reads deep into the files of a run, whose outer shape is known: what it stumbles over is their fault.

    Raises:
        InputError: They are not as they were written.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        wrong = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(f"{run}: its files are not as they are written ({wrong}); put them back") from error


@contextlib.contextmanager
def _readable(path: Path, remedy: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{path} is missing; {remedy}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; {remedy}") from None
    except UnicodeDecodeError as error:
        bad = f"byte {error.start + 1} is {error.object[error.start]:#x}"
        raise InputError(f"{path} is no UTF-8 text: {bad}; {remedy}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}; {remedy}") from None


def _shaped(path: Path, shape: Any, remedy: str) -> dict[str, Any]:
    with _readable(path, remedy):
        text = path.read_text(encoding="utf-8")
        if not text.strip():
            raise ValueError("it is empty")
        found = json.loads(text)
    if wrong := [*_wrong(found, shape, "")]:
        raise InputError(f"{path} is not as it was written: {'; '.join(wrong[:5])}; {remedy}")
    return found


class _Entry(TypedDict):
    step: int


def _wrong(value: Any, kind: Any, where: str) -> Iterator[str]:
    """Where a value is not of a type, in words."""
    subject, origin, inner = where or "it", get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if all([*_wrong(value, each, where)] for each in inner):
            yield from _wrong(value, inner[0], where)
    elif origin is Literal:
        if not any(value == each and type(value) is type(each) for each in inner):
            yield f"{subject} is {shown(value)}, not {' or '.join(map(str, inner))}"
    elif is_typeddict(kind) or origin is dict:
        if not isinstance(value, dict):
            yield f"{subject} is {shown(value)}, not an object"
            return
        if inner[1:] == (File,):
            away = [name for name in map(PurePosixPath, value) if name.is_absolute() or ".." in name.parts]
            yield from (f"{where} names {str(name)!r}, which is outside of its directory" for name in away)
        hints = get_type_hints(kind) if is_typeddict(kind) else dict.fromkeys(value, inner[1])
        for key, hint in hints.items():
            place = f"{where}.{key}".lstrip(".")
            if key in value:
                yield from _wrong(value[key], hint, place)
            elif key in kind.__required_keys__:
                yield f"{place} is missing"
    elif origin is list:
        if not isinstance(value, list):
            yield f"{subject} is {shown(value)}, not a list"
            return
        for number, each in enumerate(value, 1):
            yield from _wrong(each, inner[0], f"{where}[{number}]")
    elif kind is not Any:
        allowed = (int, float) if kind is float else kind
        if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
            yield f"{subject} is {shown(value)}, not {_WORDS[kind]}"


_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}
