"""What tells a base model from another of the same name, and what it costs to know it again."""

import os
from pathlib import Path

import pytest

from sft_recipes.models import base_model, fingerprint
from sft_recipes.models.fingerprint import differences

FILES = {"config.json": "{}", "tokenizer.json": "{}", "model.safetensors": "weights", "README.md": "words"}


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(fingerprint, "CACHE", tmp_path / "cache")
    directory = tmp_path / "model"
    directory.mkdir()
    for name, text in FILES.items():
        (directory / name).write_text(text)
    return directory


def test_a_directory_is_known_by_what_is_loaded_from_it(model: Path) -> None:
    before = fingerprint.fingerprint(str(model))
    assert before and before["commit"] is None
    assert sorted(before["files"]) == ["config.json", "model.safetensors", "tokenizer.json"]
    (model / "README.md").write_text("other words")
    # Beside safetensors, transformers reads no other weights.
    (model / "pytorch_model.bin").write_text("old")
    assert fingerprint.fingerprint(str(model)) == before
    (model / "model.safetensors").write_text("Weights")
    (model / "tokenizer.json").unlink()
    (model / "generation_config.json").write_text("{}")
    assert differences(before, fingerprint.fingerprint(str(model))) == [
        "generation_config.json was not there",
        "model.safetensors has other content",
        "tokenizer.json is missing",
    ]


def test_a_file_is_read_once_and_again_when_it_was_replaced(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    sha256 = fingerprint.sha256
    monkeypatch.setattr(fingerprint, "sha256", lambda path: read.append(path.name) or sha256(path))
    first = fingerprint.fingerprint(str(model))
    assert sorted(read) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert fingerprint.fingerprint(str(model)) == first and len(read) == 3
    # Of the same size, at the same time, under the same name.
    weights, stat = model / "model.safetensors", (model / "model.safetensors").stat()
    (model / "new").write_text("WEIGHTS")
    os.utime(model / "new", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    (model / "new").rename(weights)
    assert fingerprint.fingerprint(str(model)) != first
    assert read[3:] == ["model.safetensors"]


@pytest.mark.promise("same-run", "the cache of the base's hashes damaged")
def test_a_damaged_cache_of_hashes_is_made_anew(model: Path) -> None:
    first = fingerprint.fingerprint(str(model))
    for text in ("", "[1]", '{"x"'):
        (fingerprint.CACHE / "hashes.json").write_text(text)
        assert fingerprint.fingerprint(str(model)) == first


def test_a_snapshot_of_the_hub_is_known_without_reading_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "hub"
    repository = cache / "models--org--name"
    for commit, sha in (("a" * 40, "1" * 64), ("b" * 40, "2" * 64)):
        snapshot = repository / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (repository / "blobs").mkdir(exist_ok=True)
        for name, blob in (("config.json", "c" * 40), ("model.safetensors", sha)):
            (repository / "blobs" / blob).write_text("{}")
            (snapshot / name).symlink_to(f"../../blobs/{blob}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(fingerprint, "sha256", None)
    (repository / "refs").mkdir()
    found = {}
    for commit in ("a" * 40, "b" * 40):
        (repository / "refs" / "main").write_text(commit)
        found[commit] = fingerprint.fingerprint("org/name", "main")
    first, second = found.values()
    assert first == {"commit": "a" * 40, "files": {"config.json": "c" * 40, "model.safetensors": "1" * 64}}
    assert differences(first, second) == [f"commit {'a' * 40} -> {'b' * 40}"]
    # Weights that were fetched after the run had been described are no difference.
    assert differences({**first, "files": {"config.json": "c" * 40}}, first) == []
    assert fingerprint.fingerprint("org/other") is None and differences(None, first) == []


def test_a_model_that_is_nowhere_has_no_fingerprint() -> None:
    assert base_model.find_config("./nowhere") is None
    assert fingerprint.fingerprint("./nowhere") is None
