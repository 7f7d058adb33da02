"""Write what the recipe loader knows of upstream, so that it answers without importing torch.

src/sft_recipes/recipes/upstream.json has the fields of TRL's three dataclasses, their types, defaults and help;
arguments.json beside it the arguments of each learning rate schedule, and the methods of quantisation. A test keeps
both equal to what is installed. Run after an upgrade: `python scripts/snapshot_upstream.py`.
"""

import dataclasses
import enum
import inspect
import json
import types
import typing
from pathlib import Path
from typing import Any

RECIPES = Path(__file__).parents[1] / "src" / "sft_recipes" / "recipes"
# What transformers' `get_scheduler` hands over itself, and what resuming restores.
NOT_GIVEN = {"self", "optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}


def type_names(hint: Any) -> list[str]:
    """JSON-side names of the values a type hint accepts: bool, int, float, str, null, dict, list, list[str]."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return sorted({name for arm in typing.get_args(hint) for name in type_names(arm)})
    if typing.get_origin(hint) is list:
        return ["list[str]"] if typing.get_args(hint) == (str,) else ["list"]
    if typing.get_origin(hint) is typing.Literal:
        return sorted({name for value in typing.get_args(hint) for name in type_names(type(value))})
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
    """Every field of ScriptArguments, SFTConfig and ModelConfig: class, types, default, help, and any choices."""
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
            entry["help"] = " ".join(field.metadata["help"].split())
            fields[field.name] = entry
    return dict(sorted(fields.items()))


def arguments() -> dict[str, Any]:
    """The arguments of each schedule, with types and whether they are required, and the methods of quantisation."""
    import torch
    from transformers import optimization
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    schedules: dict[str, Any] = {kind.value: made for kind, made in optimization.TYPE_TO_SCHEDULER_FUNCTION.items()}
    # Their functions hand everything on to a class.
    schedules["reduce_lr_on_plateau"] = torch.optim.lr_scheduler.ReduceLROnPlateau.__init__
    schedules["greedy"] = optimization.GreedyLR.__init__
    found: dict[str, Any] = {}
    for name, made in sorted(schedules.items()):
        hints = typing.get_type_hints(made)
        found[name] = {
            key: {
                # A list has one value for each of the optimizer's groups, which no recipe knows.
                "types": [n for n in type_names(hints.get(key, type(each.default))) if n != "list"],
                "required": each.default is inspect.Parameter.empty,
            }
            for key, each in inspect.signature(made).parameters.items()
            if key not in NOT_GIVEN
        }
    return {"schedules": found, "quantisation": sorted(AUTO_QUANTIZATION_CONFIG_MAPPING)}


if __name__ == "__main__":
    for name, taken in {"upstream.json": snapshot(), "arguments.json": arguments()}.items():
        (RECIPES / name).write_text(json.dumps(taken, indent=1) + "\n", encoding="utf-8")
