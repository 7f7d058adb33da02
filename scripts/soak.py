"""Train a tiny recipe again and again, kill -9 its processes at random moments, and continue until it is finished.

Each run must end as the uninterrupted one of the same processes did: adapter, log, totals, and of the last checkpoint
state, optimizer, schedule and random numbers, all to the bit. The first difference, hang or launch that fails by
itself ends the soak with exit code 1; otherwise docs/soak.json says what was done, which `make faults` takes into
docs/reliability.md. Half of the moments are meant to be within a save or an evaluation.
"""

import argparse
import collections
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import conftest  # noqa: E402
from exactness import everything  # noqa: E402

from sft_recipes.runs import lock  # noqa: E402
from sft_recipes.runs.checkpoints import MANIFEST  # noqa: E402
from sft_recipes.runs.run import Run  # noqa: E402

KEPT = ROOT / "docs" / "soak.json"
NAME = "soak"
EVERY = 4
SETTINGS = {
    "num_train_epochs": 10,
    "eval_on_start": True,
    "eval_strategy": "steps",
    "save_strategy": "steps",
    "eval_steps": EVERY,
    "save_steps": EVERY,
    "save_total_limit": 1,
    "per_device_eval_batch_size": 1,
    "early_stopping_patience": 1000,
    "lora_dropout": 0.05,
}
LIMIT = 300.0
"""Seconds after which a launch hangs."""


class Lost(Exception):
    """The promise was not kept."""


def make_project(directory: Path) -> None:
    """The project of the tests: a tiny model, its rows, and a recipe for one and for two processes of a CPU."""
    for name in ("recipes", "models", "accelerate_configs"):
        shutil.copytree(ROOT / name, directory / name)
    (directory / "recipes" / "tiny.yaml").write_text(conftest.TINY, encoding="utf-8")
    two = yaml.safe_load((directory / "accelerate_configs" / "ddp.yaml").read_text(encoding="utf-8"))
    (directory / "accelerate_configs" / "two.yaml").write_text(
        yaml.safe_dump(two | {"use_cpu": True, "num_processes": 2}), encoding="utf-8"
    )
    conftest.make_tiny_model(directory / "model")
    conftest.write_rows(directory / "data" / "train.jsonl", conftest.alpaca_rows(64, seed=1))
    conftest.write_rows(directory / "data" / "validation.jsonl", conftest.alpaca_rows(8, seed=2))


def start(run: Run, accel: str) -> subprocess.Popen:
    """Train the run, or continue it where it is there already."""
    words = [f"--set={key}={json.dumps(value)}" for key, value in SETTINGS.items()]
    what = ["resume", NAME] if run.directory.exists() else ["train", "tiny", "--name", NAME, "--accel", accel, *words]
    with Path("output.txt").open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "sft_recipes", *what], stdout=output, stderr=output, start_new_session=True
        )


def logged(run: Run) -> dict[str, Any]:
    """The last line of the run's log."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return json.loads(run.log.read_text(encoding="utf-8").splitlines()[-1])
    return {"step": 0}


def saving(run: Run) -> bool:
    """Whether a checkpoint or the adapter is being written, or is half deleted."""
    unsealed = any(not (path / MANIFEST).exists() for path in run.directory.glob("checkpoint-*"))
    return unsealed or (run.adapter.exists() and run.facts()["status"] != "finished")


def evaluating(run: Run) -> bool:
    """Whether a step after which the run is evaluated is logged, and its evaluation is not."""
    last = logged(run)
    return last["step"] > 0 and last["step"] % EVERY == 0 and "loss" in last and not saving(run)


def wait_for(condition: Callable[[], object], process: subprocess.Popen, seconds: float = LIMIT) -> None:
    """Until it is so, the process has ended, or the time is over."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None and not condition():
        time.sleep(0.002)


def wait_for_moment(run: Run, process: subprocess.Popen, rng: random.Random, whole: float) -> None:
    """A moment at random: any of a launch, or one within a save or an evaluation that it comes to."""
    aim: Callable[[Run], bool] | None = rng.choice([None, None, saving, evaluating])
    if aim is None:
        wait_for(lambda: False, process, rng.uniform(0, whole))
        return
    begun, steps = logged(run)["step"], rng.randint(1, 5 * EVERY)
    wait_for(lambda: logged(run)["step"] >= begun + steps, process)
    wait_for(lambda: aim(run), process)
    time.sleep(rng.uniform(0, 0.05))


def send(processes: list[psutil.Process], number: int) -> None:
    """Send a signal to all that have not ended."""
    for each in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.send_signal(number)


def kill(run: Run, process: subprocess.Popen, rng: random.Random) -> tuple[str, str] | None:
    """Kill one of the processes, or all of them; gives what was killed and within what, None where all had ended."""
    try:
        command = psutil.Process(process.pid)
        family = [command, *command.children(recursive=True)]
        of_accelerate = [each for each in family[1:] if "accelerate_launch" in " ".join(each.cmdline())]
    except psutil.NoSuchProcess:
        return None
    # All stand still while it is looked at what they are in the middle of.
    send(family, signal.SIGSTOP)
    if process.poll() is not None:
        return None
    where = "a save" if saving(run) else "an evaluation" if evaluating(run) else "anything else"
    ranks = [each for each in family if each.pid in lock.ranks(run.directory)]
    of = {"everybody": family, "the command": [command], "accelerate": of_accelerate, "a training process": ranks[-1:]}
    victim = rng.choice([kind for kind, processes in of.items() if processes])
    send(of[victim], signal.SIGKILL)
    send(family, signal.SIGCONT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(LIMIT)
    if psutil.wait_procs(family, LIMIT)[1] or not lock.alone(run.directory):
        raise Lost(f"{victim} was killed, and others had not ended {LIMIT:.0f} s later")
    return victim, where


def finish(run: Run, accel: str) -> float:
    """Let the run come to its end, and give how long that took."""
    began = time.monotonic()
    process = start(run, accel)
    try:
        process.wait(LIMIT)
    except subprocess.TimeoutExpired:
        raise Lost("a launch that nobody killed did not end") from None
    if process.returncode != 0:
        raise Lost(f"a launch that nobody killed ended with code {process.returncode}")
    return time.monotonic() - began


def compare(run: Run, whole: dict[str, Any]) -> None:
    """Raise Lost where the finished run is not the uninterrupted one."""
    ended, launch = everything(run), run.facts()["launches"][-1]
    # Where no step was left, the last checkpoint is of before the last evaluation, which draws random numbers.
    last = launch["from_step"] == launch["to_step"]
    besides = {key for key in whole if last and (key == "state" or key.startswith("rng_state"))}
    if different := [key for key in sorted({*ended, *whole} - besides) if ended.get(key) != whole.get(key)]:
        raise Lost(f"not the same as in the uninterrupted run: {', '.join(different)}")


def soak(kills: int, seed: int) -> dict[str, Any]:
    """Do it, in the current directory, and give what was done."""
    rng, run = random.Random(seed), Run(Path("runs") / NAME)  # noqa: S311, moments and no secrets
    done: dict[str, Any] = {"seed": seed, "kills": 0, "runs": 0, "launches": 0}
    done |= {"killed": collections.Counter(), "within": collections.Counter()}
    for accel, target in (("cpu", kills // 2), ("two", kills)):
        seconds = finish(run, accel)
        whole = everything(run)
        shutil.rmtree(run.directory)
        print(f"uninterrupted with {accel}.yaml: {seconds:.0f} s", flush=True)
        while done["kills"] < target:
            while done["kills"] < target and not (run.directory.exists() and run.facts()["status"] == "finished"):
                process = start(run, accel)
                wait_for_moment(run, process, rng, seconds)
                if found := kill(run, process, rng):
                    victim, where = found
                    done["kills"] += 1
                    done["killed"][victim] += 1
                    done["within"][where] += 1
                    print(f"{done['kills']:4} killed {victim} within {where}, step {logged(run)['step']}", flush=True)
                elif process.wait() != 0:
                    raise Lost(f"a launch that nobody killed ended with code {process.returncode}")
            if not run.directory.exists() or run.facts()["status"] != "finished":
                finish(run, accel)
            compare(run, whole)
            done["runs"] += 1
            done["launches"] += len(run.facts()["launches"])
            print(f"     finished, and the same to the bit: {len(run.facts()['launches'])} launches", flush=True)
            shutil.rmtree(run.directory)
    return done


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--kills", type=int, default=30)
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    directory, here = Path(tempfile.mkdtemp(prefix="soak-")), Path.cwd()
    make_project(directory)
    os.chdir(directory)
    try:
        done = soak(given.kills, given.seed)
    except Lost as error:
        print(f"error: {error}; seed {given.seed}, see {directory}", file=sys.stderr)
        return 1
    finally:
        os.chdir(here)
        send(psutil.Process().children(recursive=True), signal.SIGKILL)
    shutil.rmtree(directory)
    KEPT.write_text(json.dumps(done, indent=1) + "\n", encoding="utf-8")
    print(f"{done['kills']} kills, {done['runs']} runs, nothing lost: {KEPT.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
