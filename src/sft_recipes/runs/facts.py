"""What the files of a run hold: their shapes, and the one way to read each.

A run directory may come from somebody else, or from a disk that was full. What is read here has its shape, or is one
`InputError` that names the file, the place and what to do.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args, get_origin

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


# The shapes of files, as far as they are read: an object by its keys, of which those with a question mark may be
# missing, or with any names (`*`); a list by what is in it; and in a tuple one of several. docs/run_directory.md and
# docs/evaluation.md say what each key holds.
_FILES = {"*": {"bytes": int, "sha256": str}}
_ROWS = {"source": str, "sha256": str, "rows": int, "prepared_rows": int, "sources?": [dict]}
# The Hub's commit, or null for a directory, and a hash of each file that was there.
_MODEL = {"commit": (str, None), "files": {"*": str}}
RUN: dict[str, Any] = {
    "schema": Literal[1],
    "name": str,
    "recipe": str,
    "status": Status,
    "own": dict,
    "topology": {
        "name": str,
        "backend": Literal["single", "ddp", "deepspeed", "fsdp"],
        "processes": int,
        "zero_stage": (int, None),
        "use_cpu": bool,
    },
    "data": {
        "source": dict,
        "fingerprint": str,
        "format": str,
        "conversational": bool,
        "holds?": [str],
        "variables?": [str],
        "columns?": {"*": str},
        "splits": {"train": _ROWS, "validation?": _ROWS, "test?": _ROWS},
        "tokens?": str,
        "not_tokenised?": str,
    },
    "rehearsal?": bool,
    "overrides?": dict,
    "origins?": {"*": str},
    "differences?": [dict],
    "findings?": [dict],
    "git?": (dict, None),
    "versions?": {"*": str},
    "gpus?": [str],
    "seconds?": float,
    "continues?": (
        {
            "adapter": str,
            "sha256": str,
            "run": (str, None),
            "base": str,
            "revision": (str, None),
            "continues": (dict, None),
        },
        None,
    ),
    "identity?": {"files": {"*": str}, "settings": str, "base": (_MODEL, None), "adapter?": (_MODEL, None)},
    "journal?": [{"at": str, "status": Status, "step": int}],
    "resumed?": [{"at": str, "step": int}],
    "problems?": ([str], None),
    "error?": (str, None),
    "in_effect?": {"*": dict},
    "measured?": {"step": int, "eval_loss?": [{"*": (float, None)}], "saved?": _FILES},
    "merged?": {"directory": str, "files": _FILES},
    "evaluated?": {"*": _FILES},
    "job?": dict,
}
METRICS: dict[str, Any] = {
    "schema": Literal[1],
    "task": Literal["classification", "generation"],
    "predict_by": str,
    "split": str,
    "settings": dict,
    "scored": int,
    "primary": str,
    "models": {"*": dict},
    "baselines": {"*": dict},
    "verdict": dict,
    "measured": dict,
}


def read(path: Path, shape: Any, remedy: str) -> dict[str, Any]:
    """What a file of JSON holds, which is of the shape of `RUN` or `METRICS`.

    Raises:
        InputError: It is missing, cut off, or not of that shape; says every difference, and the remedy.
    """
    with _readable(path, remedy):
        text = path.read_text(encoding="utf-8")
        if not text.strip():
            raise ValueError("it is empty")
        found = json.loads(text)
    if wrong := [*_wrong(found, shape, "")]:
        raise InputError(f"{path} is not as it was written: {'; '.join(wrong[:5])}; {remedy}")
    return found


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
        wrong = [*_wrong(entry, {"step": int}, "")]
        wrong += [text for key in numbers if key in entry for text in _wrong(entry[key], (float, None), key)]
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


def _wrong(value: Any, kind: Any, where: str) -> Iterator[str]:
    """Where a value is not of a shape, in words."""
    subject = where or "it"
    if isinstance(kind, tuple):
        if all([*_wrong(value, each, where)] for each in kind):
            yield from _wrong(value, kind[0], where)
    elif get_origin(kind) is Literal:
        if not any(value == each and type(value) is type(each) for each in get_args(kind)):
            yield f"{subject} is {shown(value)}, not {' or '.join(map(str, get_args(kind)))}"
    elif isinstance(kind, dict) and isinstance(value, dict):
        if kind is _FILES:
            away = [name for name in map(PurePosixPath, value) if name.is_absolute() or ".." in name.parts]
            yield from (f"{where} names {str(name)!r}, which is outside of its directory" for name in away)
        for key, of_key in (dict.fromkeys(value, kind["*"]) if "*" in kind else kind).items():
            name = key if key in value else key.removesuffix("?")
            place = f"{where}.{name}".lstrip(".")
            if name in value:
                yield from _wrong(value[name], of_key, place)
            elif name == key:
                yield f"{place} is missing"
    elif isinstance(kind, list) and isinstance(value, list):
        for number, each in enumerate(value, 1):
            yield from _wrong(each, kind[0], f"{where}[{number}]")
    else:
        kind = type(kind) if isinstance(kind, (dict, list, type(None))) else kind
        if not isinstance(value, (int, float) if kind is float else kind) or (
            isinstance(value, bool) and kind is not bool
        ):
            yield f"{subject} is {shown(value)}, not {_WORDS[kind]}"


_WORDS: dict[type, str] = {
    dict: "an object",
    list: "a list",
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}
