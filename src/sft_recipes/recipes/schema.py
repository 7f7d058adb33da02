"""What a recipe may say: the keys of TRL, the few of our own, and what to write instead of everything else.

TRL's fields are read from `upstream.json`, a snapshot that a test keeps equal to the installed TRL, because importing
TRL takes ten seconds and a misspelt key deserves an answer at once. Everything else is in `keys.yaml`.
"""

import functools
import json
import math
import re
import string
from collections.abc import Mapping
from importlib import resources
from typing import Any

import yaml

from sft_recipes.errors import did_you_mean, shown


def table(package: str, name: str) -> dict[str, Any]:
    """A YAML or JSON file of the package; libyaml reads it in milliseconds, where PyYAML takes a tenth of a second."""
    text = resources.files(package).joinpath(name).read_text(encoding="utf-8")
    if name.endswith(".json"):
        return json.loads(text)
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506, both are safe loaders


DATA = table("sft_recipes.recipes", "keys.yaml")
# Fields of TRL that a recipe may not set, with the reason of each.
REFUSED: dict[str, str] = {key: why for why, keys in DATA["refused"].items() for key in keys}
# Those of them that follow from topology and run, so that a resolved recipe holds them.
DERIVED = frozenset(DATA["derived"])
RANGES: dict[str, dict[str, Any]] = {key: limits for limits in DATA["ranges"] for key in limits["keys"]}
# Whether more of a figure by which the best checkpoint is chosen is better.
LARGER_IS_BETTER: dict[str, bool] = DATA["larger_is_better"]
TEXTS: dict[str, dict[str, Any]] = {key: limits for limits in DATA["texts"] for key in limits["keys"]}
# What counts steps, rows and bytes here and upstream is no larger.
LARGEST_NUMBER = 2**31 - 1
_AT_MOST = f"at most {LARGEST_NUMBER}"
DEEPEST = 8
LONGEST_KEY = 100
# Halves of characters, and control characters but tab and line end.
_STRANGE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def as_yaml(value: Any) -> str:
    """A value as a recipe writes it, on one line."""
    if isinstance(value, str):
        return value if value and value.strip() == value else json.dumps(value)
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False)


def _instead(replaced: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for key, ours in replaced["renamed"].items():
        name, why = ours if isinstance(ours, list) else (ours, "")
        found[key] = f"write {name}: $value" + (f"; {why}" if why else "")
    for key, values in replaced["switches"].items():
        written = ", ".join(f"{name}: {as_yaml(value)}" for name, value in values.items())
        found[key] = f"write {written} for true, drop the key for false"
    found |= {key: f"drop it; {why}" for why, keys in replaced["dropped"].items() for key in keys}
    return found | {key: instead for instead, keys in replaced["inexpressible"].items() for key in keys}


# Keys that existed once, or that other tools use, with what to write today; $value is what the recipe says.
RENAMED = _instead(DATA["replaced"])


@functools.cache
def upstream() -> dict[str, dict[str, Any]]:
    """TRL's fields by name: `class`, `types`, `default`, and `choices` where limited."""
    found = table("sft_recipes.recipes", "upstream.json")
    lists = {"metric_for_best_model": [*LARGER_IS_BETTER], "report_to": ["none", *DATA["trackers"]]}
    for key, choices in (DATA["upstream_choices"] | lists).items():
        found[key]["choices"] = choices
    return found


@functools.cache
def own() -> dict[str, dict[str, Any]]:
    """Our own keys in the same form as `upstream`."""
    return {key: {"class": "RecipeArguments", **entry} for key, entry in DATA["own"].items()}


@functools.cache
def known() -> dict[str, dict[str, Any]]:
    """Every key a recipe may set."""
    # A mapping as text is JSON, as a command line of TRL gives it; a recipe has mappings.
    return {
        key: {**entry, "types": [name for name in entry["types"] if name != "str" or "dict" not in entry["types"]]}
        for key, entry in upstream().items()
        if key not in REFUSED | RENAMED
    } | own()


def problem(key: str, value: Any, *, resolved: bool = False) -> str | None:
    """What is wrong with `key: value`, with what to write instead; None if nothing is.

    Args:
        resolved: whether the recipe is a resolved one, which also holds what follows from topology and run.
    """
    if len(key) > LONGEST_KEY:
        return f"{key:.40}...: no such key; none has more than {LONGEST_KEY} characters"
    if found := unfit(value):
        return f"{key}: {found}"
    if key in RENAMED:
        instead = string.Template(RENAMED[key]).safe_substitute(value=short(value))
        return f"{key} is not a key of TRL {_trl_version()}: {instead}"
    derived = resolved and key in DERIVED
    if key in REFUSED and not derived:
        return f"{key} does not belong in a recipe: {REFUSED[key]}"
    entry = upstream()[key] if derived else known().get(key)
    if entry is None:
        if isinstance(value, dict):
            return f"{key}: no such key; a recipe is flat, so move {', '.join(value):.200} to the top level"
        return f"{key}: no such key{did_you_mean(key, known()) or '; `sft-recipes keys` lists them'}"
    if found := fault(key, value, entry, RANGES.get(key, {})):
        return f"{key}: {found}"
    if isinstance(value, str) and key in TEXTS and not re.fullmatch(TEXTS[key]["pattern"], value):
        return f"{key}: {shown(value)} is not {TEXTS[key]['says']}"
    return f"{key}: {found}" if key in DATA["places"] and (found := no_place(value)) else None


def fault(key: str, value: Any, entry: Mapping[str, Any], limits: Mapping[str, Any]) -> str | None:
    """What is wrong with the value of a key, by its types, its choices and the limits of a number."""
    if not any(_fits(value, name) for name in entry["types"]):
        return _mismatch(key, value, entry["types"])
    for item in (value if isinstance(value, list) else [value]) if entry.get("choices") else ():
        if isinstance(item, str) and item not in entry["choices"]:
            names = ", ".join(each or "an empty text" for each in entry["choices"])
            return f"{short(item)} is not one of {names}{did_you_mean(item, entry['choices'])}"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        within = limits.get("from", -math.inf) <= value <= limits.get("to", LARGEST_NUMBER)
        within = within and limits.get("above", -math.inf) < value < limits.get("below", math.inf)
        within = within and not (limits.get("whole") and value > 1 and value != int(value))
        if not within and value != limits.get("or"):
            too_large = value > LARGEST_NUMBER and "to" not in limits
            return f"{short(value)} is out of range; it must be {_AT_MOST if too_large else limits['says']}"
    return None


def unfit(value: Any) -> str | None:
    """What nobody can have meant, at any depth: what has no place in a file of text, or in a number of a machine."""
    parts = [(value, 0)]
    while parts:
        part, depth = parts.pop()
        if depth > DEEPEST:
            return f"nested more than {DEEPEST} deep; a recipe is flat"
        if isinstance(part, str) and (strange := _STRANGE.search(part)):
            return f"holds {strange[0]!a}, which is no character of a text; take it out"
        if isinstance(part, float) and not math.isfinite(part):
            return f"{part} is out of range; it must be finite"
        if isinstance(part, dict):
            if wrong := [name for name in part if not isinstance(name, str)]:
                return f"the name {short(wrong[0])} in a mapping is no text; put it in quotes"
            for name, value in part.items():
                if value is None and (colon := name.find(":")) > 0:
                    pair = f"{{{name[:colon]}: {name[colon + 1 :].strip()}}}"
                    return f"{shown(name)} has no value; after the colon a space is missing, write {pair}"
            parts += [(each, depth + 1) for pair in part.items() for each in pair]
        elif isinstance(part, list):
            if depth == 0 and "" in part:
                return "holds an empty text; take it out"
            parts += [(each, depth + 1) for each in part]
        elif not isinstance(part, (str, int, float, bool, type(None))):
            return f"a recipe holds no {type(part).__name__}; write text, a number, a list or a mapping"
        elif depth and isinstance(part, int) and abs(part) > LARGEST_NUMBER:
            return f"{short(part)} is out of range; it must be {_AT_MOST}"
    return None


def no_place(value: Any) -> str | None:
    """Why a text can be the name neither of a file nor of a repository."""
    if not isinstance(value, str):
        return None
    if value.strip() != value or not value:
        return f"{short(value)} is blank, or begins or ends with white space; write a name, or null for none"
    if "\n" in value or "\t" in value:
        return f"{shown(value)} holds a line end or a tab; write the name alone"
    if len(value.encode()) > 4000 or any(len(part.encode()) > 255 for part in value.split("/")):
        return f"{shown(value)} is too long for a name of a file; write a shorter one"
    return None


def short(value: Any) -> str:
    """A value as a recipe writes it, short enough for a message."""
    text = as_yaml(value) if not isinstance(value, int) or abs(value) < 10**80 else "a number of more than 80 digits"
    return text if len(text) <= 200 else f"{text[:200]}..."


_PYTHON: dict[str, type | tuple[type, ...]] = {
    "int": int,
    "float": (int, float),
    "str": str,
    "dict": dict,
    "list": list,
    "null": type(None),
}
_WORDS = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "dict": "a mapping",
    "list": "a list",
    "list[str]": "a list of texts",
    "list[class]": "a list of texts, numbers, true or false",
    "list[source]": "a list of sources",
    "dict[str, str]": "a mapping of texts to texts",
}


def _fits(value: Any, name: str) -> bool:
    if isinstance(value, bool):
        return name == "bool"
    if name == "list[str]":
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    if name == "list[class]":
        return isinstance(value, list) and all(isinstance(item, (str, int, float, bool)) for item in value)
    if name == "list[source]":
        return isinstance(value, list)
    if name == "dict[str, str]":
        return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())
    return name in _PYTHON and isinstance(value, _PYTHON[name])


def _mismatch(key: str, value: Any, types: list[str]) -> str:
    """What was expected of a value of another type, and how to write it."""
    expected = " or ".join(_WORDS[name] for name in types if name != "null")
    hint = ""
    if isinstance(value, str) and any(name.startswith("list") for name in types):
        hint = f"; write [{short(', '.join(part.strip() for part in value.split(',')))}]"
    elif isinstance(value, list) and len(value) == 1 and any(_fits(value[0], name) for name in types):
        hint = f"; write {key}: {short(value[0])}"
    elif isinstance(value, str) and "str" not in types and {"int", "float"} & set(types):
        hint = "; write it without quotes or units"
    return f"expected {expected}, got {shown(value) if isinstance(value, str) else short(value)}{hint}"


@functools.cache
def _trl_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("trl")
    except PackageNotFoundError:
        return "today"
