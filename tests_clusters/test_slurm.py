"""The demo by SLURM on two nodes: trained, told to stop, requeued, and the same as one that nobody stopped."""

import json
import time
from pathlib import Path

import pytest
from conftest import facts, program, said, until

pytestmark = pytest.mark.usefixtures("slurm")
STEPS = 40
SETTINGS = (
    f"max_steps={STEPS} per_device_train_batch_size=8 logging_steps=1 eval_on_start=false eval_strategy=no "
    "load_best_model_at_end=false save_strategy=no"
)
ON = ("--on", "slurm", "--nodes", "2", "--gpus", "1", "--accel")


def launched(project: Path, name: str, accel: str, *more: str) -> str:
    """The number of the job that trains the demo as a run of that name."""
    told = program(project, "launch", "demo", *ON, accel, "--name", name, "--set", SETTINGS, *more)
    return told.partition("submitted  job ")[2].partition("\n")[0]


def steps(project: Path, name: str) -> int:
    path = project / "runs" / name / "log.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return max((json.loads(line)["step"] for line in lines), default=0)


def output(project: Path, name: str) -> str:
    return "".join(path.read_text() for path in (project / "runs" / name).glob("slurm-*.out"))


def test_it_is_stopped_requeued_and_resumed_as_if_nothing_had_happened(project: Path) -> None:
    for name in ("stopped",):
        number = launched(project, name, "ddp_cpu")
        began = time.time()
        until(lambda: steps(project, name) > 5, 200)
        print("began", time.time() - began, said("squeue"))
        said("scancel", "--signal=TERM", number)
        t = time.time()
        until(lambda: len(facts(project, name).get("launches", [])) == 2, 300)
        print("requeued after", time.time() - t)
        until(lambda: facts(project, name)["status"] == "finished", 300)
        print("finished", time.time() - t)
        print(program(project, "status", name))
        until(lambda: not said("squeue", "--noheader", "--states=R,PD,CG"), 300)
        print(output(project, name))
        print(program(project, "status", name))
