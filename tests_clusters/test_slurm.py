"""The demo by SLURM on two nodes: trained, told to stop, requeued, and the same as one that nobody stopped."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml
from conftest import facts, program, said, step, until
from safetensors.torch import load_file

from sft_recipes.launch import slurm
from sft_recipes.recipes.clusters import Site
from sft_recipes.runs import lock
from sft_recipes.runs.run import Run

pytestmark = pytest.mark.usefixtures("slurm")
STEPS = 60
SETTINGS = f"max_steps={STEPS} per_device_train_batch_size=8 logging_steps=1 eval_on_start=false task=null"
SETTINGS += " test_file=null group_column=null"
STEPS_OF_TRIALS = 12
SHORT = SETTINGS.replace(f"max_steps={STEPS}", f"max_steps={STEPS_OF_TRIALS} eval_steps=6 save_steps=6")
ON = ("--on", "slurm", "--nodes", "2", "--gpus", "1")


def launched(project: Path, name: str, accel: str, site: str = "long", settings: str = SETTINGS) -> str:
    """The number of the job that trains the demo as a run of that name."""
    given = ("--site", site, "--accel", accel, "--name", name, "--set", settings)
    told = program(project, "launch", "demo", *ON, *given)
    assert f"make logs NAME={name}" not in told and f"sft-recipes logs {name}" in told
    return told.partition("submitted  job ")[2].partition("\n")[0]


def states() -> str:
    return said("squeue", "--noheader", "--states=all", "--format=%j %T")


@pytest.mark.parametrize(("accel", "told_by"), [("ddp_cpu", "TERM"), ("zero2_cpu", "USR1")])
def test_it_is_stopped_requeued_and_resumed_as_if_nothing_had_happened(
    project: Path, accel: str, told_by: str
) -> None:
    stopped, whole = f"stopped-{accel}", f"whole-{accel}"
    number = launched(project, stopped, accel)
    until(lambda: step(project, stopped) > 5, 300)
    assert "running on n[1-2]" in program(project, "status", stopped)
    said("scancel", f"--signal={told_by}", number)
    until(lambda: len(facts(project, stopped)["resumed"]) == 2, 300)
    until(lambda: f"{stopped} COMPLETED" in states(), 400)
    told = program(project, "logs", stopped, "--lines", "1000")
    assert "stopping   the run saves a checkpoint" in told and "its job goes on when it is started again" in told
    assert f"runs/{stopped} continues from checkpoint-" in told and f"finished   {STEPS} steps" in told
    assert "Traceback" not in told
    hosts = facts(project, stopped)["in_effect"]["run"]["hosts"]
    assert [(each["name"], each["processes"]) for each in hosts] == [("n1", 1), ("n2", 1)]
    # Two processes of one machine, which nobody stopped.
    program(project, "train", "demo", "--accel", accel, "--name", whole, "--set", SETTINGS)
    one, other = (load_file(project / f"runs/{name}/adapter/adapter_model.safetensors") for name in (stopped, whole))
    assert one.keys() == other.keys() and all(torch.equal(tensor, other[key]) for key, tensor in one.items())
    assert facts(project, stopped)["measured"]["step"] == STEPS
    assert not list(project.parent.rglob("pwned"))


def test_a_job_that_is_cancelled_keeps_a_checkpoint_and_is_not_started_again(project: Path) -> None:
    number = launched(project, "cancelled", "ddp_cpu")
    until(lambda: step(project, "cancelled") > 2, 300)
    said("scancel", number)
    until(lambda: facts(project, "cancelled")["status"] == "interrupted", 60)
    until(lambda: "cancelled CANCELLED" in states(), 60)
    told = program(project, "status", "cancelled")
    assert ": cancelled" in told and ", checkpoint-" in told


def test_the_trials_of_a_sweep_are_an_array_of_which_what_failed_is_done_again(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two at a time on two nodes, one of which is killed; the array's third begins when another has ended."""
    monkeypatch.chdir(project)
    words = ["sweep", "demo", "--over", "learning_rate=1e-3,2e-3,4e-3", "--on", "slurm", "--site", "long"]
    words += ["--accel", "cpu", "--jobs", "2", "--name", "grid", "--set", SHORT]
    names = [f"grid-t00{number}" for number in range(3)]
    told = program(project, *words)
    number = told.partition("submitted  job ")[2].partition(",")[0]
    assert "#SBATCH --array=0,1,2%2" in told and f"scancel {number} ends it" in told
    until(lambda: step(project, names[1]), 300)
    (pid,) = lock.ranks(Path("runs") / names[1])
    os.kill(pid, signal.SIGKILL)
    ended = [f"grid.sweep {state}" for state in ("COMPLETED", "COMPLETED", "FAILED")]
    until(lambda: sorted(line for line in states().splitlines() if line.startswith("grid")) == ended, 400)
    assert [facts(project, name)["status"] for name in names] == ["finished", "failed", "finished"]
    told = program(project, *words)
    assert f"failed     {names[1]} has not finished, its job {number}_1 is failed" in told
    assert "was killed by SIGKILL" in told and "#SBATCH --array=1%2" in told
    until(lambda: facts(project, names[1])["status"] == "finished", 300)
    told = program(project, *words)
    assert "best       grid-t00" in told and "submitted" not in told
    assert [len(facts(project, name).get("resumed", [])) for name in names] == [1, 2, 1]
    assert f"finished   {STEPS_OF_TRIALS} steps" in program(project, "logs", names[2], "--lines", "1000")
    assert not list(project.parent.rglob("pwned"))


def test_a_run_that_is_longer_than_its_time_goes_on_in_the_next_start(project: Path) -> None:
    """SLURM itself tells it before the limit that the job asked for, as nobody else does here."""
    site = yaml.safe_load((project / "clusters" / "long.yaml").read_text())
    (project / "clusters" / "minutes.yaml").write_text(yaml.safe_dump(site | {"max_hours": 0.1, "grace_seconds": 240}))
    endless = SETTINGS.replace(f"max_steps={STEPS}", "max_steps=100000")
    number = launched(project, "chained", "ddp_cpu", "minutes", endless)
    assert said("squeue", "--noheader", f"--jobs={number}", "--format=%l") == "6:00"
    until(lambda: len(facts(project, "chained").get("resumed", [])) == 2, 500)
    # One is there when it has ended.
    (first,) = facts(project, "chained")["launches"]
    assert (first["from_step"], first["to_step"]) == (0, step(project, "chained"))
    until(lambda: step(project, "chained") > first["to_step"] > 0, 300)
    said("scancel", number)


def test_what_the_partition_refuses_is_one_message_and_leaves_nothing(project: Path) -> None:
    given = ("--site", "small", "--accel", "ddp_cpu", "--name", "refused", "--set", SETTINGS)
    told = program(project, "launch", "demo", *ON, *given, code=2)
    assert told.count("error: ") == 1
    assert "error: SLURM refuses the job: " in told and "; nothing was submitted" in told
    assert not (project / "runs" / "refused").exists()


def test_the_first_node_may_end_before_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a program that takes its time to end on the second node, which srun must not kill for the first one's 3."""
    monkeypatch.chdir(tmp_path)
    stub = tmp_path / "program"
    stub.write_text(
        '#!/bin/bash\ntrap told=1 USR1\nwhile [ -z "$told" ]; do sleep 0.2; done\n'
        'if [ "$SLURM_NODEID" = 0 ]; then exit 3; fi\nsleep 3; touch ended\n'
    )
    stub.chmod(0o755)
    monkeypatch.setattr(slurm, "_contained", lambda site, project: ([], [str(stub)]))
    run = Run(Path("runs/a"))
    run.directory.mkdir(parents=True)
    (run.directory / slurm.FILE).write_text(slurm.script(run, Site(None, {}), tmp_path, 2, 0, 600.0))
    job = {"id": slurm.submit(run.directory / slurm.FILE)}
    until(lambda: slurm.state(job).startswith("running on n[1-2]"), 60)
    time.sleep(3)
    said("scancel", "--signal=USR1", job["id"])
    until(lambda: slurm.state(job).startswith("pending (BeginTime)"), 60)
    assert (tmp_path / "ended").exists()
    said("scancel", job["id"])
