"""The result files of the benchmark, read again."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from sft_recipes.benchmark import RESULTS
from sft_recipes.benchmark.program import SCHEMA
from sft_recipes.benchmark.scale import SECTIONS


def newest(directory: Path = RESULTS, sections: Collection[str] = SECTIONS) -> dict[str, dict[str, Any]]:
    """The newest finished result of each machine by its file's name, those of GPUs first.

    Results of another version of the schema are left out, as are those that were interrupted, and those that measured
    none of `sections`.
    """
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for path in sorted(directory.glob("*.json"), key=lambda path: (path.name[:10], len(path.name), path.name)):
        facts = json.loads(path.read_text(encoding="utf-8"))
        if facts.get("schema") == SCHEMA and facts["status"] == "complete" and {*sections} & facts["sections"].keys():
            found[facts["hardware"]["name"]] = (path.name, facts)
    ordered = sorted(found.values(), key=lambda each: (each[1]["hardware"]["kind"] != "gpu", each[0]))
    return dict(ordered)


def measurements(facts: dict[str, Any], section: str) -> dict[str, dict[str, Any]]:
    """What a section of a result measured, by name; empty where it did not run."""
    return {each["name"]: each for each in facts["sections"].get(section, {}).get("measurements", [])}
