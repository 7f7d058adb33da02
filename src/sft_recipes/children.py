"""Work in a process of its own, on the CPU: what needs torch is asked for, and the asking process never imports it."""

import contextlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Mapping
from typing import IO, Any

from sft_recipes.environment import quiet_environment
from sft_recipes.errors import InputError


def call(module: str, payload: Any, *arguments: str, failure: str, **environment: str) -> str:
    """Run `python -m module arguments` with the payload as JSON on its input, and give what it prints.

    Args:
        failure: What it means if the process fails; its last line is the reason.

    Raises:
        InputError: The process failed.
    """
    done = run(module, payload, *arguments, env=quiet_environment(on_cpu=True) | environment)
    if done.returncode:
        raise InputError(f"{failure}: {reason(done)}")
    return done.stdout


def run(module: str, payload: Any, *arguments: str, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run `python -m module arguments` in an environment, with the payload as JSON on its input."""
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, input=json.dumps(payload), capture_output=True, text=True, env=env)


def reason(done: subprocess.CompletedProcess[str]) -> str:
    """Why a process failed, which is the last that it said."""
    return (done.stderr.strip().splitlines() or [f"it ended with code {done.returncode} and said nothing"])[-1]


def answers(mode: str = "w") -> IO[Any]:
    """What this process answers on; whatever else writes to its output from here on is chatter, and goes to errors."""
    kept = os.fdopen(os.dup(1), mode)
    os.dup2(2, 1)
    return kept


def kill(process: subprocess.Popen) -> None:
    """Kill a process and everything it started, without a word to it, as a crash of the machine would."""
    # Nobody else needs it, and it takes longer to import than a light command may.
    import psutil

    started: list[Any] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        started = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    for each in [process, *started]:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    process.wait()
    psutil.wait_procs(started, timeout=10)


def peak_resident() -> int:
    """The most bytes of memory that this process has had."""
    # Linux gives KiB, macOS bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
