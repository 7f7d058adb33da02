"""What the keys of other tools' SFT files mean in ours: the tables of `importers.yaml`, and what no table can say.

A key's meaning is a function of its value and the whole file. `audit.py` applies it.
"""

import dataclasses
import functools
import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sft_recipes.errors import did_you_mean
from sft_recipes.recipes import schema, topology

File = Mapping[str, Any]
# Keys by which a file says how many processes compute one step.
PROCESSES = ("num_processes", "world_size")
# The tools whose files are read by TRL's own parser, where an empty key is a value.
OF_TRL = ("trl", "alignment-handbook")


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


@dataclasses.dataclass(frozen=True)
class Tool:
    """One of the tools, as `importers.yaml` describes it."""

    title: str
    signs: tuple[str, ...]
    defaults: Mapping[str, Any]
    keys: Mapping[str, Meaning]


def _translated(why: str = "", **values: Any) -> Translation:
    return Translation("translated", why, values)


def _cannot(instead: str, **values: Any) -> Translation:
    return Translation("inexpressible", _sentence(instead), values)


OFF = Translation("dropped", "off, as it is here")
DATA = schema.table("sft_recipes.interop", "importers.yaml")


def _sentence(words: str, **names: Any) -> str:
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


def _by_cases(cases: list[dict[str, Any]], value: Any, file: File) -> Translation:
    for case in cases:
        if ("is" not in case or _holds(case["is"], value)) and all_hold(case.get("if", {}), file):
            if "set" in case:
                return _translated(_sentence(case.get("why", "")), **_filled(case["set"], value))
            words = _sentence(case.get("drop") or case["cannot"], value=schema.as_yaml(value))
            return Translation("dropped" if "drop" in case else "inexpressible", words)
    return _cannot("expected true or false") if value else OFF


def _meanings(table: Mapping[str, Any]) -> dict[str, Meaning]:
    """The keys of a table, each with its cases."""
    cases: dict[str, list[dict[str, Any]]] = dict(table.get("cases", {}))
    for key, ours in table.get("renamed", {}).items():
        name, why = ours if isinstance(ours, list) else (ours, "")
        cases[key] = [{"set": {name: "$value"}, "why": why}]
    for key, values in table.get("switches", {}).items():
        cases[key] = [{"is": [True], "set": values}]
    for why, keys in table.get("dropped", {}).items():
        cases |= {key: [{"drop": why}] for key in keys}
    for instead, keys in table.get("inexpressible", {}).items():
        cases |= {key: [{"is": "any", "cannot": instead}] for key in keys}
    return {key: functools.partial(_by_cases, of_key) for key, of_key in cases.items()}


# What takes more than a table to say


def _per_epoch(kind: str) -> Meaning:
    """Axolotl's evals_per_epoch and saves_per_epoch: a share of all steps, as upstream's *_steps below 1 is."""

    def say(value: Any, file: File) -> Translation:
        if kind == "eval" and not (file.get("val_set_size") or file.get("test_datasets")):
            return Translation("dropped", _sentence("$nothing_held_out"))
        if value in (0, 1):
            return _translated(**{f"{kind}_strategy": "epoch" if value else "no"})
        epochs = file.get("num_epochs")
        whole = isinstance(value, int) and 0 < value <= 1000
        if not whole or not isinstance(epochs, (int, float)) or not epochs > 0:
            return _cannot(f"set {kind}_strategy: steps and {kind}_steps, below 1 a share of all steps")
        why = f"1 / ({value} an epoch x {epochs} epochs); below 1 it is a share of all steps"
        return _translated(why, **{f"{kind}_strategy": "steps", f"{kind}_steps": round(1 / (value * epochs), 6)})

    return say


def _dataset(entry: Any, names: Mapping[str, str], ignored: Sequence[str] = ()) -> Translation:
    """One entry of a list of datasets; `names` are the tool's words for path, config, split and files."""
    if not isinstance(entry, Mapping) or not isinstance(entry.get(names["path"]), str):
        return _cannot("its one dataset names no path; set train_file or dataset_name")
    path, files, split = entry[names["path"]], entry.get("data_files"), entry.get(names["split"])
    if isinstance(files, list) and len(files) == 1:
        files = files[0]
    if isinstance(split, str) and "[" in split:
        return _cannot("a slice of a split; $one_file")
    if isinstance(files, str) or path.endswith((".jsonl", ".json", ".csv", ".parquet")):
        values = {"train_file": files if isinstance(files, str) else path}
    elif files:
        return _cannot("several data files; $one_file")
    else:
        found = {"dataset_config": entry.get(names["config"]), "dataset_train_split": split}
        values = {"dataset_name": path} | {key: value for key, value in found.items() if value is not None}
    known = (*names.values(), "data_files", *ignored)
    if rest := [key for key, value in entry.items() if key not in known and value not in (None, False)]:
        return _cannot(f"taken over without {', '.join(rest)}; bring the rows into shape first", **values)
    return _translated(**values)


_NAMES = {"path": "path", "config": "name", "split": "split"}


def _trl_datasets(value: Any, file: File) -> Translation:
    if not isinstance(value, list) or len(value) != 1:
        return _cannot("several datasets; $one_file")
    return _dataset(value[0], _NAMES, ("columns",))


def _mixture(value: Any, file: File) -> Translation:
    """alignment-handbook's and open-r1's dataset_mixture."""
    datasets = value.get("datasets") if isinstance(value, Mapping) else None
    if not isinstance(datasets, list) or len(datasets) != 1 or not isinstance(datasets[0], Mapping):
        number = f"{len(datasets)} datasets; " if isinstance(datasets, list) else ""
        return _cannot(f"{number}prepare one file and set train_file")
    if datasets[0].get("weight") not in (None, 1):
        return _cannot("a share of the rows; $one_file")
    found = _dataset(datasets[0], {"path": "id", "config": "config", "split": "split"}, ("columns", "weight"))
    held = value.get("test_split_size")
    return found + TOOLS["trl"].keys["test_split_size"](held, file) if held else found


def _mixer(value: Any, file: File) -> Translation:
    """alignment-handbook's older dataset_mixer: shares by dataset."""
    if not isinstance(value, Mapping) or len(value) != 1:
        return _cannot("several datasets; $one_file")
    name, share = next(iter(value.items()))
    return _translated(dataset_name=name) if share == 1 else _cannot(f"{share} of the rows; $one_file")


def _splits(value: Any, file: File) -> Translation:
    names = value if isinstance(value, list) else [value]
    train = [name for name in names if isinstance(name, str) and "train" in name]
    test = [name for name in names if isinstance(name, str) and "test" in name]
    if len(train) != 1 or len(test) > 1 or len(train) + len(test) != len(names):
        return _cannot("set dataset_train_split and dataset_test_split, one each")
    return _translated(dataset_train_split=train[0], **({"dataset_test_split": test[0]} if test else {}))


def _configs(value: Any, file: File) -> Translation:
    if isinstance(value, list) and len(value) == 1:
        return _translated(dataset_config=value[0])
    return _cannot("several dataset configs; $one_file")


def _axolotl_datasets(value: Any, file: File) -> Translation:
    if not isinstance(value, list) or len(value) != 1 or not isinstance(value[0], Mapping):
        return _cannot("several datasets; $one_file")
    entry = value[0]
    found, kind = _dataset(entry, _NAMES, DATA["axolotl_dataset"]), entry.get("type")
    if kind == "alpaca":
        why = "Axolotl writes `### Instruction:` around alpaca rows, here they are turns of the chat template"
        rows = _translated(why, data_format="alpaca")
    elif kind == "chat_template" or (isinstance(kind, str) and kind.startswith("sharegpt")):
        openai = kind == "chat_template" and _openai_turns(entry)
        usual = "messages" if openai else "conversations"
        column = entry.get("field_messages", usual)
        rows = _translated(
            "" if openai else "turns of from and value",
            data_format="messages" if openai else "sharegpt",
            **({"data_columns": {usual: column}} if column != usual else {}),
        )
    else:
        instead = "bring the rows into messages, sharegpt, prompt_completion or alpaca, and set data_format"
        return _cannot(f"type {kind if isinstance(kind, str) else 'of its own'}: {instead}", **found.values)
    if entry.get("chat_template") not in (None, "tokenizer_default"):
        rows += _cannot("$own_template")
    return found + rows


def _openai_turns(entry: Mapping[str, Any]) -> bool:
    mapping = entry.get("message_property_mappings") or {}
    role = mapping.get("role") if isinstance(mapping, Mapping) else None
    return (entry.get("message_field_role") or role or "role") == "role"


def _test_datasets(value: Any, file: File) -> Translation:
    if not value:
        return OFF
    found = _axolotl_datasets(value, file)
    if found.outcome == "translated" and "train_file" in found.values:
        return _translated(validation_file=found.values["train_file"])
    return _cannot("bring the held-out rows into one file and set validation_file")


def _special_tokens(value: Any, file: File) -> Translation:
    if not value:
        return OFF
    if not isinstance(value, Mapping):
        return _cannot("write eos_token, if the tokenizer's own is not the right one")
    if others := [key for key, token in value.items() if key not in ("pad_token", "eos_token") and token is not None]:
        return _cannot(f"{', '.join(map(str, others))} would change the tokenizer; save one that has them")
    if value.get("eos_token") is not None:
        return _translated("pad_token: TRL takes the tokenizer's own", eos_token=value["eos_token"])
    return Translation("dropped", "TRL takes the tokenizer's own pad token, and no loss is computed on padding")


def _trackers(value: Any, file: File) -> Translation:
    """Axolotl switches a tracker on by naming its project."""
    chosen = [name for name, keys in DATA["trackers"].items() if any(file.get(key) for key in keys)]
    why = "names of projects come from the tracker's own environment"
    return _translated(why, report_to=chosen) if value else OFF


_OF_TRL: dict[str, Meaning] = {
    "datasets": _trl_datasets,
    "dataset_mixture": _mixture,
    "dataset_mixer": _mixer,
    "dataset_splits": _splits,
    "dataset_configs": _configs,
}
# The keys of each tool whose meaning is worked out below the tables.
CODE: dict[str, dict[str, Meaning]] = {
    "trl": _OF_TRL,
    "alignment-handbook": _OF_TRL,
    "axolotl": {
        "datasets": _axolotl_datasets,
        "test_datasets": _test_datasets,
        "special_tokens": _special_tokens,
        "evals_per_epoch": _per_epoch("eval"),
        "saves_per_epoch": _per_epoch("save"),
        **{key: _trackers for keys in DATA["trackers"].values() for key in keys},
    },
    "llama-factory": {},
}

TOOLS = {
    name: Tool(table["title"], tuple(table["signs"]), table["defaults"], _meanings(table) | CODE[name])
    for name, table in DATA["tools"].items()
}
_FAMILIES = _meanings({"dropped": DATA["families"]})
_RENAMED = _meanings(schema.DATA["replaced"])
_ACCELERATE = _meanings({"dropped": {"$accelerate": [*topology.KEYS, *PROCESSES]}})


def translate(tool: str, key: str, value: Any, file: File) -> Translation:
    """What one key says, by the tool's table or by ours."""
    known = key in schema.known()
    own: Meaning = lambda value, file: _translated(**{key: value})  # noqa: E731, one of several in a row
    meaning = (
        TOOLS[tool].keys.get(key)
        or (None if known else _ACCELERATE.get(key))
        or _RENAMED.get(key)
        or next((meaning for start, meaning in _FAMILIES.items() if key.startswith(start)), None)
        or (own if known else None)
    )
    refused = schema.REFUSED.get(key)
    if meaning is None and refused is None:
        names = {*schema.known(), *schema.RENAMED, *TOOLS[tool].keys}
        hint = did_you_mean(key, names, cutoff=0.75) or "; `sft-recipes keys` lists ours"
        return Translation("unknown", f"no key of {TOOLS[tool].title} or of a recipe{hint}")
    if value is None and not (known and tool in OF_TRL):
        return empty(tool)
    return meaning(value, file) if meaning else Translation("dropped", refused or "")


def empty(tool: str) -> Translation:
    """What a key without a value says."""
    return Translation("dropped", f"empty, so {TOOLS[tool].title}'s default")


def defaults(tool: str, file: File) -> dict[str, Any]:
    """What the tool takes for keys that the file does not set, where that decides what is learned and differs here."""
    found: dict[str, Any] = {}
    for key, default in TOOLS[tool].defaults.items():
        rule = default if isinstance(default, dict) else {"value": default}
        if file.get(key) is not None or not all_hold(rule.get("if", {}), file):
            continue
        if "twice" in rule:
            half = file.get(rule["twice"]) or TOOLS[tool].defaults[rule["twice"]]["value"]
            found |= {key: 2 * half} if isinstance(half, int) else {}
        else:
            found[key] = rule["value"]
    return found


def default_why(tool: str, key: str) -> str:
    """What a default means for the reader, beyond its value."""
    rule = TOOLS[tool].defaults[key]
    return rule.get("why", "") if isinstance(rule, dict) else ""
