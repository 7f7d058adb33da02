"""The run directory: names, whole files, the lock, and which checkpoint can be trusted."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from finished import BARE, bare

from sft_recipes.errors import InputError
from sft_recipes.files import write_whole
from sft_recipes.runs.run import MANIFEST, Run, damage, newest_whole, seal

BAD_NAMES = ["../up", "/tmp/x", "a/b", ".hidden", "", "x; touch pwned", "-rf", "a b", "a\n", "ü", "a" * 300]  # noqa: S108


def empty(directory: Path) -> dict[str, str]:
    """No file for a new run."""
    return {}


# Names


def test_a_run_is_a_new_directory_with_the_name_that_was_asked_for(tmp_path: Path) -> None:
    run = Run.create("first", "default", empty, tmp_path / "runs")
    assert (run.name, run.directory) == ("first", tmp_path / "runs" / "first")
    assert run.directory.is_dir()


def test_without_a_name_a_run_is_named_after_recipe_and_time(tmp_path: Path) -> None:
    stem, day, time = Run.create(None, "quick_test", empty, tmp_path).name.rsplit("-", 2)
    assert stem == "quick_test"
    assert (len(day), len(time), (day + time).isdigit()) == (8, 6, True)


def test_an_existing_run_is_never_overwritten(tmp_path: Path) -> None:
    kept = Run.create("first", "default", empty, tmp_path).directory / "loss.png"
    kept.write_text("old")
    with pytest.raises(InputError, match=r"never overwritten; choose another NAME=.* make resume NAME=first"):
        Run.create("first", "default", empty, tmp_path)
    assert kept.read_text() == "old"


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_bad_name_creates_and_opens_nothing(name: str, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    with pytest.raises(InputError):
        Run.create(name, "default", empty, runs)
    with pytest.raises(InputError):
        Run.open(name, runs)
    assert list(tmp_path.rglob("*")) == [runs]


def test_opening_an_unknown_run_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no run 'x' in .*; there are none"):
        Run.open("x", tmp_path)
    for name in ("b", "a"):
        bare(name, tmp_path)
    (tmp_path / "no_run").mkdir()
    with pytest.raises(InputError, match=r"no run 'x' in .*; there are a, b$"):
        Run.open("x", tmp_path)
    assert Run.open("a", tmp_path).directory == tmp_path / "a"


# Files


def test_facts_are_written_and_updated_and_no_temporary_is_left(tmp_path: Path) -> None:
    run = bare("first", tmp_path)
    run.update(status="finished", measured={"step": 5})
    facts = run.facts()
    assert (facts.pop("status"), facts.pop("measured")) == ("finished", {"step": 5})
    (event,) = facts.pop("journal")
    assert (event["status"], event["step"]) == ("finished", 5)
    assert facts == {key: value for key, value in (BARE | {"name": "first"}).items() if key != "status"}
    assert sorted(path.name for path in run.directory.iterdir()) == [".reserve", "run.json"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_whole(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "new \ud800")
    assert path.read_text() == "old"


def test_a_run_is_locked_until_the_process_that_trains_it_ends_even_by_a_kill(tmp_path: Path) -> None:
    run = Run.create("first", "default", empty, tmp_path)
    code = (
        "import sys, time; from pathlib import Path; from sft_recipes.runs.run import Run\n"
        "with Run(Path(sys.argv[1])).locked():\n    print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(run.directory)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="is in use by another process"), run.locked():
            pass
    finally:
        holder.kill()
        holder.wait()
    with run.locked(), pytest.raises(InputError, match="another process"), run.locked():
        pass
    with run.locked():
        pass


# Checkpoints


FILES = {
    "adapter_model.safetensors": bytes(range(256)) * 64,
    "global_step5/optimizer.pt": b"optimizer" * 500,
    "trainer_state.json": b'{"global_step": 5}',
}


def checkpoint(directory: Path, step: int | str = 5) -> Path:
    path = directory / f"checkpoint-{step}"
    for name, content in FILES.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    seal(path)
    return path


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
    assert damage(path) is None
    assert json.loads((path / MANIFEST).read_text())["files"].keys() == FILES.keys()
    assert {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()} == {*FILES, MANIFEST}


@pytest.mark.parametrize("name", FILES)
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
    assert re.fullmatch(f"{re.escape(name)} {reason}", damage(path) or "")


@pytest.mark.parametrize("harm", [truncate, zero, zero_fill, flip, replace_by_directory])
def test_a_damaged_manifest_is_no_manifest(harm: Callable[[Path], None], tmp_path: Path) -> None:
    path = checkpoint(tmp_path)
    harm(path / MANIFEST)
    if harm is truncate:
        truncate(path / MANIFEST)  # the first byte was only the newline
    assert damage(path) == "its manifest cannot be read"


@pytest.mark.parametrize(
    "manifest",
    ["[]", "null", "3", "{}", '{"files": []}', '{"files": {"trainer_state.json": {}}}', '{"files": {"a": 1}}'],
)
def test_a_manifest_of_another_shape_is_no_manifest(manifest: str, tmp_path: Path) -> None:
    path = checkpoint(tmp_path)
    (path / MANIFEST).write_text(manifest)
    assert damage(path) is not None


def test_a_checkpoint_without_manifest_was_never_finished(tmp_path: Path) -> None:
    path = checkpoint(tmp_path)
    (path / MANIFEST).unlink()
    assert damage(path) == "it was never finished (no manifest)"


def test_a_foreign_file_does_no_harm(tmp_path: Path) -> None:
    path = checkpoint(tmp_path)
    (path / "notes.txt").write_text("mine")
    assert damage(path) is None


def test_the_newest_checkpoint_is_the_one_with_the_largest_number(tmp_path: Path) -> None:
    for step in (9, 10, 2):
        checkpoint(tmp_path, step)
    checkpoint(tmp_path, "abc")
    checkpoint(tmp_path, "11-copy")
    (tmp_path / "checkpoint-99x").mkdir()
    assert newest_whole(tmp_path) == (tmp_path / "checkpoint-10", [])


def test_each_newer_checkpoint_that_is_damaged_is_named_with_its_reason(tmp_path: Path) -> None:
    for step in (5, 10, 15, 20):
        checkpoint(tmp_path, step)
    truncate(tmp_path / "checkpoint-5" / "trainer_state.json")
    (tmp_path / "checkpoint-15" / MANIFEST).unlink()
    flip(tmp_path / "checkpoint-20" / "adapter_model.safetensors")
    found, skipped = newest_whole(tmp_path)
    assert found == tmp_path / "checkpoint-10"
    assert skipped == [
        "checkpoint-20 is skipped: adapter_model.safetensors does not match its checksum",
        "checkpoint-15 is skipped: it was never finished (no manifest)",
    ]


def test_no_whole_checkpoint_is_none(tmp_path: Path) -> None:
    assert newest_whole(tmp_path) == (None, [])
    assert newest_whole(tmp_path / "absent") == (None, [])
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-4").write_text("a file")
    found, skipped = newest_whole(tmp_path)
    assert found is None
    assert [sentence.split()[0] for sentence in skipped] == ["checkpoint-4", "checkpoint-3"]
