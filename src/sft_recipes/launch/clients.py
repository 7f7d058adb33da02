"""An engine's own client program: whether it is here, and what it says of a job that it is given."""

import dataclasses
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from sft_recipes.errors import InputError

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclasses.dataclass(frozen=True)
class Trials:
    """Trials of a sweep that one job trains."""

    stem: str  # their runs are STEM-t000, STEM-t001 and so on
    numbers: Sequence[int]
    at_a_time: int | None  # as many as there is room for without it

    @property
    def names(self) -> list[str]:
        return [trial_name(self.stem, number) for number in self.numbers]


def trial_name(stem: str, number: int) -> str:
    """The name of a trial's run."""
    return f"{stem}-t{number:03}"


def size_in_bytes(given: str) -> int:
    """An amount of memory as `memory_per_node` says it, in powers of 1024: a number of M without a letter."""
    number, letter = given.rstrip("KMGT"), given.lstrip("0123456789") or "M"
    return int(number) * 1024 ** ("KMGT".index(letter) + 1)


def stated(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the values that say something."""
    return {key: value for key, value in values.items() if value not in (None, [], {})}


def missing(program: str, otherwise: str) -> Iterator[str]:
    """That a client is not here, with what to do instead."""
    if not shutil.which(program):
        yield f"{program} is not in PATH; {otherwise}, or write the job alone with DRY=1"


def answered(*command: str) -> subprocess.CompletedProcess[str]:
    """What a client answers, without colours."""
    done = subprocess.run(command, capture_output=True, text=True)
    done.stdout, done.stderr = (_COLOUR.sub("", said) for said in (done.stdout, done.stderr))
    return done


def submitted(engine: str, command: Sequence[str], reason: Callable[[str], str] = str) -> str:
    """What a client prints when it has taken a job.

    Args:
        engine: Whose it is, in words.
        reason: What of its error output says why a job is refused.

    Raises:
        InputError: It refuses the job, and says why.
    """
    done = answered(*command)
    if done.returncode:
        said = " ".join((reason(done.stderr) or done.stdout).split()) or f"code {done.returncode}"
        raise InputError(f"{engine} refuses the job: {said}; nothing was submitted")
    return done.stdout


def number_of(engine: str, pattern: re.Pattern[str], printed: str, see: str) -> str:
    """The number of a job in what a client has printed.

    Raises:
        InputError: It named none; `see` is the command that lists the jobs.
    """
    found = pattern.search(printed)
    if found is None:
        raise InputError(f"{engine} took the job and named no number: {' '.join(printed.split())}; see {see}")
    return found[1]
