"""Finished runs of the recipe `tiny`, each trained once for all tests and copied into the project of each test."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sft_recipes.runs.run import Run

# Float32 all through, so that what should be equal is.
FLOAT32 = {"load_in_4bit": False, "dtype": "float32", "bf16": False, "task": "classification"}

_kept: dict[str, Path] = {}


@pytest.fixture
def finished(
    project: Path, train_here: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Run]:
    """A finished run of that name, trained with these overrides."""

    def give(name: str = "tuned", **overrides: Any) -> Run:
        key = json.dumps([name, overrides])
        here = Path("runs") / name
        if key in _kept:
            shutil.copytree(_kept[key], here)
        else:
            train_here(name=name, **overrides)
            _kept[key] = tmp_path_factory.mktemp("kept") / name
            shutil.copytree(here, _kept[key])
        return Run(here)

    return give
