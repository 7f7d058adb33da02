"""How a run speaks: one line a decision, folded and coloured on a terminal and plain in a pipe, and numbers."""

import contextlib
import io
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

STYLES = {"blocking": "bold red", "warning": "yellow", "info": "cyan", "verdict": "bold"}
LABEL = 10


def say(label: str, text: str) -> None:
    """Print one decision: what it is about, then what was decided. Continuation lines are indented."""
    if console := _console():
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(padding=(0, 1, 0, 0))
        grid.add_column(min_width=LABEL, no_wrap=True)
        grid.add_column(overflow="fold")
        grid.add_row(Text(label, style=STYLES.get(label, "dim")), Text(text))
        console.print(grid)
        return
    first, *rest = text.splitlines()
    for line in [f"{label:<{LABEL}} {first}", *(f"{'':<{LABEL}} {line}" for line in rest)]:
        print(line, flush=True)


def print_lines(lines: str | Iterable[tuple[str, str]]) -> None:
    """Print a whole text, or what `say` takes line by line."""
    if isinstance(lines, str):
        print(lines)
        return
    for label, text in lines:
        say(label, text)


def table(rows: Sequence[Sequence[str]], *, indent: int = 0) -> str:
    """Rows in columns as wide as their longest cell; on a terminal, cells are folded to fit it beside an indent."""
    if console := _console():
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(padding=(0, 2, 0, 0))
        for _ in rows[0] if rows else ():
            grid.add_column(overflow="fold")
        for row in rows:
            grid.add_row(*(Text(cell, style=STYLES.get(cell, "")) for cell in row))
        console.width -= indent
        with console.capture() as captured:
            console.print(grid)
        return "\n".join(line.rstrip() for line in captured.get().splitlines())
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def in_colour() -> bool:
    """Whether somebody looks who has not asked for plain text (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def _console() -> "Console | None":
    """Where somebody looks at a terminal, what folds lines to its width; what is piped is left as it is."""
    if not sys.stdout.isatty():
        return None
    from rich.console import Console

    return Console(file=sys.stdout, color_system="auto" if in_colour() else None, highlight=False)


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


@contextlib.contextmanager
def outliving(log: Path | None = None) -> Iterator[None]:
    """What is printed never fails: once the terminal is closed or the reader of a pipe has gone, it goes to `log`.

    Args:
        log: is appended to; without it, what nobody reads is dropped. An inner one takes the place of an outer one's.
    """
    before = sys.stdout, sys.stderr
    try:
        sys.stdout, sys.stderr = (_outliving(stream, log) for stream in before)
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


def _outliving(stream: Any, log: Path | None) -> Any:
    # A notebook's or a test's is no file of the system's and does not close.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        raw = io.BufferedWriter(_Outliving(stream.fileno(), log))
        return io.TextIOWrapper(raw, stream.encoding, stream.errors, line_buffering=True)
    return stream


class _Outliving(io.RawIOBase):
    """A descriptor that is replaced by a file when it cannot be written to any more."""

    def __init__(self, descriptor: int, log: Path | None) -> None:
        self._descriptor, self._log = descriptor, log

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        try:
            return os.write(self._descriptor, data)
        except OSError:
            # In the place of the old one, so that what other processes are given is alive too.
            for path in (self._log, os.devnull):
                with contextlib.suppress(OSError, TypeError):
                    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)  # type: ignore[arg-type]
                    os.dup2(file, self._descriptor)
                    os.close(file)
                    return os.write(self._descriptor, data)
            return len(data)
