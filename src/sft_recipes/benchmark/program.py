"""The benchmark as a command: sections in order of worth within a budget of seconds, into one file of results.

This process measures nothing and imports no torch. It gives a worker one section at a time, takes what the worker has
written when the section's time is over, and writes the whole result after each; so whatever ends it, the file holds
every section that had ended.
"""

import hashlib
import json
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sft_recipes import children
from sft_recipes.benchmark import BUDGET, RESULTS
from sft_recipes.benchmark.scale import RATIOS, SECTIONS, SHARES
from sft_recipes.demo import demo_base
from sft_recipes.environment import quiet_environment
from sft_recipes.errors import InputError
from sft_recipes.files import write_whole
from sft_recipes.launch import launch
from sft_recipes.launch.processes import signals_taken
from sft_recipes.recipes import recipe as recipes
from sft_recipes.recipes import topology
from sft_recipes.recipes.shipped import located
from sft_recipes.runs import provenance
from sft_recipes.terminal import count, duration, gib, say

SCHEMA = 1
# What the commands of a section read of a project, and find in the folder that they run in.
READ = ("recipes", "models", "accelerate_configs", "data/demo")
RECIPES = ("default", "demo")
# What a worker has after its time to write its last file; it writes after each measurement.
GRACE = 2.0


def benchmark(budget: float = BUDGET, out: Path = RESULTS, only: Sequence[str] = ()) -> tuple[int, Path]:
    """Measure this machine, and write what was found to a new file in `out`.

    Returns:
        The exit code (0 measured, 1 nothing was measured, 3 stopped before the end) and the file.

    Raises:
        InputError: There is no such section, no recipe to measure with, or the budget is none.
    """
    chosen = _chosen(only)
    if budget < 10:
        raise InputError(f"BUDGET={budget:g}: a budget of less than 10 s measures nothing; the default is {BUDGET}")
    fingerprints = {name: _fingerprint(name) for name in RECIPES}
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="sft-recipes-benchmark-") as scratch:
        worker = Worker(Path(scratch))
        with signals_taken(worker.stop):
            _project(worker.work)
            try:
                facts, path = _measure(chosen, fingerprints, budget, began, out, worker)
            finally:
                worker.kill()
    conclude(facts, path, chosen)
    if worker.stopped:
        return launch.INTERRUPTED, path
    measured = any(section["measurements"] for section in facts["sections"].values())
    return launch.FINISHED if measured else launch.FAILED, path


def _chosen(only: Sequence[str]) -> list[str]:
    known = (*SECTIONS, RATIOS)
    unknown = [name for name in only if name not in known]
    if unknown:
        raise InputError(f"ONLY={unknown[0]}: there is no such section; there are {', '.join(known)}")
    return [name for name in known if name in (only or SECTIONS)]


def _project(work: Path) -> None:
    """The folder that everything runs in: the project's recipes and data as they are, and nothing of its runs."""
    for name in READ:
        shutil.copytree(located(name), work / name)
    base = demo_base.DIRECTORY
    if base.is_dir():
        shutil.copytree(base, work / base)


def _measure(
    chosen: list[str], fingerprints: dict[str, str], budget: float, began: float, out: Path, worker: "Worker"
) -> tuple[dict[str, Any], Path]:
    found = worker.ask({"section": "facts", "work": str(worker.work)}, budget / 2)
    if found is None:
        raise InputError(f"the machine cannot be described: {worker.last_words()}")
    hardware = found["hardware"]
    if hardware["kind"] == "cpu" and any(gpu.name.startswith("NVIDIA") for gpu in topology.visible_gpus()):
        raise InputError(topology.UNSEEN_GPU)
    path = _file(out, hardware["name"])
    facts: dict[str, Any] = {
        "schema": SCHEMA,
        "date": time.strftime("%Y-%m-%d"),
        "hardware": hardware,
        "versions": provenance.versions(),
        "python": sys.version.split()[0],
        "git": provenance.git_state(),
        "recipes": fingerprints,
        "budget_seconds": budget,
        "seconds": 0.0,
        "status": "running",
        "sections": {},
    }
    shares = {RATIOS: 1, **SHARES[hardware["kind"]]}
    say("machine", f"{hardware['name']}, {gib(hardware['memory_bytes'], 0)}")
    for number, name in enumerate(chosen):
        left = budget - (time.monotonic() - began) - GRACE
        limit = left * shares[name] / sum(shares[each] for each in chosen[number:])
        if worker.stopped:
            break
        section = _section(name, limit, worker)
        facts["sections"][name] = section
        facts["seconds"] = round(time.monotonic() - began, 1)
        write_whole(path, json.dumps(facts, indent=1) + "\n")
        say(name, _said(section))
    facts["status"] = "interrupted" if worker.stopped else "complete"
    facts["seconds"] = round(time.monotonic() - began, 1)
    write_whole(path, json.dumps(facts, indent=1) + "\n")
    return facts, path


def _section(name: str, limit: float, worker: "Worker") -> dict[str, Any]:
    file = worker.work / f"{name}.json"
    began = time.monotonic()
    # Its own deadline is earlier, so that it can say itself what it leaves out.
    asked = {"section": name, "file": str(file), "seconds": max(0.0, limit - GRACE), "work": str(worker.work)}
    answer = worker.ask(asked, limit)
    section: dict[str, Any] = {"limit_seconds": round(limit, 1), "ended": "by itself"}
    if answer is None:
        section["ended"] = "stopped" if worker.stopped else "at its limit" if worker.alive() else worker.last_words()
        worker.kill()
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    empty: dict[str, Any] = {"measurements": [], "refused": [], "failed": [], "left_out": []}
    return {**section, "seconds": round(time.monotonic() - began, 1), **empty, **found}


class Worker:
    """The process that measures; started when it is asked something, and again after it was killed."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.stopped = False  # whether the benchmark was told to stop
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.Queue[str] = queue.Queue()

    def stop(self, number: int, frame: object) -> None:
        """Take a signal: what is asked is given up, and nothing more is begun."""
        self.stopped = True

    def ask(self, question: dict[str, Any], seconds: float) -> dict[str, Any] | None:
        """Its answer, or None if it ended, or took longer, or the benchmark was told to stop."""
        process = self._process
        if process is None or not self.alive():
            process = self._process = self._start()
        end = time.monotonic() + seconds
        try:
            print(json.dumps(question), file=process.stdin, flush=True)
        except BrokenPipeError:
            return None
        while time.monotonic() < end and not self.stopped:
            try:
                return json.loads(self._answers.get(timeout=0.1))
            except queue.Empty:
                if not self.alive() and self._answers.empty():
                    return None
        return None

    def _start(self) -> "subprocess.Popen[str]":
        shown = quiet_environment(on_cpu=topology.no_gpu(), one_gpu=True, compiles=True)
        # Builds of its own: one that is killed leaves a lock, for which all later trainings would wait.
        with (self.work / "worker.log").open("a", encoding="utf-8") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "sft_recipes.benchmark.worker"],
                cwd=self.work,
                env={**shown, "TORCH_EXTENSIONS_DIR": str(self.work / "torch_extensions")},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        answers: queue.Queue[str] = queue.Queue()
        self._answers = answers

        def listen() -> None:
            for line in process.stdout or ():
                answers.put(line)

        threading.Thread(target=listen, daemon=True).start()
        return process

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def last_words(self) -> str:
        """Why it ended, from the end of what it said."""
        log = self.work / "worker.log"
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.is_file() else []
        code = self._process.poll() if self._process else None
        return f"the measuring process ended with code {code}: {lines[-1] if lines else 'it said nothing'}"

    def kill(self) -> None:
        """End it and everything that it started."""
        if self._process is not None:
            children.kill(self._process)


def _file(out: Path, name: str) -> Path:
    """A new file: the date and the hardware, and a number where there is one of that name."""
    out.mkdir(parents=True, exist_ok=True)
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    stem = f"{time.strftime('%Y-%m-%d')}-{slug}"
    names = [f"{stem}.json", *(f"{stem}-{number}.json" for number in range(2, 1000))]
    return next(out / name for name in names if not (out / name).exists())


def _fingerprint(name: str) -> str:
    """SHA-256 of a recipe's values, with its base's."""
    recipe = recipes.load(name)
    values = {key: item.value for key, item in sorted(recipe.values.items())}
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()


def _said(section: dict[str, Any]) -> str:
    parts = [f"{count(len(section['measurements']), 'measurement')} in {duration(section['seconds'])}"]
    parts += [
        f"{len(section[key])} {words}"
        for key, words in (("refused", "refused"), ("failed", "failed"), ("left_out", "left out for lack of time"))
        if section[key]
    ]
    if section["ended"] != "by itself":
        parts.append(f"ended {section['ended']}" if section["ended"] == "at its limit" else section["ended"])
    return ", ".join(parts)


def conclude(facts: dict[str, Any], path: Path, chosen: Sequence[str]) -> None:
    """Say what was measured, what was not and why, and where the file is."""
    for each in facts["sections"].get(RATIOS, {}).get("measurements", []):
        say("holds" if each["holds"] else "missed", f"{each['what']}: {each['value']:,}, {each['bound']}")
    for name, section in facts["sections"].items():
        for each in section["failed"]:
            say("failed", f"{name}, {each['name']}: {each['error']}")
        for each in section["refused"]:
            say("refused", f"{name}, {each['name']}: {each['reason']}")
        if section["left_out"]:
            say("left out", f"{name}: {'; '.join(section['left_out'])}")
    missing = [name for name in chosen if name not in facts["sections"]]
    if missing:
        say("not begun", ", ".join(missing))
    measured = sum(len(section["measurements"]) for section in facts["sections"].values())
    say(
        "measured",
        f"{count(measured, 'measurement')} in {duration(facts['seconds'])} of {facts['budget_seconds']:g} s",
    )
    say("result", str(path))
