"""Where a recipe's model lies, and whether its weights are whole."""

import json
import os
import shutil
from pathlib import Path

import pytest

from sft_recipes.recipes import places


@pytest.fixture
def sharded(tmp_path: Path, tiny_model: Path) -> Path:
    """A model in two files of weights."""
    from safetensors.torch import load_file, save_file

    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    names, where = sorted(weights), {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, model / file)
        where |= dict.fromkeys(part, file)
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return model


def test_weights_that_are_whole_or_not_here_at_all(tiny_model: Path, sharded: Path, tmp_path: Path) -> None:
    assert places.damaged_weights(tiny_model) is None
    assert places.damaged_weights(sharded) is None
    # A config alone can be planned with.
    assert places.damaged_weights(tmp_path) is None


def test_a_shard_that_is_missing_or_cut_is_named(sharded: Path) -> None:
    second = sharded / "model-00002-of-00002.safetensors"
    for size in (second.stat().st_size - 1, 100, 4, 0):
        os.truncate(second, size)
        assert places.damaged_weights(sharded) == "'model-00002-of-00002.safetensors' cut off or damaged"
    second.unlink()
    missing = "'model-00002-of-00002.safetensors' missing of its 2 files of weights"
    assert places.damaged_weights(sharded) == missing
    index = sharded / "model.safetensors.index.json"
    for text in ("{", "[]", "{}", '{"weight_map": 3}'):
        index.write_text(text)
        assert places.damaged_weights(sharded) == "model.safetensors.index.json is no index of weights"
