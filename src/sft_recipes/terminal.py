"""How a run speaks: one line a decision, and numbers as people write them."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator


def say(label: str, text: str) -> None:
    """Print one decision: what it is about, then what was decided. Continuation lines are indented."""
    first, *rest = text.splitlines()
    print(f"{label:<10} {first}", flush=True)
    for line in rest:
        print(f"{'':<10} {line}", flush=True)


def count(number: int, noun: str) -> str:
    """`1 row`, `2,480 rows`, `4 processes`."""
    return f"{number:,} {noun}{'' if number == 1 else 'es' if noun.endswith('s') else 's'}"


def share(part: float, whole: float) -> str:
    """A share in percent, with a decimal where it is small: `3.4 %`, `71 %`."""
    percent = 100 * part / whole if whole else 0.0
    return f"{percent:.1f} %" if percent < 10 else f"{percent:.0f} %"


def duration(seconds: float) -> str:
    """`48 s`, `12 min 5 s`, `3 h 20 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def visible(text: str) -> str:
    """The text with line ends marked and every other character that does not print written as its escape.

    Rows are anybody's text: what would move the cursor, reverse the reading direction or hide must not reach a
    terminal.
    """
    return "".join(
        "↵\n" if char == "\n" else char if char.isprintable() else char.encode("unicode_escape").decode()
        for char in text
    )


@contextlib.contextmanager
def counting_rows(label: str = "reading", of: int | None = None) -> Iterator[Callable[[int], None]]:
    """Shows how many rows have been done, once that takes longer than a second and somebody is looking."""
    shown, began = False, time.monotonic()

    def show(rows: int) -> None:
        nonlocal shown
        if sys.stderr.isatty() and time.monotonic() - began > 1:
            shown = True
            done = f"{rows:,}" if of is None else f"{rows:,} of {of:,}"
            print(f"\r{label:<10} {done} rows", end="", file=sys.stderr, flush=True)

    yield show
    if shown:
        print("\r\033[K", end="", file=sys.stderr, flush=True)
