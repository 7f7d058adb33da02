"""Work in a process of its own, on the CPU: what needs torch is asked for, and the asking process never imports it."""

import json
import resource
import subprocess
import sys
from typing import Any

from sft_recipes.environment import quiet_environment
from sft_recipes.errors import InputError


def call(module: str, payload: Any, *arguments: str, failure: str, **environment: str) -> str:
    """Run `python -m module arguments` with the payload as JSON on its input, and give what it prints.

    Args:
        failure: What it means if the process fails; its last line is the reason.

    Raises:
        InputError: The process failed.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        input=json.dumps(payload),
        capture_output=True,
        text=True,
        env=quiet_environment(on_cpu=True) | environment,
    )
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or [f"it ended with code {done.returncode} and said nothing"]
        raise InputError(f"{failure}: {reason[0]}")
    return done.stdout


def peak_resident() -> int:
    """The most bytes of memory that this process has had."""
    # Linux gives KiB, macOS bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
