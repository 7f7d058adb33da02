"""What one section of the benchmark has found, on the disk after each measurement, within its time."""

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from sft_recipes.errors import InputError
from sft_recipes.files import write_whole


class Section:
    """Measurements of one section; its file is valid JSON at every moment, whenever the process is stopped."""

    def __init__(self, path: Path, seconds: float) -> None:
        self.path = path
        self.deadline = time.monotonic() + seconds
        self.measurements: list[dict[str, Any]] = []
        self.failures: list[dict[str, str]] = []  # what was tried and failed, by name, with the error
        self.refused: list[dict[str, str]] = []  # what cannot be had here, by name, with the reason
        self.left_out: list[str] = []  # what there was no time for: until it is measured, everything
        self._longest = 0.0
        self._write()

    @property
    def left(self) -> float:
        """Seconds until the section must end."""
        return self.deadline - time.monotonic()

    def plan(self, names: Iterable[str]) -> None:
        """Say what will be measured, so that the file of a section that is cut off names what it lacks."""
        self.left_out = list(names)
        self._write()

    def measure(
        self, name: str, work: Callable[[], dict[str, Any]], *, expected: float | None = None
    ) -> dict[str, Any] | None:
        """Keep what `work` finds under a name; None if it was refused, failed, or there was no time for it.

        Args:
            work: Gives the measurement's facts. An InputError is a refusal, another exception a failure.
            expected: Seconds it will take; without it, as many as the longest so far.
        """
        if self.left < (self._longest if expected is None else expected):
            return None
        began = time.monotonic()
        found = None
        try:
            found = {"name": name, **work()}
            self.measurements.append(found)
        except InputError as error:
            self.refuse(name, " ".join(error.problems))
        except Exception as error:
            self.failures.append({"name": name, "error": _short(f"{type(error).__name__}: {error}")})
        self._done(name)
        seconds = time.monotonic() - began
        self._longest = max(self._longest, seconds)
        self._write()
        return found

    def refuse(self, name: str, reason: str) -> None:
        """Say why something is not measured here."""
        self.refused.append({"name": name, "reason": _short(reason)})
        self._done(name)
        self._write()

    def _done(self, name: str) -> None:
        self.left_out = [each for each in self.left_out if each != name]

    def _write(self) -> None:
        facts = {
            "measurements": self.measurements,
            "refused": self.refused,
            "failed": self.failures,
            "left_out": self.left_out,
        }
        write_whole(self.path, json.dumps(facts, indent=1) + "\n")


def _short(text: str) -> str:
    """The message without the pages that some libraries add to it."""
    plain = " ".join(text.split())
    return plain if len(plain) <= 500 else f"{plain[:500]}..."
