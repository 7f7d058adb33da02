"""The scoring process (`scoring.py`) from outside: what it is asked, and how it ended. No torch here."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sft_recipes.children import Spare
from sft_recipes.environment import quiet_environment
from sft_recipes.errors import InputError
from sft_recipes.files import write_whole
from sft_recipes.recipes import arguments, topology
from sft_recipes.recipes.task import Task
from sft_recipes.runs.run import Run


def prepare(
    work: Path, run: Run, task: Task, longest_answers: Sequence[str], prompts: Iterable[Any], fingerprint: str
) -> None:
    """Write what the process reads; what was answered to another fingerprint, or by another adapter, is thrown away.

    Args:
        longest_answers: Of the training rows, to know how long an answer can be.
        prompts: Numbered from 1 in this order.
        fingerprint: Of everything that decides what the answers mean.
    """
    job = {
        "recipe": run.values(),
        "tuned": str(run.adapter),
        "on_cpu": topology.no_gpu(),
        "by": task.by,
        "candidates": task.candidates or None,
        "max_new_tokens": task.max_new_tokens,
        "longest_answers": list(longest_answers),
        "fingerprint": fingerprint,
        "saved": run.facts()["measured"]["saved"],
    }
    path = work / "job.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if any(before.get(key) != job[key] for key in ("fingerprint", "saved")):
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
    lines = (json.dumps({"row": number, "prompt": prompt}) + "\n" for number, prompt in enumerate(prompts, 1))
    write_whole(work / "rows.jsonl", "".join(lines))
    write_whole(path, json.dumps(job, indent=1))


def score(
    work: Path,
    models: Sequence[str],
    lock: int,
    earlier: Path | None = None,
    meanwhile: Callable[[], object] | None = None,
) -> int:
    """Let the models answer the rows that they have not answered yet.

    Args:
        models: of base, earlier and tuned.
        lock: The descriptor of the run's lock, which the process keeps even if this one is killed.
        earlier: The adapter that the run continued from.
        meanwhile: What this process can do until the other one has imported its libraries, on one core.

    Returns:
        0 when all is answered; 1 when that failed and 3 when it was interrupted, what was answered being kept.

    Raises:
        InputError: The process cannot do what it is asked.
    """
    asked = {"models": list(models), "earlier": str(earlier) if earlier else None}
    job = json.loads((work / "job.json").read_text(encoding="utf-8")) | asked
    write_whole(work / "job.json", json.dumps(job, indent=1))
    return ask("sft_recipes.evaluate.scoring_process", work, lock, job, meanwhile)


def ask(
    module: str,
    work: Path,
    lock: int,
    job: Mapping[str, Any],
    meanwhile: Callable[[], object] | None = None,
) -> int:
    """Let a module with torch in it do the job that lies in a directory, in a process of its own.

    That is the spare one of the training that has just ended, where there is one, and otherwise a new one.

    Returns, Raises:
        As `score`; the module writes `answer.json` with `problems` where it cannot do what it is asked.
    """
    answer = work / "answer.json"
    answer.unlink(missing_ok=True)
    command = [sys.executable, "-m", module, str(work)]
    environment = quiet_environment(on_cpu=job["on_cpu"], compiles=arguments.compiles(job["recipe"]))
    if job["on_cpu"]:
        # As in training: a sum can round otherwise on other threads, and it is one process that may do both.
        environment.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))
    spare = Spare.start(work.parent, module, [str(work)], environment, lock)
    process = spare or subprocess.Popen(command, env=environment, pass_fds=(lock,))
    try:
        if meanwhile:
            meanwhile()
        code = process.wait()
    except KeyboardInterrupt:
        if spare:
            spare.stop()
        process.wait()
        return 3
    if answer.is_file():
        raise InputError(*json.loads(answer.read_text(encoding="utf-8"))["problems"])
    return 3 if code == -signal.SIGINT else code if code in (0, 3) else 1
