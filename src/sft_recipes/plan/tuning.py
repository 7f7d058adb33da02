"""What `make tune` has measured to be the fastest execution, kept for the model, the hardware and the rows it was."""

import dataclasses
import datetime
import hashlib
import json
import os
import platform
from collections.abc import Collection
from itertools import starmap
from pathlib import Path
from typing import Any

from sft_recipes.data import survey
from sft_recipes.data.packing import Lengths
from sft_recipes.files import write_whole
from sft_recipes.plan import memory
from sft_recipes.plan.lint import Case
from sft_recipes.recipes import schema

CACHE = Path(".cache/execution")


def remember(case: Case, values: dict[str, Any], rate: float, before: float) -> Path:
    """Keep the values that were fastest for what `case` is, and give the file."""
    path = _file(case)
    path.parent.mkdir(parents=True, exist_ok=True)
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    found = {"of": _of(case), "values": values, "tokens_per_second": rate, "gain": rate / before, "measured": today}
    write_whole(path, json.dumps(found, indent=1) + "\n")
    return path


def remembered(case: Case, keys: Collection[str]) -> dict[str, Any] | None:
    """What `remember` has kept of these keys; None where nothing was measured, or the file cannot be read."""
    if case.model is None or not _file(case).is_file():
        return None
    try:
        found = json.loads(_file(case).read_text(encoding="utf-8"))
        usable = found["values"].keys() <= set(keys) and not any(starmap(schema.problem, found["values"].items()))
        return found if usable and found["of"] == _of(case) else None
    except (OSError, ValueError, KeyError, AttributeError):
        return None


def _of(case: Case) -> dict[str, Any]:
    """What a measurement holds for: model, what it is trained by, hardware, and lengths of the rows."""
    asked = dataclasses.asdict(memory.Setup.of(case.recipe, case.topology, 0, 0))
    for chosen in ("checkpointing", "selective", "optimizer", "attention"):
        del asked[chosen]
    keys = ("global_batch_size", "packing", "train_sampling_strategy", "max_length", "bf16", "fp16", "dtype")
    machine = f"{os.cpu_count()} cores of {platform.machine()}"
    if not case.topology.use_cpu:
        machine = case.gpu.name if case.gpu else ", ".join(gpu.name for gpu in case.gpus)
    lengths, _, _ = lengths_of(case) if case.data or case.recipe["max_length"] else ({}, 1.0, None)
    found = {
        "model": case.model and case.model.config,
        "asked": asked,
        "recipe": {key: case.recipe[key] for key in keys},
        "lengths": sorted(lengths.items()),
        "machine": machine,
    }
    return json.loads(json.dumps(found, default=str))


def _file(case: Case) -> Path:
    key = hashlib.sha256(json.dumps(_of(case), sort_keys=True).encode()).hexdigest()[:16]
    return CACHE / f"{key}.json"


def lengths_of(case: Case) -> tuple[Lengths, float, str | None]:
    """Training rows by length, the supervised share of their tokens, and what is taken for granted where unknown.

    Without rows that were counted by the model's own tokenizer, each is taken to have max_length tokens.
    """
    limit = case.recipe["max_length"]
    if case.data is None or case.data["tokens_are"] != "exact":
        why = "there are no rows here" if case.data is None else "the tokenizer is not at hand"
        return {}, 1.0, f"{why}, so that each row is taken to have {limit} tokens"
    split = case.data["splits"]["train"]
    counted = survey.at_length(split, limit)
    return survey.kept_lengths(split, limit), counted["supervised_tokens"] / (counted["tokens"] or 1), None
