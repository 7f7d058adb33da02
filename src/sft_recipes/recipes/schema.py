"""What a recipe may say: the keys of TRL, the few of our own, and what to write instead of everything else.

TRL's fields are read from `upstream.json`, a snapshot that a test keeps equal to the installed TRL, because importing
TRL takes ten seconds and a misspelt key deserves an answer at once. Everything else is in `keys.yaml`.
"""

import functools
import json
import math
import string
from collections.abc import Mapping
from importlib import resources
from typing import Any

import yaml

from sft_recipes.errors import did_you_mean, shown


def table(package: str, name: str) -> dict[str, Any]:
    """A YAML file of the package; libyaml reads it in milliseconds, where PyYAML takes a tenth of a second."""
    text = resources.files(package).joinpath(name).read_text(encoding="utf-8")
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506, both are safe loaders


DATA = table("sft_recipes.recipes", "keys.yaml")
# Fields of TRL that a recipe may not set, with the reason of each.
REFUSED: dict[str, str] = {key: why for why, keys in DATA["refused"].items() for key in keys}
# Those of them that follow from topology and run, so that a resolved recipe holds them.
DERIVED = frozenset(DATA["derived"])
RANGES: dict[str, dict[str, Any]] = {key: limits for limits in DATA["ranges"] for key in limits["keys"]}


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
    text = resources.files("sft_recipes.recipes").joinpath("upstream.json").read_text(encoding="utf-8")
    found = json.loads(text)
    for key, choices in DATA["upstream_choices"].items():
        found[key]["choices"] = choices
    return found


@functools.cache
def own() -> dict[str, dict[str, Any]]:
    """Our own keys in the same form as `upstream`."""
    return {key: {"class": "RecipeArguments", **entry} for key, entry in DATA["own"].items()}


@functools.cache
def known() -> dict[str, dict[str, Any]]:
    """Every key a recipe may set."""
    return {**{key: entry for key, entry in upstream().items() if key not in REFUSED | RENAMED}, **own()}


def problem(key: str, value: Any, *, resolved: bool = False) -> str | None:
    """What is wrong with `key: value`, with what to write instead; None if nothing is.

    Args:
        key: of a recipe.
        value: as it was read.
        resolved: whether the recipe is a resolved one, which also holds what follows from topology and run.
    """
    if key in RENAMED:
        instead = string.Template(RENAMED[key]).safe_substitute(value=as_yaml(value))
        return f"{key} is not a key of TRL {_trl_version()}: {instead}"
    derived = resolved and key in DERIVED
    if key in REFUSED and not derived:
        return f"{key} does not belong in a recipe: {REFUSED[key]}"
    entry = upstream()[key] if derived else known().get(key)
    if entry is None:
        if isinstance(value, dict):
            return f"{key}: no such key; a recipe is flat, so move {', '.join(map(str, value))} to the top level"
        return f"{key}: no such key{did_you_mean(key, known()) or '; `sft-recipes keys` lists them'}"
    if not any(_fits(value, name) for name in entry["types"]):
        return f"{key}: {_mismatch(key, value, entry['types'])}"
    limited = entry.get("choices")
    if limited and value is not None:
        for item in value if isinstance(value, list) else [value]:
            if item not in limited:
                names = ", ".join(map(str, limited))
                return f"{key}: {as_yaml(item)} is not one of {names}{did_you_mean(str(item), map(str, limited))}"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{key}: {as_yaml(value)} is out of range; it must be finite"
    if key in RANGES and isinstance(value, (int, float)) and not isinstance(value, bool):
        limits = RANGES[key]
        within = limits.get("from", -math.inf) <= value <= limits.get("to", math.inf)
        within = within and limits.get("above", -math.inf) < value < limits.get("below", math.inf)
        if not within and value != limits.get("or"):
            return f"{key}: {as_yaml(value)} is out of range; it must be {limits['says']}"
    return None


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
}


def _fits(value: Any, name: str) -> bool:
    if isinstance(value, bool):
        return name == "bool"
    if name == "list[str]":
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    return name in _PYTHON and isinstance(value, _PYTHON[name])


def _mismatch(key: str, value: Any, types: list[str]) -> str:
    """What was expected of a value of another type, and how to write it."""
    expected = " or ".join(_WORDS[name] for name in types if name != "null")
    hint = ""
    if isinstance(value, str) and any(name.startswith("list") for name in types):
        hint = f"; write [{', '.join(part.strip() for part in value.split(','))}]"
    elif isinstance(value, list) and len(value) == 1 and not isinstance(value[0], list):
        hint = f"; write {key}: {as_yaml(value[0])}"
    elif isinstance(value, str) and "str" not in types and {"int", "float"} & set(types):
        hint = "; write it without quotes or units"
    return f"expected {expected}, got {shown(value) if isinstance(value, str) else as_yaml(value)}{hint}"


@functools.cache
def _trl_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("trl")
    except PackageNotFoundError:
        return "today"
