"""What other tools' keys mean in ours, tool by tool: by the tables of `importers.yaml`, or by `meanings`.

`audit` applies it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from sft_recipes.errors import did_you_mean
from sft_recipes.interop.meanings import CODE, PLACES
from sft_recipes.interop.tables import DATA, File, Meaning, Translation, all_hold, meanings, sentence, translated
from sft_recipes.recipes import schema, topology

# Keys by which a file says how many processes compute one step.
PROCESSES = ("num_processes", "world_size")
# The tools whose files are read by TRL's own parser, where an empty key is a value.
OF_TRL = ("trl", "alignment-handbook")


@dataclasses.dataclass(frozen=True)
class Tool:
    """One of the tools, as `importers.yaml` describes it."""

    title: str
    signs: tuple[str, ...]
    defaults: Mapping[str, list[Mapping[str, Any]]]
    keys: Mapping[str, Meaning]
    families: Mapping[str, Meaning]
    refused: Sequence[Mapping[str, Any]]
    of: str | None = None  # the tool to whose keys it adds its signs
    nested: bool = False  # whether its keys are in sections, and written here as section.key
    accumulation: str = "gradient_accumulation_steps"  # its key for the micro-batches of one step


def _rules(default: Any) -> list[Mapping[str, Any]]:
    rules = default if isinstance(default, list) else [default]
    return [rule if isinstance(rule, dict) else {"value": rule} for rule in rules]


TOOLS = {
    name: Tool(
        table["title"],
        tuple(table["signs"]),
        {key: _rules(default) for key, default in table["defaults"].items()},
        meanings(table) | CODE.get(name, {}),
        meanings({"dropped": table.get("families", {})}),
        table.get("refused", []),
        table.get("of"),
        table.get("nested", False),
        table.get("accumulation", Tool.accumulation),
    )
    for name, table in DATA["tools"].items()
}
_FAMILIES = meanings({"dropped": DATA["families"]})
_RENAMED = meanings(schema.DATA["replaced"])
_ACCELERATE = meanings({"dropped": {"$accelerate": [*topology.KEYS, *PROCESSES]}})


def _meaning(tool: str, key: str) -> Meaning | None:
    """The meaning of a key: the tool's own, or, where its keys are flat, what every tool of the kind means by it."""
    own: Meaning = lambda value, file: translated(**{key: value})  # noqa: E731, one of several in a row
    tables, families = [TOOLS[tool].keys], dict(TOOLS[tool].families)
    known = key in schema.known() and not TOOLS[tool].nested
    if not TOOLS[tool].nested:
        tables += [PLACES, *([] if known else [_ACCELERATE]), _RENAMED]
        families |= _FAMILIES
    return (
        next((table[key] for table in tables if key in table), None)
        or next((meaning for start, meaning in families.items() if key.startswith(start)), None)
        or (own if known else None)
    )


def knows(tool: str, key: str) -> bool:
    """Whether a key is one of a tool, or one that every tool of its kind may have."""
    flat = not TOOLS[tool].nested
    section = not flat and any(name.startswith(f"{key}.") for name in TOOLS[tool].keys)
    together = key == TOOLS[tool].accumulation
    return _meaning(tool, key) is not None or (flat and key in schema.REFUSED) or section or together


def translate(tool: str, key: str, value: Any, file: File) -> Translation:
    """What one key says, by the tool's table or by ours."""
    if not knows(tool, key):
        names = {*TOOLS[tool].keys, *(() if TOOLS[tool].nested else {*schema.known(), *schema.RENAMED})}
        others = [each.title for name, each in TOOLS.items() if name != tool and key in (*each.keys, *each.signs)]
        hint = f"; {' and '.join(others)} would have it" if others else did_you_mean(key, names, cutoff=0.75)
        hint = hint or "; `sft-recipes keys` lists ours"
        return Translation("unknown", f"not known here as a key of {TOOLS[tool].title}, nor of a recipe{hint}")
    meaning = _meaning(tool, key)
    if value is None and not (key in schema.known() and tool in OF_TRL):
        return empty(tool)
    return meaning(value, file) if meaning else Translation("dropped", schema.REFUSED.get(key, ""))


def empty(tool: str) -> Translation:
    """What a key without a value says."""
    return Translation("dropped", f"empty, so {TOOLS[tool].title}'s default")


def defaults(tool: str, file: File, processes: int) -> dict[str, Any]:
    """What the tool takes for keys that the file does not set, where that decides what is learned and differs here."""
    found: dict[str, Any] = {}
    for key, rules in TOOLS[tool].defaults.items():
        rule = next((rule for rule in rules if all_hold(rule.get("if", {}), {**found, **file})), None)
        if rule is None or file.get(key) is not None:
            continue
        if "twice" in rule:
            half = file.get(rule["twice"]) or found.get(rule["twice"])
            found |= {key: 2 * half} if isinstance(half, int) else {}
        elif "rows" in rule:
            rows = {**found, **file}.get("per_device_train_batch_size")
            found |= {key: -(-rule["rows"] // (rows * processes))} if isinstance(rows, int) and rows > 0 else {}
        else:
            found[key] = rule["value"]
    return found


def default_why(tool: str, key: str, file: File) -> tuple[str, bool]:
    """What a default means for the reader, beyond its value, and whether it is assumed to hold."""
    whole = {other: value for other, value in defaults(tool, file, 1).items() if other != key} | dict(file)
    rule = next((rule for rule in TOOLS[tool].defaults[key] if all_hold(rule.get("if", {}), whole)), {})
    return rule.get("why") or rule.get("assumed", ""), "assumed" in rule


def refused(tool: str, file: File) -> str | None:
    """Why a file of the tool is none that can become a recipe."""
    rule = next((rule for rule in TOOLS[tool].refused if all_hold(rule["if"], file)), None)
    return sentence(rule["says"]) if rule else None
