"""SLURM: the job file of a run, its submission by sbatch, and what squeue says of it.

All texts of a job file are one word of a shell each, whatever they hold (`shlex.quote`), also in its `#SBATCH` lines,
which sbatch takes apart by the same quotes.
"""

import math
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from sft_recipes.launch import clients
from sft_recipes.launch.clients import Trials
from sft_recipes.recipes.clusters import Site
from sft_recipes.runs.run import RUNS, Run
from sft_recipes.terminal import duration

FILE, ASKED = "job.sbatch", "squeue"
CLIENT = ("sbatch", "launch on a machine that submits SLURM jobs")
# What a shell and Python need; everything else of the environment that a job is submitted from stays there.
ENVIRONMENT = ("PATH", "HOME", "USER", "LANG", "LD_LIBRARY_PATH")
# A port for each job and each of its starts, from here on, and the next where another job of the node has it.
PORT = (
    "export PORT=$((20000 + (SLURM_JOB_ID + ${SLURM_RESTART_COUNT:-0}) % 10000))\n"
    'while (: < "/dev/tcp/127.0.0.1/$PORT") 2> /dev/null; do PORT=$((PORT + 1)); done'
)
# Runs the rest of its words with the place of this node in the job, through the signals that all processes of a step
# get. The first node's code 3 is left in a file: as its own, srun would end the other nodes for it, and report that.
ON_EACH_NODE = (
    'trap : TERM INT HUP USR1; code=0; "$@" --machine "$SLURM_NODEID" --head "$SLURM_LAUNCH_NODE_IPADDR:$PORT" || '
    'code=$?; if [ "$code" -eq 3 ]; then touch "$AGAIN"; code=0; fi; exit "$code"'
)


def script(
    run: Run, site: Site, project: Path, nodes: int, gpus: int, seconds: float | None, trials: Trials | None = None
) -> str:
    """The text of a job file.

    Args:
        run: What is trained, or the sweep that the trials are of.
        project: The folder in which `runs/` lies, in full.
        gpus: GPUs of each; 0 where CPUs train.
        seconds: The time limit to ask for; the partition's own without it.
        trials: The trials of a sweep to train instead, as an array of jobs, each of one machine.
    """
    options: dict[str, object] = {
        "job-name": run.name,
        "chdir": project,
        "array": trials and ",".join(map(str, trials.numbers)) + (f"%{trials.at_a_time}" if trials.at_a_time else ""),
        # A trial's number has the zeros that its run has.
        "output": f"{RUNS / trials.stem}-t%3a/slurm-%A_%a.out" if trials else f"{run.directory}/slurm-%j.out",
        "open-mode": "append",
        "nodes": nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": f"{site['gpu_type']}:{gpus}" if site["gpu_type"] and gpus else gpus or None,
        "cpus-per-task": site["cpus_per_node"],
        "mem": site["memory_per_node"],
        "time": math.ceil(seconds / 60) if seconds else None,
        "signal": f"USR1@{site['grace_seconds']}",
        "requeue": True,
        "export": ",".join([*ENVIRONMENT, *(site["environment"] or ())]),
    }
    options |= {key: site[key] for key in ("partition", "account", "qos", "constraint", "reservation")}
    lines = ["#!/bin/bash -l" if site["modules"] else "#!/bin/bash"]
    lines += ["#SBATCH " + _option(key, value) for key, value in options.items() if value]
    one = trials.names[0] if trials else run.name
    lines += ["", f"# Written by sft-recipes. The run says how far it is: sft-recipes status {one}"]
    lines += [f"module load {shlex.join(site['modules'])}"] if site["modules"] else []
    lines += [f"export {name}={shlex.quote(value)}" for name, value in site.variables().items()]
    step = ["srun", "--export=ALL", "--kill-on-bad-exit=1"]
    step += [f"--cpus-per-task={site['cpus_per_node']}"] if site["cpus_per_node"] else []
    words, program = _contained(site, project)
    work = [*program, "resume", *([] if trials else [run.name])]
    if trials:
        lines.append(f'TRIAL={shlex.quote(trials.stem)}-t"$(printf %03d "$SLURM_ARRAY_TASK_ID")"')
    if nodes > 1:
        lines += [PORT, f"export AGAIN={run.directory}/.again", 'rm -f "$AGAIN"']
        work = ["bash", "-c", ON_EACH_NODE, "bash", *work, "--machines", str(nodes)]
        lines.append("# One task a node, which starts the processes of its node; the first node's keeps the run.")
    lines += [
        shlex.join([*step, *words, *work]) + (' "$TRIAL"' if trials else ""),
        "code=$?",
        *(['if [ -e "$AGAIN" ]; then code=3; fi'] if nodes > 1 else []),
        "# It has saved a checkpoint, and goes on from it when the job is started again.",
        'if [ "$code" -eq 3 ]; then scontrol requeue "$SLURM_JOB_ID"; fi',
        'exit "$code"',
    ]
    return "\n".join(lines) + "\n"


def _option(key: str, value: object) -> str:
    return f"--{key}" if value is True else f"--{key}={shlex.quote(str(value))}"


def _contained(site: Site, project: Path) -> tuple[list[str], list[str]]:
    """What srun is told of a container, and the words that run the program, within one if the site names one."""
    image, here = site["container_image"], str(project)
    if site["container"] == "pyxis":
        mounted = [f"--container-image={image}", f"--container-mounts={here}:{here}", f"--container-workdir={here}"]
        return mounted, ["sft-recipes"]
    if site["container"] == "apptainer":
        return [], ["apptainer", "exec", "--nv", "--bind", here, "--pwd", here, image, "sft-recipes"]
    return [], [sys.executable, "-m", "sft_recipes"]


def by_hand(file: Path) -> str:
    """The command that submits a job file."""
    return f"sbatch {shlex.quote(str(file))}"


def needed(site: Site) -> Iterator[str]:
    """The keys that a site has to set for its jobs: none, partition and time are the cluster's own then."""
    yield from ()


def submit(file: Path) -> str:
    """Submit a job file; gives the job's number."""

    def reason(said: str) -> str:
        return "; ".join(re.findall(r"(?:error|fatal): (.+)", said))

    printed = clients.submitted("SLURM", ["sbatch", "--parsable", str(file)], reason)
    # With the name of a cluster behind it where there are several.
    return printed.strip().partition(";")[0]


def state(job: Mapping[str, object]) -> str:
    """What SLURM says of a job: its state, why it waits, where it runs and how much of its time is left."""
    done = clients.answered("squeue", "--noheader", "--states=all", f"--jobs={job['id']}", "--format=%T|%r|%R|%M|%l")
    fields = done.stdout.strip().split("|")
    if done.returncode or len(fields) != 5:
        return "SLURM does not know it any more"
    name, reason, nodes, used, limit = fields
    if name == "PENDING":
        return f"pending ({reason}), time limit {limit}"
    return f"{name.lower()} on {nodes}, {used} of {limit}" if name == "RUNNING" else name.lower()


def explained(site: Site, seconds: float | None) -> str:
    """What ends a job before it has finished, and what comes of it."""
    asked = f"asks for {duration(seconds)}" if seconds else "asks for no time, so that it has the partition's"
    return f"{asked}; SIGUSR1 comes {duration(site['grace_seconds'])} before it, and has a checkpoint saved"


def stopping(identifier: str) -> str:
    """The command that ends a job."""
    return f"scancel {identifier}"
