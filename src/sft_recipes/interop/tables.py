"""What the tables of `importers.yaml` say: conditions on the keys of a file, and what a key then means in ours."""

import dataclasses
import functools
import re
import string
from collections.abc import Callable, Mapping
from typing import Any

from sft_recipes.recipes import schema

File = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Translation:
    """What a key of another tool says in our words: `values` for the recipe, and `why` they differ or are absent."""

    outcome: str
    """translated, dropped, inexpressible or unknown; a value that arrives unchanged under its own name is kept."""
    why: str = ""
    values: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __add__(self, other: "Translation") -> "Translation":
        """Both together, as far as both can be said."""
        outcome = "inexpressible" if "inexpressible" in (self.outcome, other.outcome) else self.outcome
        return Translation(outcome, "; ".join(filter(None, (self.why, other.why))), self.values | other.values)


Meaning = Callable[[Any, File], Translation]


def translated(why: str = "", **values: Any) -> Translation:
    """Something that the recipe says, by values of its own keys."""
    return Translation("translated", why, values)


def cannot(instead: str, **values: Any) -> Translation:
    """Something that a recipe cannot say, with what to do instead, and the values that it can."""
    return Translation("inexpressible", sentence(instead), values)


OFF = Translation("dropped", "off, as it is here")
DATA = schema.table("sft_recipes.interop", "importers.yaml")


def sentence(words: str, **names: Any) -> str:
    """Words with every $name replaced: a sentence that several keys share, or why a recipe may not have a key."""
    return string.Template(words).safe_substitute(schema.REFUSED | DATA["sentences"] | names)


def _holds(condition: Any, value: Any) -> bool:
    """Whether a value meets a condition of a table."""
    if condition == "any":
        return bool(value)
    if condition == "none":
        return not value
    if condition == "text":
        return isinstance(value, str)
    if isinstance(condition, list):
        # 1 is not true here, as in YAML.
        return any(value == item and isinstance(value, bool) == isinstance(item, bool) for item in condition)
    if "not" in condition:
        return not _holds(condition["not"], value)
    if "from" in condition:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and value >= condition["from"]
    items = value if isinstance(value, list) and value else [value]
    return all(isinstance(item, str) and re.search(condition["matches"], item) for item in items)


def all_hold(conditions: Mapping[str, Any], file: File) -> bool:
    """Whether the keys of a file, or of a recipe, meet the conditions of a table."""
    return all(
        key not in file if condition == "absent" else _holds(condition, file.get(key))
        for key, condition in conditions.items()
    )


def _filled(template: Any, value: Any) -> Any:
    """What a table sets, with the value of the file in its place."""
    if isinstance(template, dict):
        return {key: _filled(item, value) for key, item in template.items()}
    return value if template == "$value" else template


def by_cases(cases: list[dict[str, Any]], value: Any, file: File) -> Translation:
    """What a key means by the first of its cases that holds."""
    for case in cases:
        if ("is" not in case or _holds(case["is"], value)) and all_hold(case.get("if", {}), file):
            if "set" in case:
                return translated(sentence(case.get("why", "")), **_filled(case["set"], value))
            words = sentence(case.get("drop") or case["cannot"], value=schema.as_yaml(value))
            return Translation("dropped" if "drop" in case else "inexpressible", words)
    return cannot("expected true or false") if value else OFF


def meanings(table: Mapping[str, Any]) -> dict[str, Meaning]:
    """The keys of a table, each with its cases."""
    cases: dict[str, list[dict[str, Any]]] = dict(table.get("cases", {}))
    for key, ours in table.get("renamed", {}).items():
        name, why = ours if isinstance(ours, list) else (ours, "")
        cases[key] = [{"set": {name: "$value"}, "why": why}]
    cases |= {key: [{"set": {key: "$value"}}] for key in table.get("same", ())}
    for key, values in table.get("switches", {}).items():
        cases[key] = [{"is": [True], "set": values}]
    for why, keys in table.get("dropped", {}).items():
        cases |= {key: [{"drop": why}] for key in keys}
    for instead, keys in table.get("inexpressible", {}).items():
        cases |= {key: [{"is": "any", "cannot": instead}] for key in keys}
    return {key: functools.partial(by_cases, of_key) for key, of_key in cases.items()}
