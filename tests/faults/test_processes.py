"""Real launches whose processes are killed, stopped and cut off from their terminal."""

import contextlib
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from exactness import logged
from finished import bare, restate

from sft_recipes.launch import launch, processes
from sft_recipes.plan import job as jobs
from sft_recipes.runs import lock
from sft_recipes.runs.run import Run

pytest_plugins = ["forks"]
COMMAND = [sys.executable, "-m", "sft_recipes"]
# No step before the last is saved unless somebody asks for it.
LONG = {
    "num_train_epochs": 40,
    "eval_strategy": "steps",
    "eval_steps": 320,
    "save_strategy": "steps",
    "save_steps": 320,
}


def start(name: str, *more: str, **streams: object) -> subprocess.Popen:
    words = [f"--set={key}={value}" for key, value in LONG.items()]
    return subprocess.Popen([*COMMAND, "train", "tiny", "--name", name, *more, *words], **streams)  # type: ignore[call-overload]


def until(condition: Callable[[], object], seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def steps(run: Run) -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        return json.loads(run.log.read_text().splitlines()[-1])["step"]
    return 0


def accelerate_of(process: subprocess.Popen) -> psutil.Process:
    (found,) = (
        each for each in psutil.Process(process.pid).children() if "accelerate_launch" in " ".join(each.cmdline())
    )
    return found


@pytest.fixture
def two_processes(project: Path) -> None:
    path = project / "accelerate_configs" / "ddp.yaml"
    here = {"use_cpu": True, "num_processes": 2, "mixed_precision": "no"}
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | here))


@pytest.mark.promise("one-writer", "SIGKILL of the command and of accelerate, and a resume while the training goes on")
@pytest.mark.usefixtures("two_processes")
@pytest.mark.usefixtures("forks")
def test_a_command_that_is_killed_leaves_no_second_writer_and_loses_no_step(project: Path) -> None:
    run = Run(Path("runs/orphan"))
    process = start("orphan", "--accel", "ddp", stdout=subprocess.DEVNULL)
    until(lambda: steps(run) >= 2)
    ranks = lock.ranks(run.directory)
    # They cannot save while the resume looks.
    for rank in ranks:
        os.kill(rank, signal.SIGSTOP)
    for each in (accelerate_of(process), process):
        each.kill()
    process.wait()
    refused = subprocess.run([*COMMAND, "resume", "orphan"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert (
        f"still written by the training processes of a command that was killed (process {', '.join(map(str, ranks))})"
        in refused.stderr
    )
    before = steps(run)
    for rank in ranks:
        os.kill(rank, signal.SIGCONT)
    until(lambda: lock.alone(run.directory))
    assert run.facts()["status"] == "interrupted"
    assert before <= steps(run) <= before + 2
    assert [path.name for path in run.directory.glob("checkpoint-*")] == [f"checkpoint-{steps(run)}"]


@pytest.mark.promise("terminal", "the terminal closed: SIGHUP, and nothing can be printed any more")
@pytest.mark.slow
def test_a_terminal_that_is_closed_stops_the_run_with_a_checkpoint(project: Path) -> None:
    """By processes that start from nothing."""
    run = Run(Path("runs/hungup"))
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    process = start("hungup", stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    until(lambda: select.select([ours], [], [], 0)[0] and os.read(ours, 4096) and steps(run) >= 2)
    os.close(ours)
    # As the system does to the leader of a session whose terminal it is, and the shell does once more.
    for _ in range(2):
        process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=100) == launch.INTERRUPTED
    assert run.facts()["status"] == "interrupted"
    assert "sft-recipes resume hungup" in run.output.read_text()
    assert list(run.directory.glob("checkpoint-*"))


def test_how_a_run_ended_is_kept_where_nobody_reads_any_more(
    project: Path, launch_here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader goes when the last process has ended, so that the end is the first thing that nobody reads."""
    run = launch.create(jobs.check("tiny", overrides=["max_steps=1 warmup_steps=0"]), "unread")
    ours, theirs = os.pipe()
    work = processes.Processes.work

    def worked(*arguments: Any, **options: Any) -> int:
        code = work(*arguments, **options)
        os.close(ours)
        return code

    monkeypatch.setattr(processes.Processes, "work", worked)
    with os.fdopen(theirs, "w") as stream, monkeypatch.context() as context:
        context.setattr(sys, "stdout", stream)
        assert launch.begin(run) == launch.FINISHED
    assert "finished   1 step" in run.output.read_text()


@pytest.mark.promise("dead-process", "SIGSTOP, and SIGKILL, of one of two training processes")
@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
@pytest.mark.usefixtures("forks")
def test_a_process_that_stands_still_or_dies_ends_the_others(
    number: signal.Signals,
    two_processes: None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(processes, "PATIENCE", 2.0)
    run = Run(Path("runs/struck"))
    with ThreadPoolExecutor() as thread:
        overrides = {**LONG, "accelerate_config": "ddp", "logging_steps": 1}
        training = thread.submit(launch.train, "tiny", run_name="struck", overrides=overrides)
        until(lambda: steps(run) >= 2)
        victim = lock.ranks(run.directory)[-1]
        os.kill(victim, number)
        code, _ = training.result(timeout=100)
    assert code == launch.FAILED
    assert lock.alone(run.directory)
    said = capfd.readouterr()
    assert f"process {victim} " in run.facts()["error"]
    assert number.name in run.facts()["error"]
    assert said.err.count("error: ") == 1
    assert "Traceback" not in said.err + said.out


@pytest.mark.usefixtures("forks")
def test_of_processes_that_are_found_dead_at_once_the_killed_one_is_named(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate.commands import launch as accelerate
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    from sft_recipes.train import accelerate_launch

    run = bare("died")

    def die() -> None:
        raise ChildFailedError(
            "", {rank: ProcessFailure(rank, 70 + rank, code, "") for rank, code in ((0, 1), (1, -9))}
        )

    monkeypatch.setattr(accelerate, "simple_launcher", None)
    monkeypatch.setattr(accelerate, "main", die)
    monkeypatch.setenv(lock.LAUNCHER, "1")
    monkeypatch.setattr(sys, "argv", ["accelerate", str(run.directory), "launch"])
    assert accelerate_launch.main() == 128 + signal.SIGKILL
    assert run.facts()["error"].startswith("process 71 (rank 1) was killed by SIGKILL")


@pytest.mark.promise("dead-process", "SIGKILL of accelerate before the training processes have met")
@pytest.mark.usefixtures("forks")
def test_processes_that_have_not_met_end_with_what_launched_them(two_processes: None) -> None:
    run = Run(Path("runs/early"))
    process = start("early", "--accel", "ddp", stdout=subprocess.DEVNULL)
    until(lambda: lock.ranks(run.directory))
    accelerate_of(process).kill()
    assert process.wait(timeout=100) == launch.FAILED
    assert lock.alone(run.directory)
    assert run.facts()["status"] == "failed"


def together(*arguments: str) -> list[tuple[int, str]]:
    """Exit codes and errors of two commands that are started at the same moment, the lower code first."""
    streams: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen([*COMMAND, *arguments], **streams) for _ in range(2)]
    return sorted((each.wait(timeout=200), each.communicate()[1]) for each in both)


@pytest.mark.promise("one-writer", "two commands at the same moment: train of one name, and resume of one run")
@pytest.mark.usefixtures("forks")
def test_of_two_commands_at_once_one_has_the_run(project: Path, record_property: Callable[[str, int], None]) -> None:
    """On a cold cache, so that both count the rows too."""
    (won, _), (lost, said) = together("train", "tiny", "--name", "both", "--set", "max_steps=2")
    assert (won, lost) == (0, 2)
    assert "runs/both exists and is never overwritten" in said and said.count("error: ") == 1
    run = Run(Path("runs/both"))
    assert (run.facts()["status"], steps(run)) == ("finished", 2)
    log = logged(run)
    shutil.rmtree(run.adapter)
    restate(run, status="interrupted", measured=None)
    (won, _), (lost, said) = together("resume", "both")
    assert (won, lost) == (0, 2)
    assert "runs/both is in use by another process" in said or "is finished" in said
    assert said.count("error: ") == 1
    assert (run.facts()["status"], logged(run)) == ("finished", log)
    assert len(run.facts()["launches"]) == 2
    record_property("injected", 2)
