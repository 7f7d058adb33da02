"""The run directory: what is written, by whom, and whether the adapter can be trusted."""

import datetime
import errno
import json
import os
import shutil
import signal
import uuid
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

from sft_recipes.errors import InputError, did_you_mean, refuse
from sft_recipes.files import difference, write_whole
from sft_recipes.recipes import recipe as recipes
from sft_recipes.recipes import secrets
from sft_recipes.runs import facts as shapes
from sft_recipes.runs import lock, provenance
from sft_recipes.runs.facts import MANIFEST, SCHEMA, TRANSITIONS

RUNS = Path("runs")
# Bytes that a run holds so that it can still say how it ended when the disk is full.
RESERVED = 64 * 1024


class Run:
    """One directory below `runs/`: recipe.yaml, accelerate.yaml, run.json, log.jsonl and what training writes.

    What reads a file raises an `InputError` that says what is missing, damaged, or no longer what was written.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.recipe = directory / "recipe.yaml"
        self.accelerate = directory / "accelerate.yaml"
        self.log = directory / "log.jsonl"
        self.adapter = directory / "adapter"
        self.curve = directory / "loss.png"
        self.report = directory / "report.html"
        self.output = directory / "output.log"
        """What was said when nobody could hear it any more, and tracebacks."""
        self.stop = directory / "stop"  # exists while the run is asked to save and stop at the next step
        self.reserve = directory / ".reserve"  # holds a little space of the disk

    @property
    def name(self) -> str:
        return self.directory.name

    @property
    def exists(self) -> bool:
        """Whether it has begun: whether there is a run.json."""
        return (self.directory / "run.json").is_file()

    def metrics(self, split: str) -> Path:
        """Where the metrics of an evaluation lie; those of the test rows have the plain name."""
        return self.directory / ("metrics.json" if split == "test" else f"metrics-{split}.json")

    def predictions(self, split: str) -> Path:
        """Where the predictions of an evaluation lie."""
        return self.directory / ("predictions.jsonl" if split == "test" else f"predictions-{split}.jsonl")

    def evaluated(self) -> str | None:
        """The split whose evaluation stands for the run: test, else validation, else another one; None without any."""
        others = sorted(path.stem.partition("-")[2] for path in self.directory.glob("metrics-*.json"))
        return next((split for split in ("test", "validation", *others) if self.metrics(split).is_file()), None)

    @classmethod
    def create(
        cls, name: str | None, recipe: str, contents: Callable[[Path], Mapping[str, str]], runs: Path = RUNS
    ) -> "Run":
        """A new directory with all its first files, which is there as a whole or not at all.

        Args:
            name: of the run; the recipe's name and the time without it.
            contents: gives the text of each file, told the directory that it is to be.

        Raises:
            InputError: The name exists already, or is no name; or nothing can be written there.
        """
        now = datetime.datetime.now().astimezone()
        directory = cls.directory_of(f"{recipe}-{now:%Y%m%d-%H%M%S}" if name is None else name, runs)
        files = contents(directory)
        staging = runs / f".{directory.name}.{uuid.uuid4().hex}"
        try:
            runs.mkdir(exist_ok=True)
            staging.mkdir()
            for file, text in files.items():
                write_whole(staging / file, text)
            cls(staging)._hold_space()
            staging.rename(directory)
        except OSError as error:
            # Another command may have been faster.
            cls.directory_of(directory.name, runs)
            raise InputError(f"{directory} cannot be made: {error.strerror}; nothing is left of it") from None
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return cls(directory)

    @staticmethod
    def directory_of(name: str, runs: Path = RUNS) -> Path:
        """Where a new run of that name will be.

        Raises:
            InputError: The name exists already, or is no name.
        """
        if not recipes.NAME.fullmatch(name):
            raise InputError(f"NAME={name!r} is no run name: letters, digits, '_', '-' and '.' only")
        directory = runs / name
        if os.path.lexists(directory):
            raise InputError(
                f"{directory} exists and is never overwritten; choose another NAME=, or if it has not finished, "
                f"continue it with make resume NAME={name}"
            )
        return directory

    @classmethod
    def open(cls, name: str | Path, runs: Path = RUNS) -> "Run":
        """An existing run by its name, or by its directory's path.

        Raises:
            InputError: There is none of that name, or what is in it lies elsewhere.
        """
        if isinstance(name, Path) or "/" in name:
            if not cls(Path(name)).exists:
                raise InputError(f"{name} is no run's directory: it has no run.json")
            return cls(Path(name))._inside()
        if not recipes.NAME.fullmatch(name) or not (runs / name / "run.json").is_file():
            have = sorted(path.parent.name for path in runs.glob("*/run.json"))
            raise InputError(
                f"no run {name!r} in {runs}/; there are {', '.join(have) or 'none'}{did_you_mean(name, have)}"
            )
        return cls(runs / name)._inside()

    def _inside(self) -> "Run":
        """The run itself, none of whose links lead out of its directory, where its files are written and deleted."""
        root = self.directory.resolve()
        found = (Path(folder, name) for folder, *names in os.walk(root) for name in [*names[0], *names[1]])
        refuse(
            f"{self.directory / path.relative_to(root)} is a link to {path.readlink()}, out of the run's directory; "
            "put what it leads to in its place, or delete it"
            for path in found
            if path.is_symlink() and not path.resolve().is_relative_to(root)
        )
        return self

    def facts(self) -> dict[str, Any]:
        """What run.json holds now, of the shape of `facts.RUN`."""
        remedy = "put the file back from a copy, or start a new run"
        return shapes.read(self.directory / "run.json", shapes.RUN, remedy)

    def values(self) -> dict[str, Any]:
        """The resolved recipe in upstream's keys, as recipe.yaml holds it."""
        return {key: item.value for key, item in shapes.read_recipe(self.recipe).items()}

    def log_entries(self) -> list[dict[str, Any]]:
        """What was logged so far."""
        return shapes.read_log(self.log)

    def evaluation(self, split: str) -> dict[str, Any]:
        """The metrics of a split, of the shape of `facts.METRICS`."""
        again = self._evaluated_by(self.metrics(split), split)
        written = self.facts().get("evaluated", {}).get(split, {})
        if damaged := difference(self.directory, written):
            raise InputError(f"{self.directory} is not as it was evaluated: {damaged}; make it anew: {again}")
        return shapes.read(self.metrics(split), shapes.METRICS, f"make it anew: {again}")

    def predicted(self, split: str) -> list[dict[str, Any]]:
        """The predictions of a split, row by row."""
        path = self.predictions(split)
        return shapes.read_lines(path, f"make it anew: {self._evaluated_by(path, split)}")

    def _evaluated_by(self, path: Path, split: str) -> str:
        """The command that makes a file of an evaluation anew; an `InputError` with it where there is none."""
        again = f"make evaluate RUN={self.name}" + ("" if split == "test" else f" SPLIT={split}")
        if not path.is_file():
            raise InputError(f"{self.name} is not evaluated on {split} (no {path.name}); {again}")
        return again

    def write(self, facts: dict[str, Any]) -> None:
        """Replace run.json as a whole, so that a reader never sees half of it, and keep the journal of its status.

        Where the disk is full, what was not written to its end makes room for it.

        Raises:
            InputError: It cannot be written.
            RuntimeError: A run of this status cannot get that one; two have written, or this program is wrong.
        """
        before = self.facts() if self.exists else {}
        was, becomes = before.get("status"), facts["status"]
        if becomes != was:
            if becomes not in TRANSITIONS[was]:
                raise RuntimeError(f"{self.directory} is {was} and cannot become {becomes}: has another written it?")
            event = {"at": provenance.now(), "status": becomes, "step": self._step(facts)}
            facts = {**facts, "journal": [*facts.get("journal", before.get("journal", [])), event]}
        try:
            if becomes == "running" != was and not self.reserve.exists():
                self._hold_space()
            full = shutil.disk_usage(self.directory).free < RESERVED
            if full or not self._written(self._explained(facts, was)):
                self._make_room(becomes)
                write_whole(
                    self.directory / "run.json", as_json(self._explained({**facts, "disk_was_full": True}, was))
                )
        except OSError as error:
            raise InputError(
                f"{self.directory}/run.json cannot be written: {error.strerror}; it says what was so before. Make "
                f"room or give write access, then continue with: make resume NAME={self.name}"
            ) from None

    def _explained(self, facts: dict[str, Any], was: str | None) -> dict[str, Any]:
        """The facts with the reason why a run failed, which what failed need not know."""
        if not (facts["status"] == "failed" != was and facts.get("disk_was_full")):
            return facts
        reason = f"no space was left on the disk of {self.directory}; make room"
        return {**facts, "error": f"{reason}: {facts['error']}" if facts.get("error") else reason}

    def _make_room(self, status: str) -> None:
        """Delete what was not written to its end (checkpoints without a manifest, what a failed run trained), and let
        go of what is held for this.
        """
        unfinished = [path for path in self.directory.glob("checkpoint-*") if not (path / MANIFEST).exists()]
        for path in [*unfinished, *([self.adapter] if status == "failed" else [])]:
            shutil.rmtree(path, ignore_errors=True)
        self.reserve.unlink(missing_ok=True)

    def _hold_space(self) -> None:
        # Not zeros, which some file systems store as nothing.
        self.reserve.write_bytes(os.urandom(RESERVED))

    def _written(self, facts: Mapping[str, Any]) -> bool:
        """Write run.json, and say whether the disk had room for it."""
        try:
            write_whole(self.directory / "run.json", as_json(facts))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                return False
            raise
        return True

    def _step(self, facts: Mapping[str, Any]) -> int:
        """How many steps a run has when it gets the status that these facts say."""
        if facts["status"] == "running":
            return facts["resumed"][-1]["step"] if facts.get("resumed") else 0
        if facts["status"] != "failed" and "measured" in facts:
            return facts["measured"]["step"]
        with suppress(InputError):
            return max((entry["step"] for entry in self.log_entries()), default=0)
        return 0

    def update(self, **facts: Any) -> None:
        """Set some facts of run.json and keep the others."""
        self.write({**self.facts(), **facts})

    def fail(self, error: str, *, cause: bool = False, **facts: Any) -> bool:
        """Write down that a run has failed, if it is running, and say whether it was.

        Args:
            cause: what was written down before as the reason is only the consequence, and gives way.
        """
        was = self.facts()["status"]
        if fails := was == "running" or (cause and was == "failed"):
            self.update(status="failed", error=secrets.masked(error), **facts)
        return fails

    def killed(self, code: int, who: str) -> int:
        """Write down that a process was killed, if its exit code says so; gives the code as a shell has it.

        Args:
            code: As `subprocess` has it, the negative number of a signal where one has ended the process.
            who: The process, as a sentence begins with it.
        """
        if code >= 0:
            return code
        name = str(-code)
        with suppress(ValueError):
            name = signal.Signals(-code).name
        why = "; where nobody did it, the system was out of memory: see dmesg" if -code == signal.SIGKILL else ""
        # What the other processes then miss is only the consequence.
        self.fail(f"{who} was killed by {name}{why}", cause=True)
        return 128 - code

    def locked(self, machine: int = 0) -> AbstractContextManager[int]:
        """Hold the run, as `lock.hold` says."""
        return lock.hold(self.directory, machine)


def begun(facts: Mapping[str, Any]) -> str:
    """The text of the first run.json of a run."""
    first = {"at": provenance.now(), "status": "running", "step": 0}
    return as_json({**facts, "status": "running", "journal": [first]})


def as_json(facts: Mapping[str, Any]) -> str:
    """The text of a run.json."""
    return json.dumps({"schema": SCHEMA, **facts}, indent=2, default=str) + "\n"


def unfinished(run: Run) -> str | None:
    """That a run has not finished, and what to do about it; None for one that has."""
    facts = run.facts()
    status, again = facts["status"], f"finish it first: make resume NAME={run.name}"
    if status == "finished":
        return None
    if status == "running":
        if lock.held(run.directory):
            return f"{run.directory} is being trained; wait for it"
        return f"{run.directory} was killed before it had finished; {again}"
    if facts.get("diverged"):
        return f"{run.directory} has diverged and left nothing to use; start a new run with other values"
    return f"{run.directory} is {status}, not finished; {again}"


def rehearsed(run: Run) -> str | None:
    """That a run is a rehearsal, whose model is of no use, and what to do instead; None for one in earnest."""
    if not run.facts().get("rehearsal"):
        return None
    return f"{run.directory} is a rehearsal, whose adapter belongs to a tiny random model; train first"


def adapter_damage(run: Run) -> str | None:
    """Why the adapter of a run (or the whole model where there is none) cannot be used, with a remedy, or None.

    Compared with what training recorded in run.json, so that neither a damaged file nor the adapter of another run
    passes for this one's.
    """
    facts = run.facts()
    if sentence := unfinished(run):
        return sentence
    files = facts.get("measured", {}).get("saved")
    if not files:
        return f"{run.directory}/run.json holds no checksums of {run.adapter}, so it is not known; train the run again"
    found = difference(run.adapter, files)
    return found and f"{run.adapter} is not what was trained: {found}; put it back from a copy, or train the run again"
