"""What can be wrong with the input, and how it is said."""

import difflib
from collections.abc import Iterable
from typing import Any


class InputError(Exception):
    """The recipe, data, topology or a name is wrong: for the person who wrote it, never with a traceback.

    Args:
        problems: one message each: what is wrong, where, and what to write instead. All that were found.
    """

    def __init__(self, *problems: str) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(problems))


def refuse(problems: Iterable[object]) -> None:
    """Nothing where there are no problems; None is none.

    Raises:
        InputError: With all of them.
    """
    if found := [str(problem) for problem in problems if problem is not None]:
        raise InputError(*found)


class RunStopped(Exception):
    """A run did not come to its end; `run` is what there is of it.

    Args:
        message: what happened, and how to go on.
    """

    def __init__(self, message: str, run: Any) -> None:
        self.run = run
        super().__init__(message)


class TrainingFailed(RunStopped):
    """A training failed while it ran."""


class EvaluationFailed(RunStopped):
    """A run was trained, and what followed its training failed."""


class Interrupted(RunStopped):
    """A training or an evaluation was stopped, and can go on."""


def shown(value: Any) -> str:
    """What a field holds, short enough for a message."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return f"the number {value}"
    if isinstance(value, list):
        return f"a list of {len(value)}" if value else "an empty list"
    if isinstance(value, str):
        return f"the string {value!r}" if len(value) <= 40 else f"the string {value[:40]!r}..."
    return "an object" if isinstance(value, dict) else f"a {type(value).__name__}"


def listed(names: Iterable[str]) -> str:
    """Names in quotes, short enough for a message: long ones are cut, and after twenty the others are counted."""
    quoted = [repr(name) if len(name) <= 60 else f"{name[:60]!r}..." for name in names]
    more = f" and {len(quoted) - 20} more" if len(quoted) > 20 else ""
    return ", ".join(quoted[:20]) + more


def closest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """The one of those known that is most like a name; empty if none is like it."""
    return next(iter(difflib.get_close_matches(name, list(known), 1, cutoff)), "")


def nearest(name: str, known: Iterable[str]) -> str:
    """The one of those known that a name may have meant, to be put behind it."""
    near = closest(name, known)
    return f" (nearest: {near!r})" if near else ""


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """A hint for the end of a sentence that refuses a name; empty if nothing known is like it."""
    near = closest(name, known, cutoff)
    return f"; did you mean {near}?" if near else ""


def hub_reason(error: Exception) -> str:
    """Why the Hub did not answer, and what to look at."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"{reason.rstrip('.')}. Check the network, HF_ENDPOINT, and HF_TOKEN for a gated model"
