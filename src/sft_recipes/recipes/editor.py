"""The keys of recipes, models, accelerate configs and sites as JSON Schemas, by which editors complete them."""

import copy
import json
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

from sft_recipes.files import write_whole
from sft_recipes.recipes import clusters, schema, sources, topology

KINDS = ("recipe", "model", "accelerate", "cluster")
# Beside the recipes, which name it in a line that editors with yaml-language-server read.
FILE = ".schema.json"
LINE = f"# yaml-language-server: $schema={FILE}"
# Its `integer` is also a number that is written 1.0, as our own `int` is not; the loader says so.
_TYPES: dict[str, dict[str, Any]] = {
    "bool": {"type": "boolean"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "str": {"type": "string"},
    "null": {"type": "null"},
    "dict": {"type": "object"},
    "list": {"type": "array"},
    "list[str]": {"type": "array", "items": {"type": "string"}},
    "list[class]": {"type": "array", "items": {"type": ["string", "number", "boolean"]}},
    "list[source]": {
        "type": "array",
        "items": {
            "anyOf": [
                {"type": "string"},
                {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        **{name: {"type": "string"} for name in sources.TEXTS},
                        "data_columns": {"type": "object", "additionalProperties": {"type": "string"}},
                        "weight": {"type": "number", "exclusiveMinimum": 0},
                        "rows": {"type": "integer", "minimum": 1},
                    },
                },
            ]
        },
    },
    "dict[str, str]": {"type": "object", "additionalProperties": {"type": "string"}},
}
_LIMITS = {"from": "minimum", "to": "maximum", "above": "exclusiveMinimum", "below": "exclusiveMaximum"}


def of(kind: str) -> dict[str, Any]:
    """The JSON Schema of a kind of `KINDS`: a recipe, the facts of a model, an accelerate config or a site."""
    if kind == "accelerate":
        sections = {key: _object(_chosen(entry)) for key, entry in topology.SECTIONS.items()}
        return _schema("An accelerate config", _object(_chosen(topology.KEYS) | sections))
    if kind == "cluster":
        content = _object({key: _of_a_site(entry) for key, entry in clusters.KEYS.items()})
        return _schema("A site of clusters/", content | {"required": ["engine"]})
    if kind == "model":
        needed = {"required": ["description", "model_name_or_path", "model_revision"]}
        return _schema("A model of models/", _object(_keys(schema.DATA["of_a_model"])) | needed)
    return _schema("A recipe of sft-recipes", _object(_keys(schema.known())))


def write(directory: Path) -> None:
    """Write the recipes' schema beside them, for the editor of whoever writes one."""
    write_whole(directory / FILE, json.dumps(of("recipe"), indent=1) + "\n")


def _schema(title: str, content: dict[str, Any]) -> dict[str, Any]:
    return {"$schema": "http://json-schema.org/draft-07/schema#", "title": title, **content}


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _chosen(keys: dict[str, list[Any]]) -> dict[str, Any]:
    return {key: {"enum": choices} if choices else {} for key, choices in keys.items()}


def _of_a_site(entry: dict[str, Any]) -> dict[str, Any]:
    kind = copy.deepcopy(_TYPES["float" if "float" in entry["types"] else entry["types"][0]])
    kind |= {_LIMITS[word]: entry[word] for word in ("from", "to") if word in entry}
    if "choices" in entry:
        kind["enum"] = entry["choices"]
    if "pattern" in entry:
        kind.get("items", kind)["pattern"] = f"^(?:{entry['pattern']})$"
    return {**kind, "description": entry["means"]}


def _keys(names: Iterable[str]) -> dict[str, Any]:
    return {key: _property(key, schema.known()[key]) for key in names}


def _property(key: str, entry: dict[str, Any]) -> dict[str, Any]:
    kinds = []
    for name in entry["types"]:
        kind = dict(_TYPES[name])
        if name in ("int", "float"):
            kind |= {_LIMITS[word]: limit for word, limit in schema.RANGES.get(key, {}).items() if word in _LIMITS}
        if entry.get("choices") and name == "str":
            kind = {"enum": entry["choices"]}
        elif entry.get("choices") and name == "list[str]":
            kind["items"] = {"enum": entry["choices"]}
        kinds.append(kind)
    if "or" in schema.RANGES.get(key, {}):
        kinds.append({"const": schema.RANGES[key]["or"]})
    kind = kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
    return {**kind, "description": _meaning(key, entry), "default": entry["default"]}


def _meaning(key: str, entry: dict[str, Any]) -> str:
    """What our evidence says of a key, or upstream's own help."""
    if not resources.files("sft_recipes.recipes").joinpath("evidence", f"{key}.yaml").is_file():
        return entry["help"]
    found = schema.table("sft_recipes.recipes", f"evidence/{key}.yaml")
    usual = f" Usual: {found['range']}." if "range" in found else ""
    return f"{' '.join(found['what'].split())}{usual} `sft-recipes why {key}` says more."
