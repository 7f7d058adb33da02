"""Ray: the job of a run on a Ray cluster, handed over and asked after by Ray's own program, `ray job` (Ray 2.60).

The job file is `launch.ray_tasks` with what it is to train. Its runs are tasks, which wait until Ray has room for
them, as a job's own command may not (RAY_JOB_START_TIMEOUT_SECONDS), take a part of a GPU where they are to, and are
placed anew where a machine is lost. Nothing of the environment goes along: Ray shows and logs what a job brings.
"""

import ast
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from sft_recipes.launch import clients
from sft_recipes.launch.clients import Trials
from sft_recipes.recipes.clusters import Site
from sft_recipes.runs.run import Run
from sft_recipes.terminal import duration

FILE, ASKED = "job.ray.py", "ray"
CLIENT = ("ray", 'install "ray[default]" in an environment of its own')
# What `ray job submit` and `ray job status` print (ray/dashboard/modules/job/cli.py).
_SUBMITTED = re.compile(r"Job '([^']+)' submitted successfully")
_STATE = re.compile(r"(?:Job '[^']+' (?:was )?|Status for job '[^']+': )(succeeded|failed|stopped|[A-Z]+)")


def script(run: Run, site: Site, project: Path, nodes: int, gpus: int, trials: Trials | None = None) -> str:
    """The text of a job, which is a program in Python.

    Args:
        run: What is trained, or the sweep that the trials are of.
        site: What the site asks for, with `address`.
        project: The folder in which `runs/` lies, in full, under `shared`.
        nodes: One.
        gpus: GPUs of a run; 0 where CPUs train.
        trials: The trials of a sweep to train instead.
    """
    runs = trials.names if trials else [run.name]
    waits = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(site["grace_seconds"])}}
    submit = ["ray", "job", "submit", "--address", site["address"], "--no-wait"]
    submit += ["--runtime-env-json", json.dumps(waits), "--", "python", str(project / run.directory / FILE)]
    task = {
        "num_cpus": site["cpus_per_node"] or max(gpus, 1),
        "num_gpus": (site["gpus_per_trial"] if trials and gpus == 1 else None) or gpus,
        "memory": clients.size_in_bytes(site["memory_per_node"]) if site["memory_per_node"] else None,
        "accelerator_type": site["gpu_type"] if gpus else None,
    }
    job = {
        "submit": submit,
        "project": str(project),
        "runs": runs,
        "at_a_time": (trials and trials.at_a_time) or len(runs),
        "task": {key: value for key, value in task.items() if value is not None},
    }
    text = resources.files("sft_recipes.launch").joinpath("ray_tasks.py").read_text(encoding="utf-8")
    return f"{text}\n\n# Written by sft-recipes.\nmain(\n    {job!r}\n)\n"


def _command(file: Path) -> list[str]:
    """What submits a job file, as it says itself."""
    (last,) = ast.parse(file.read_text(encoding="utf-8")).body[-1:]
    return ast.literal_eval(last.value.args[0])["submit"]  # type: ignore[attr-defined]


def by_hand(file: Path) -> str:
    """The command that submits a job file."""
    return shlex.join(_command(file))


def needed(site: Site) -> Iterator[str]:
    """The keys that a site has to set for its jobs."""
    yield from (key for key in ("address", "shared") if not site[key])


def _reason(said: str) -> str:
    """The last line of what Ray's program fails with, which is the message of an exception."""
    last = (said.strip().splitlines() or [""])[-1]
    return re.sub(r"^\w+: ", "", last)


def submit(file: Path) -> str:
    """Submit a job; gives its number behind the address of its cluster."""
    command = _command(file)
    number = clients.number_of("Ray", _SUBMITTED, clients.submitted("Ray", command, _reason), "ray job list")
    return f"{command[command.index('--address') + 1]}/{number}"


def state(job: Mapping[str, Any]) -> str:
    """What Ray says of a job, and of one that failed the last that it said itself."""
    address, _, number = str(job["id"]).rpartition("/")
    done = clients.answered("ray", "job", "status", f"--address={address}", "--", number)
    said = done.stdout + done.stderr
    found = _STATE.search(said)
    if done.returncode or found is None:
        return "Ray does not know it any more" if "does not exist" in said else _reason(said)
    if found[1] == "RUNNING":
        return "running (or waiting until Ray has room for it)"
    return found[1].lower() + (f" ({said.strip().splitlines()[-1]})" if found[1] == "failed" else "")


def explained(site: Site) -> str:
    """What ends a job before it has finished, and what comes of it."""
    grace = duration(site["grace_seconds"])
    return f"a job that is stopped has {grace} to save a checkpoint, and one whose machine is lost goes on on another"


def stopping(identifier: str) -> str:
    """The command that ends a job."""
    address, _, number = identifier.rpartition("/")
    return shlex.join(["ray", "job", "stop", "--address", address, number])
