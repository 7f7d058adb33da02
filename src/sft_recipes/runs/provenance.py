"""What a result depends on beside its recipe: packages, commit and time."""

import importlib.util
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PACKAGES = (
    "sft-recipes",
    "trl",
    "transformers",
    "peft",
    "bitsandbytes",
    "accelerate",
    "datasets",
    "deepspeed",
    "torch",
)


def versions() -> dict[str, str]:
    """The packages that decide what a run computes, as they are installed."""
    from importlib.metadata import version

    # DeepSpeed is for Linux alone.
    return {package: version(package) for package in PACKAGES if importlib.util.find_spec(package.replace("-", "_"))}


def changed(facts: Mapping[str, Any]) -> list[str]:
    """The packages that are not those of a run, as its run.json has them, each with both versions."""
    before, here = facts.get("versions", {}), versions()
    return [
        f"{name} {before.get(name, 'none')} -> {here.get(name, 'none')}"
        for name in sorted(before.keys() | here.keys())
        if before.get(name) != here.get(name)
    ]


def now() -> str:
    """The time, as run.json holds it."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def command() -> str:
    """The command line, as run.json holds it; from a program or a notebook, that it was one."""
    ours = Path(sys.argv[0]).name == "sft-recipes" or sys.argv[0].endswith(f"sft_recipes{os.sep}__main__.py")
    return shlex.join(["sft-recipes", *sys.argv[1:]]) if ours else "from Python"


def git_state() -> dict[str, Any] | None:
    """The commit that ran and whether files differed from it; None outside a repository."""
    try:
        arguments = ["git", "status", "--porcelain=v2", "--branch", "--untracked-files=no"]
        lines = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=20).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    commit = next((line.split()[-1] for line in lines if line.startswith("# branch.oid")), None)
    return {"commit": commit, "dirty": any(not line.startswith("#") for line in lines)}
