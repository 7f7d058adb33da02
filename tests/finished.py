"""Finished runs of the recipe `tiny`, each trained once for all tests and copied into the project of each test."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import MadeOnce

from sft_recipes.runs.run import Run

# Float32 all through, so that what should be equal is.
FLOAT32 = {"load_in_4bit": False, "dtype": "float32", "bf16": False, "task": "classification"}
# As the default recipe computes, for what follows from it: the precision that is merged into.
BFLOAT16 = {"dtype": "bfloat16", "bf16": True}


# The least that a run.json holds.
BARE: dict[str, Any] = {
    "schema": 1,
    "name": "bare",
    "recipe": "tiny",
    "status": "running",
    "own": {},
    "topology": {"name": "cpu", "backend": "single", "processes": 1, "zero_stage": None, "use_cpu": True},
    "data": {
        "source": {},
        "fingerprint": "f",
        "format": "alpaca",
        "conversational": True,
        "splits": {"train": {"source": "train.jsonl", "sha256": "f", "rows": 1, "prepared_rows": 1}},
    },
}


def bare(name: str, runs: Path = Path("runs"), **facts: Any) -> Run:
    """A run that has only begun, with these facts."""
    return Run.create(name, "tiny", lambda _: {"run.json": json.dumps({**BARE, "name": name, **facts})}, runs)


def restate(run: Run, **facts: Any) -> None:
    """Set facts of run.json as no run would, past the transitions of its status; None takes one away."""
    path = run.directory / "run.json"
    changed = {**json.loads(path.read_text()), **facts}
    path.write_text(json.dumps({key: value for key, value in changed.items() if facts.get(key, 0) is not None}))


@pytest.fixture
def finished(project: Path, train_here: Callable[..., Run], made_once: MadeOnce) -> Callable[..., Run]:
    """A finished run of that name, trained with these overrides."""

    def give(name: str = "tuned", **overrides: Any) -> Run:
        here = Path("runs") / name

        def train(directory: Path) -> None:
            train_here(name=name, **overrides)
            here.rename(directory)

        key = hashlib.sha256(json.dumps([name, overrides]).encode()).hexdigest()[:16]
        shutil.copytree(made_once(f"run-{key}", train), here)
        return Run(here)

    return give
