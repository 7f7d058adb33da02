"""Write src/sft_recipes/recipes/upstream.json: the fields of TRL's three dataclasses, their types and defaults.

The recipe loader reads the snapshot, so that it answers without importing torch. A test keeps the file equal to the
installed TRL. Run after an upgrade: `python scripts/snapshot_upstream.py`.
"""

import dataclasses
import enum
import json
import types
import typing
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parents[1] / "src" / "sft_recipes" / "recipes" / "upstream.json"


def type_names(hint: Any) -> list[str]:
    """JSON-side names of the values a type hint accepts: bool, int, float, str, null, dict, list, list[str]."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return sorted({name for arm in typing.get_args(hint) for name in type_names(arm)})
    if typing.get_origin(hint) is list:
        return ["list[str]"] if typing.get_args(hint) == (str,) else ["list"]
    if typing.get_origin(hint) is dict:
        return ["dict"]
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return ["str"]
    names = {bool: "bool", int: "int", float: "float", str: "str", dict: "dict", list: "list", type(None): "null"}
    return [names[hint]] if hint in names else ["dict"]


def choices(field: dataclasses.Field, hint: Any) -> list[str] | None:
    """Values the field is limited to, from its metadata or from the enum among its types."""
    if "choices" in field.metadata:
        return [str(choice) for choice in field.metadata["choices"]]
    for arm in typing.get_args(hint) or (hint,):
        if isinstance(arm, type) and issubclass(arm, enum.Enum):
            return sorted(member.value for member in arm)
    return None


def default(field: dataclasses.Field) -> Any:
    """The default as JSON holds it; a factory is called, an enum gives its value."""
    value = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
    if isinstance(value, enum.Enum):
        return value.value
    return value if isinstance(value, (bool, int, float, str, list, dict)) else None


def snapshot() -> dict[str, dict[str, Any]]:
    """Every field of ScriptArguments, SFTConfig and ModelConfig: its class, types, default, and choices if limited."""
    from trl import ModelConfig, ScriptArguments, SFTConfig

    fields: dict[str, dict[str, Any]] = {}
    for cls in (ModelConfig, ScriptArguments, SFTConfig):
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            if not field.init:
                continue
            entry = {"class": cls.__name__, "types": type_names(hints[field.name]), "default": default(field)}
            if limited := choices(field, hints[field.name]):
                entry["choices"] = limited
            fields[field.name] = entry
    return dict(sorted(fields.items()))


if __name__ == "__main__":
    TARGET.write_text(json.dumps(snapshot(), indent=1) + "\n", encoding="utf-8")
