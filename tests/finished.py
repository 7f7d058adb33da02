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
