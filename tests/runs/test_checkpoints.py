"""Checkpoints: which can be trusted, and which are deleted."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finished import BARE, bare

from sft_recipes.runs.checkpoints import MANIFEST, best_damage, damage, newest_whole, rotate, seal
from sft_recipes.runs.run import Run

SINGLE = {"backend": "single", "processes": 1, "zero_stage": None}
ZERO2 = {"backend": "deepspeed", "processes": 2, "zero_stage": 2}
ZERO3 = ZERO2 | {"zero_stage": 3}
FSDP = {"backend": "fsdp", "processes": 2, "zero_stage": None}
CONTENT = bytes(range(256)) * 64
FILES = ["adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"]
RANKS = ["rng_state_0.pth", "rng_state_1.pth"]
SHARDS = [f"global_step5/zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in (0, 1)]
# What each topology leaves in a checkpoint, as far as a run cannot be continued without it.
LEFT = [
    (SINGLE, FILES),
    (SINGLE | {"fp16": True}, [*FILES, "scaler.pt"]),
    (SINGLE | {"backend": "ddp", "processes": 2}, [*FILES[:3], *RANKS]),
    (ZERO2, ["latest", "global_step5/mp_rank_00_model_states.pt", *SHARDS, *RANKS]),
    (
        ZERO2,
        ["latest", "global_step5/mp_rank_00_model_states.pt", *RANKS]
        + [name.replace("zero_", "bf16_zero_") for name in SHARDS],
    ),
    (ZERO3, ["latest", *SHARDS, *RANKS] + [name.replace("optim", "model") for name in SHARDS]),
    (FSDP, ["pytorch_model_fsdp.bin", "optimizer.bin", "scheduler.pt", *RANKS]),
    (FSDP, ["pytorch_model_fsdp_0/.metadata", "optimizer_0/.metadata", "scheduler.pt", *RANKS]),
]


def written(directory: Path, step: int | str = 5, names: list[str] = FILES, **state: Any) -> Path:
    """A checkpoint of these files and the trainer's state, not yet sealed."""
    path = directory / f"checkpoint-{step}"
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(CONTENT)
    callbacks: dict[str, Any] = {key: {} for key in ("Trainer", "Record", "TrainerControl")}
    state = {"global_step": step, "best_global_step": None, "stateful_callbacks": callbacks} | state
    (path / "trainer_state.json").write_text(json.dumps(state))
    return path


def checkpoint(directory: Path, step: int | str = 5, **state: Any) -> Path:
    path = written(directory, step, **state)
    seal(path, SINGLE)
    return path


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = bare("seen", tmp_path, topology=BARE["topology"] | SINGLE)
    run.recipe.write_text("load_best_model_at_end: true\n")
    return run


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def zero(path: Path) -> None:
    path.write_bytes(b"")


def zero_fill(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(255 - byte for byte in content[middle : middle + 64])
    path.write_bytes(content)


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def replace_by_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def test_a_sealed_checkpoint_is_whole_and_the_manifest_names_every_file(tmp_path: Path) -> None:
    path = checkpoint(tmp_path)
    assert damage(path, SINGLE) is None
    assert json.loads((path / MANIFEST).read_text())["files"].keys() == {*FILES, "trainer_state.json"}


@pytest.mark.promise(
    "damage", "each file of a checkpoint truncated, emptied, appended to, zeroed, flipped, deleted, made a folder"
)
@pytest.mark.parametrize("name", [*FILES, "trainer_state.json"])
@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (truncate, r"has \d+ bytes instead of \d+"),
        (zero, r"has 0 bytes instead of \d+"),
        (append, r"has \d+ bytes instead of \d+"),
        (zero_fill, "does not match its checksum"),
        (flip, "does not match its checksum"),
        (Path.unlink, "is missing"),
        (replace_by_directory, "is missing"),
    ],
)
def test_every_damage_to_every_file_is_found(
    name: str, harm: Callable[[Path], None], reason: str, tmp_path: Path
) -> None:
    path = checkpoint(tmp_path)
    harm(path / name)
    assert re.fullmatch(f"{re.escape(name)} {reason}", damage(path, SINGLE) or "")


@pytest.mark.promise("damage", "the manifest of a checkpoint damaged")
@pytest.mark.parametrize("harm", [truncate, zero, zero_fill, flip, replace_by_directory])
def test_a_damaged_manifest_is_no_manifest(harm: Callable[[Path], None], tmp_path: Path) -> None:
    path = checkpoint(tmp_path)
    harm(path / MANIFEST)
    if harm is truncate:
        truncate(path / MANIFEST)  # the first byte was only the newline
    assert damage(path, SINGLE) == "its manifest cannot be read"


@pytest.mark.promise("damage", "a manifest of another shape")
@pytest.mark.parametrize(
    "manifest",
    ["[]", "null", "3", "{}", '{"files": []}', '{"files": {"trainer_state.json": {}}}', '{"files": {"a": 1}}'],
)
def test_a_manifest_of_another_shape_is_no_manifest(manifest: str, tmp_path: Path) -> None:
    path = checkpoint(tmp_path)
    (path / MANIFEST).write_text(manifest)
    assert damage(path, SINGLE) is not None


@pytest.mark.promise("kill", "a checkpoint that was never sealed")
def test_a_checkpoint_without_manifest_was_never_finished(tmp_path: Path) -> None:
    path = checkpoint(tmp_path)
    (path / MANIFEST).unlink()
    assert damage(path, SINGLE) == "it was never finished (no manifest)"


def test_a_foreign_file_does_no_harm(tmp_path: Path) -> None:
    path = checkpoint(tmp_path)
    (path / "notes.txt").write_text("mine")
    assert damage(path, SINGLE) is None


@pytest.mark.promise(
    "damage", "a file that an exact continuation needs missing in checkpoint or manifest, by topology"
)
@pytest.mark.parametrize(("topology", "names"), LEFT)
def test_a_checkpoint_that_lacks_a_file_is_not_sealed_and_a_manifest_that_lacks_one_is_not_believed(
    topology: dict[str, Any], names: list[str], tmp_path: Path
) -> None:
    for name in (*names, "trainer_state.json"):
        path = written(tmp_path, names=names)
        content = (path / name).read_bytes()
        (path / name).unlink()
        with pytest.raises(RuntimeError, match=r" was not written, so no run"):
            seal(path, topology)
        (path / name).write_bytes(content)
        seal(path, topology)
        assert damage(path, topology) is None
        manifest = json.loads((path / MANIFEST).read_text())
        del manifest["files"][name]
        (path / MANIFEST).write_text(json.dumps(manifest))
        assert (damage(path, topology) or "").startswith("its manifest does not name ")
        shutil.rmtree(path)


def test_each_shard_of_a_model_is_needed(tmp_path: Path) -> None:
    path = written(tmp_path, names=["model-1.safetensors", "model-2.safetensors", *FILES[1:]])
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    seal(path, SINGLE)
    assert damage(path, SINGLE) is None
    (path / "model-2.safetensors").unlink()
    with pytest.raises(RuntimeError, match=r"model-2\.safetensors was not written"):
        seal(path, SINGLE)


@pytest.mark.promise("versions", "a checkpoint of an earlier version of ours")
def test_a_checkpoint_of_another_step_or_version_is_not_used(tmp_path: Path) -> None:
    shutil.copytree(checkpoint(tmp_path, 4), tmp_path / "checkpoint-9")
    assert damage(tmp_path / "checkpoint-9", SINGLE) == "it is a copy of checkpoint-4"
    old = checkpoint(tmp_path, 6, stateful_callbacks={"TrainerControl": {}})
    assert "lacks what an exact continuation needs" in (damage(old, SINGLE) or "")


def test_the_newest_checkpoint_is_the_one_with_the_largest_number(run: Run) -> None:
    for step in (9, 10, 2):
        checkpoint(run.directory, step)
    shutil.copytree(run.directory / "checkpoint-10", run.directory / "checkpoint-abc")
    shutil.copytree(run.directory / "checkpoint-10", run.directory / "checkpoint-11-copy")
    (run.directory / "checkpoint-99x").mkdir()
    assert newest_whole(run) == (run.directory / "checkpoint-10", [])


def test_each_newer_checkpoint_that_is_damaged_is_named_with_its_reason(run: Run) -> None:
    for step in (5, 10, 15, 20):
        checkpoint(run.directory, step)
    truncate(run.directory / "checkpoint-5" / "trainer_state.json")
    (run.directory / "checkpoint-15" / MANIFEST).unlink()
    flip(run.directory / "checkpoint-20" / "adapter_model.safetensors")
    found, skipped = newest_whole(run)
    assert found == run.directory / "checkpoint-10"
    assert skipped == [
        "checkpoint-20 is skipped: adapter_model.safetensors does not match its checksum",
        "checkpoint-15 is skipped: it was never finished (no manifest)",
    ]


def test_no_whole_checkpoint_is_none(run: Run) -> None:
    assert newest_whole(run) == (None, [])
    (run.directory / "checkpoint-3").mkdir()
    (run.directory / "checkpoint-4").write_text("a file")
    found, skipped = newest_whole(run)
    assert found is None
    assert [sentence.split()[0] for sentence in skipped] == ["checkpoint-4", "checkpoint-3"]


def test_the_best_is_looked_at_only_where_its_weights_would_be_loaded(run: Run) -> None:
    newest = checkpoint(run.directory, 8, best_global_step=4)
    assert "checkpoint-4 holds the best weights so far" in (best_damage(run, newest) or "")
    assert "it is not there" in (best_damage(run, newest) or "")
    checkpoint(run.directory, 4)
    assert best_damage(run, newest) is None
    truncate(run.directory / "checkpoint-4" / "optimizer.pt")
    run.recipe.write_text("load_best_model_at_end: false\n")
    assert best_damage(run, newest) is None
    assert best_damage(run, checkpoint(run.directory, 9)) is None


@pytest.mark.parametrize(
    ("limit", "best", "left"),
    [
        (None, None, [2, 4, 6, 8, 9]),
        (1, None, [8, 9]),
        (1, 2, [2, 8, 9]),
        (1, 8, [8, 9]),
        (2, 2, [2, 8, 9]),
        (2, None, [6, 8, 9]),
        (3, 4, [4, 6, 8, 9]),
        (9, 2, [2, 4, 6, 8, 9]),
    ],
)
def test_rotation_keeps_the_newest_and_the_best_and_nothing_unfinished(
    run: Run, limit: int | None, best: int | None, left: list[int]
) -> None:
    """Checkpoint 9 is of a launch that came further: it is damaged, and will be written anew."""
    for step in (2, 4, 6, 8, 9):
        checkpoint(run.directory, step)
    for step in (1, 7):
        written(run.directory, step)
    rotate(run.directory / "checkpoint-8", limit, best and run.directory / f"checkpoint-{best}")
    assert sorted(int(path.name[11:]) for path in run.directory.glob("checkpoint-*")) == left
