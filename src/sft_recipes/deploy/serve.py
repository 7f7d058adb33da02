"""Serve a run with vLLM, on this machine alone; where vLLM is not installed, say how."""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

from sft_recipes.deploy import merge
from sft_recipes.environment import quiet_environment
from sft_recipes.errors import refuse
from sft_recipes.files import write_whole
from sft_recipes.report import page, serving
from sft_recipes.runs import identity
from sft_recipes.runs.run import Run, adapter_damage, rehearsed
from sft_recipes.terminal import say

Facts = dict[str, Any]

FILE = "serve.md"


def serve(name: str, *, merged: bool = False, port: int = serving.PORT) -> Facts:
    """Write `serve.md` into the run, and become vLLM where it is installed: then this does not return.

    Returns:
        `command`, `path` and `body` of a request, and the `file` that holds them.

    Raises:
        InputError: There is no such run, it is damaged, or vLLM cannot serve it so; every reason at once.
    """
    run, found = checked(name, merged, port)
    file = run.directory / FILE
    adapter = "--enable-lora" in found["command"]
    write_whole(file, page.markdown("serve.md", run=run.name, merged=merged, adapter=adapter, serving=found))
    say("command", found["shell"])
    say("request", found["curl"])
    environment = quiet_environment(on_cpu=False) | {"VLLM_NO_USAGE_STATS": "1"}
    if program := shutil.which("vllm", path=environment["PATH"]):
        say("serving", f"{run.name} on http://{serving.HOST}:{port}/v1, until Ctrl-C; {file} says how it is asked")
        sys.stdout.flush()
        sys.stderr.flush()
        os.execve(program, found["command"], environment)  # noqa: S606, its own process, which Ctrl-C reaches
    say("not run", f"vLLM is not installed here (pip install vllm); {file} holds the command and requests")
    return {**found, "file": str(file)}


def checked(name: str, merged: bool, port: int) -> tuple[Run, Facts]:
    """The run, and how it is served.

    Raises:
        InputError: With everything that stands in the way.
    """
    run = Run.open(name)
    facts, recipe = run.facts(), run.values()
    whole = merged or not recipe.get("use_peft")
    problems = [None if port <= 65535 else f"PORT={port}: a port is a number from 1 to 65535", rehearsed(run)]
    if whole:
        directory, problem = merge.product(run) if merged else merge.whole(run)
        problems.append(problem)
    else:
        problems.append(adapter_damage(run))
    if not whole:
        problems += [
            f"vLLM cannot serve this adapter: {why}; merge it (make merge RUN={name}) and serve it with MERGED=1"
            for why in serving.refused(recipe)
        ]
    refuse(problems)
    identity.check(run)
    if whole:
        return run, serving.served(run, adapter=None, base=str(directory), tokenizer=directory, port=port)
    base, revision = recipe["model_name_or_path"], None
    if not Path(base).expanduser().exists():
        # The commit that was trained on, which a branch may have left since.
        known = (facts.get("identity") or {}).get("base") or {}
        revision = known.get("commit") or recipe.get("model_revision", "main")
    adapter = str(run.adapter)
    return run, serving.served(run, adapter=adapter, base=base, tokenizer=run.adapter, revision=revision, port=port)
