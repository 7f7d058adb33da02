"""The run directory: what is written, by whom, and whether the adapter can be trusted."""

import contextlib
import datetime
import fcntl
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sft_recipes.errors import InputError, did_you_mean
from sft_recipes.files import digest_of, write_whole
from sft_recipes.recipes import recipe as recipes

RUNS = Path("runs")
# The version of run.json, log.jsonl and manifest.json; it grows when a reader of today would misread them.
SCHEMA = 1


class Run:
    """One directory below `runs/`: recipe.yaml, accelerate.yaml, run.json, log.jsonl and what training writes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.recipe = directory / "recipe.yaml"
        self.accelerate = directory / "accelerate.yaml"
        self.log = directory / "log.jsonl"
        self.adapter = directory / "adapter"
        self.curve = directory / "loss.png"
        self.report = directory / "report.html"
        self.stop = directory / "stop"
        """Exists while the run is asked to save and stop at the next step."""

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
    def create(cls, name: str | None, recipe: str, runs: Path = RUNS) -> "Run":
        """A new directory: `name`, or the recipe's name and the time.

        Raises:
            InputError: The name exists already, or is no name.
        """
        now = datetime.datetime.now().astimezone()
        directory = cls.directory_of(f"{recipe}-{now:%Y%m%d-%H%M%S}" if name is None else name, runs)
        runs.mkdir(exist_ok=True)
        try:
            directory.mkdir()
        except FileExistsError:
            # Another command was faster.
            cls.directory_of(directory.name, runs)
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
        if directory.exists():
            raise InputError(
                f"{directory} exists and is never overwritten; choose another NAME=, or continue it with "
                f"make resume NAME={name}"
            )
        return directory

    @classmethod
    def open(cls, name: str | Path, runs: Path = RUNS) -> "Run":
        """An existing run by its name, or by its directory's path.

        Raises:
            InputError: There is none of that name.
        """
        if isinstance(name, Path) or "/" in name:
            if not cls(Path(name)).exists:
                raise InputError(f"{name} is no run's directory: it has no run.json")
            return cls(Path(name))
        if not recipes.NAME.fullmatch(name) or not (runs / name / "run.json").is_file():
            have = sorted(path.parent.name for path in runs.glob("*/run.json"))
            raise InputError(
                f"no run {name!r} in {runs}/; there are {', '.join(have) or 'none'}{did_you_mean(name, have)}"
            )
        return cls(runs / name)

    def facts(self) -> dict[str, Any]:
        """What run.json holds now."""
        return json.loads((self.directory / "run.json").read_text(encoding="utf-8"))

    def write(self, facts: dict[str, Any]) -> None:
        """Replace run.json as a whole, so that a reader never sees half of it."""
        write_whole(self.directory / "run.json", json.dumps({"schema": SCHEMA, **facts}, indent=2, default=str) + "\n")

    def update(self, **facts: Any) -> None:
        """Set some facts of run.json and keep the others."""
        self.write({**self.facts(), **facts})

    @contextlib.contextmanager
    def locked(self) -> Iterator[int]:
        """Hold the run for this process and those that inherit the descriptor given.

        The system releases the lock when the last of them has ended, however they end.

        Raises:
            InputError: Another process is training it.
        """
        with (self.directory / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise InputError(f"{self.directory} is in use by another process; wait for it, or stop it") from None
            yield lock.fileno()


def adapter_damage(run: Run) -> str | None:
    """Why the adapter of a run (or its whole model, where there is no adapter) cannot be trusted, or None.

    Compared with what training recorded in run.json, so that neither a damaged file nor the adapter of another run
    passes for this one's.
    """
    facts = run.facts()
    if facts["status"] != "finished":
        return f"the run is {facts['status']}, not finished"
    files = facts["measured"].get("saved")
    if not files:
        return "run.json holds no checksums of it; it was trained before they were recorded"
    return difference(run.adapter, [(name, file["bytes"], file["sha256"]) for name, file in files.items()])


def difference(directory: Path, files: list[tuple[str, int, str]]) -> str | None:
    """The first file, of (name, bytes, SHA-256), that is not as it should be."""
    for name, size, sha256 in files:
        path = directory / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
        with path.open("rb") as file:
            if digest_of(file).hexdigest() != sha256:
                return f"{name} does not match its checksum"
    return None
