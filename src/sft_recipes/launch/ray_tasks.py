"""What runs a job on a Ray cluster: a task for each of its runs, which Ray places where there is room for it.

A job file is this text with a last line that calls `main`. The cluster's own Python runs it, with the cluster's Ray,
so it asks for nothing else; sft-recipes is a program there.
"""

import signal
import subprocess
import sys
import time
from pathlib import Path

import ray


def train(name: str, project: str) -> int:
    """A run until it ends, with what it says beside it. Cancelled, it is told to save a checkpoint first."""
    # Ray cancels a task by this signal, which a cluster that was started in the background ignores.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with Path(project, "runs", name, "ray.out").open("ab") as output:
        words = ["sft-recipes", "resume", name]
        process = subprocess.Popen(words, cwd=project, stdout=output, stderr=subprocess.STDOUT)
    while True:
        try:
            # Ray interrupts Python, and no call of the system.
            while process.poll() is None:
                time.sleep(0.2)
            return process.returncode
        except KeyboardInterrupt:
            process.terminate()


def main(job: dict) -> None:
    """Train the runs of a job, so many at a time, and say which of them did not finish."""
    ray.init()
    # What `ray job stop` sends.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to stop"))
    task = ray.remote(train)
    running: dict = {}
    waiting, failed = list(job["runs"]), []
    try:
        while waiting or running:
            while waiting and len(running) < job["at_a_time"]:
                name = waiting.pop(0)
                running[task.options(name=name, **job["task"]).remote(name, job["project"])] = name
            (ended,), _ = ray.wait(list(running))
            name = running.pop(ended)
            try:
                code = ray.get(ended)
            except ray.exceptions.RayError as error:
                code = str(error).strip().splitlines()[-1]
            if code:
                failed.append(f"{name} ({code})")
    finally:
        for each in running:
            ray.cancel(each)
        if running:
            ray.wait(list(running), num_returns=len(running))
    if failed:
        sys.exit(f"not finished: {', '.join(failed)}")
