"""What a run may become, what it writes down of that, and what is left where nothing can be written."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from finished import bare

from sft_recipes.cli import main
from sft_recipes.errors import InputError
from sft_recipes.launch import launch, processes
from sft_recipes.plan import job as jobs
from sft_recipes.runs.facts import TRANSITIONS
from sft_recipes.runs.run import MANIFEST, unfinished

Facts = dict[str, Any]
ALLOWED = [(was, becomes) for was, those in TRANSITIONS.items() for becomes in those]


@pytest.mark.parametrize("was", [status for status in TRANSITIONS if status])
@pytest.mark.parametrize("becomes", [status for status in TRANSITIONS if status])
def test_a_run_becomes_what_it_may_and_nothing_else(was: str, becomes: str, tmp_path: Path) -> None:
    run = bare("first", tmp_path, status=was)
    if was == becomes or (was, becomes) in ALLOWED:
        run.update(status=becomes)
        assert run.facts()["status"] == becomes
    else:
        with pytest.raises(RuntimeError, match=f"first is {was} and cannot become {becomes}"):
            run.update(status=becomes)
        assert run.facts()["status"] == was


def test_a_finished_run_stays_finished() -> None:
    assert not [becomes for was, becomes in ALLOWED if was == "finished"]


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"status": "interrupted"}, "is interrupted, not finished; finish it first: make resume NAME=first"),
        ({"status": "failed"}, "is failed, not finished; finish it first: make resume NAME=first"),
        ({"status": "failed", "diverged": True}, "has diverged and left nothing to use; start a new run with other"),
        ({"status": "running"}, "was killed before it had finished; finish it first: make resume NAME=first"),
    ],
)
def test_whoever_needs_a_finished_run_is_told_how_to_get_one(facts: Facts, expected: str, tmp_path: Path) -> None:
    run = bare("first", tmp_path, **facts)
    assert f"{run.directory} {expected}" in (unfinished(run) or "")
    with run.locked():
        waits = unfinished(run) == f"{run.directory} is being trained; wait for it"
    assert waits == (facts["status"] == "running")


def test_the_journal_tells_how_far_a_run_was_whenever_it_changed(project: Path) -> None:
    run = launch.create(jobs.check("tiny"), "told")
    run.log.write_text('{"step": 3, "loss": 1.0}\n')
    run.update(status="failed", error="no memory")
    run.update(status="running", resumed=[{"at": "now", "step": 2}])
    run.update(status="interrupted", measured={"step": 5})
    run.update(seconds=1.5)
    events = [(event["status"], event["step"]) for event in run.facts()["journal"]]
    assert events == [("running", 0), ("failed", 3), ("running", 2), ("interrupted", 5)]


@pytest.fixture
def small_disk(project: Path) -> Iterator[Path]:
    """The project's runs/ on a disk of its own, of half a megabyte."""
    runs = project / "runs"
    runs.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(runs)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no file system may be mounted here")
    yield runs
    subprocess.run(["umount", "--lazy", str(runs)], check=True)


def fill(path: Path) -> None:
    """Write until the disk is full."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass


def full(runs: Path) -> None:
    fill(runs / "ballast")


def read_only(runs: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(runs)], check=True)


@pytest.mark.promise("disk", "the disk full or read-only when a run is made")
@pytest.mark.parametrize(("harm", "reason"), [(full, "No space left on device"), (read_only, "Read-only file system")])
def test_a_run_that_cannot_be_made_leaves_nothing(
    small_disk: Path, harm: Callable[[Path], None], reason: str, capsys: pytest.CaptureFixture
) -> None:
    harm(small_disk)
    before = sorted(small_disk.iterdir())
    assert main(["train", "tiny", "--name", "new"]) == 2
    assert f"error: runs/new cannot be made: {reason}; nothing is left of it" in capsys.readouterr().err
    assert sorted(small_disk.iterdir()) == before


@pytest.mark.parametrize("kind", ["a file", "a link to nothing"])
def test_runs_that_is_no_folder_is_one_message(project: Path, kind: str, capsys: pytest.CaptureFixture) -> None:
    runs = project / "runs"
    runs.write_text("mine") if kind == "a file" else runs.symlink_to("nowhere")
    assert main(["train", "tiny", "--name", "new"]) == 2
    assert "error: runs/new cannot be made: File exists; nothing is left of it" in capsys.readouterr().err
    assert not (project / "nowhere").exists()


def test_a_name_that_is_a_link_to_nothing_is_taken(project: Path, capsys: pytest.CaptureFixture) -> None:
    (project / "runs").mkdir()
    (project / "runs" / "new").symlink_to("nowhere")
    assert main(["train", "tiny", "--name", "new"]) == 2
    assert "runs/new exists and is never overwritten" in capsys.readouterr().err


@pytest.mark.promise("disk", "the disk full when a run fails")
def test_on_a_full_disk_a_run_still_says_that_it_failed(small_disk: Path) -> None:
    run = bare("full")
    for name in ("checkpoint-1", "checkpoint-2"):
        (run.directory / name).mkdir()
    (run.directory / "checkpoint-1" / MANIFEST).write_text("{}")
    fill(run.directory / "checkpoint-2" / "optimizer.pt")
    run.update(status="failed", error="RuntimeError: unexpected pos 24384 vs 24276")
    facts = run.facts()
    assert facts["status"] == "failed"
    assert facts["error"] == (
        "no space was left on the disk of runs/full; make room: RuntimeError: unexpected pos 24384 vs 24276"
    )
    # What could not be trusted made room; what is whole is kept.
    assert sorted(path.name for path in run.directory.iterdir()) == ["checkpoint-1", "run.json"]


@pytest.mark.promise("disk", "the disk full to the last byte, and nothing that could make room")
def test_where_nothing_makes_room_the_old_facts_stay(small_disk: Path) -> None:
    run = bare("full")
    run.reserve.unlink()
    full(small_disk)
    before = (run.directory / "run.json").read_bytes()
    with pytest.raises(InputError, match=r"run\.json cannot be written: No space left on device; .* make resume NAME"):
        run.update(status="failed", error="x" * 8192)
    assert (run.directory / "run.json").read_bytes() == before
    assert [path.name for path in run.directory.iterdir()] == ["run.json"]


@pytest.mark.promise("disk", "the disk full when a checkpoint is written")
@pytest.mark.slow
def test_a_training_on_a_full_disk_ends_as_failed(
    small_disk: Path, launch_here: None, capsys: pytest.CaptureFixture
) -> None:
    """The disk is full when the checkpoint or the adapter is written."""
    code = main(["train", "tiny", "--name", "full", "--set", "lora_r=64"])
    said = capsys.readouterr().err
    facts = json.loads((small_disk / "full" / "run.json").read_text())
    assert (code, facts["status"]) == (1, "failed"), said
    assert "no space" in facts["error"].lower(), facts["error"]
    assert facts["error"] in said


@pytest.mark.slow
def test_a_run_that_is_refused_when_it_is_continued_is_what_it_was(
    project: Path, launch_here: None, capsys: pytest.CaptureFixture
) -> None:
    run, job = launch.create(jobs.check("tiny"), "kept"), jobs.check("tiny")
    run.update(status="interrupted", measured={"step": 0})
    Path("model").unlink()
    assert main(["resume", "kept"]) == 2
    assert "model_name_or_path model (revision main) cannot be loaded" in capsys.readouterr().err
    assert [event["status"] for event in run.facts()["journal"]] == ["running", "interrupted"] * 2
    # A new one of which nothing was trained leaves its name free.
    with pytest.raises(InputError, match="cannot be loaded"):
        launch.start(job, "never")
    assert not Path("runs/never").exists()


def test_a_process_killed_after_the_run_has_ended_changes_nothing(tmp_path: Path) -> None:
    """As one that crashes while it closes its libraries; before that, it is the cause of what others said."""
    said = {}
    for status in ("finished", "interrupted", "failed", "running"):
        run = bare(status, tmp_path, status=status)
        assert run.killed(-9, "process 7 (rank 1)") == 137
        said[status] = run.facts()["status"], "killed by SIGKILL" in run.facts().get("error", "")
    assert said == {
        "finished": ("finished", False),
        "interrupted": ("interrupted", False),
        "failed": ("failed", True),
        "running": ("failed", True),
    }
    assert not run.fail("its connection was reset")
    assert "SIGKILL" in run.facts()["error"]


@pytest.mark.promise("dead-process", "SIGKILL of the one training process, by the system")
@pytest.mark.parametrize(("accel", "who"), [("cpu", "the training process"), ("zero2", "accelerate")])
def test_what_ended_the_process_that_was_started_is_said(
    project: Path, monkeypatch: pytest.MonkeyPatch, accel: str, who: str
) -> None:
    run = launch.create(jobs.check("tiny"), "killed")
    if accel != "cpu":
        run.update(topology=run.facts()["topology"] | {"backend": "deepspeed"})
    killed = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    monkeypatch.setattr(processes, "command", lambda run, place: killed)
    monkeypatch.setattr(processes, "environment", lambda run, place: dict(os.environ))
    with run.locked():
        assert processes.Processes(run).work() == 137
    assert run.facts()["error"].startswith(f"{who} was killed by SIGKILL; where nobody did it, the system was out")
