"""How a run speaks: one line a decision, folded and coloured on a terminal and plain in a pipe, and numbers.

Whatever is printed goes through here, where characters that do not print become visible: descriptions, file names and
labels are anybody's text, and must not move the cursor, reverse the reading direction or hide anything.
"""

import contextlib
import io
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

STYLES = {"blocking": "bold red", "warning": "yellow", "info": "cyan", "verdict": "bold"}
LABEL = 10
GIB = 2**30
# The colours that `table` and a preview give, which no text of others gets this far with.
_COLOUR = re.compile("(\x1b\\[[0-9;]*m)")


_spelling: Callable[[str], str] = str


def spelt_by(spelling: Callable[[str], str]) -> None:
    """Have what is said, which names commands as make has them, spelt for whoever listens."""
    global _spelling
    _spelling = spelling


def say(label: str, text: str) -> None:
    """Print one decision: what it is about, then what was decided. Continuation lines are indented."""
    label, text = printable(label), printable(_spelling(text))
    if console := _console():
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(padding=(0, 1, 0, 0))
        grid.add_column(min_width=LABEL, no_wrap=True)
        grid.add_column(overflow="fold")
        grid.add_row(Text(label, style=STYLES.get(label, "dim")), Text(text))
        console.print(grid)
        return
    print(plain(label, text), flush=True)


def plain(label: str, text: str) -> str:
    """One decision as a pipe gets it."""
    return f"{label:<{LABEL}} " + text.removesuffix("\n").replace("\n", f"\n{'':<{LABEL}} ")


def print_lines(lines: str | Iterable[tuple[str, str]]) -> None:
    """Print a whole text, or what `say` takes line by line."""
    if isinstance(lines, str):
        parts = _COLOUR.split(lines) if in_colour() else [lines]
        print("".join(part if index % 2 else printable(part) for index, part in enumerate(parts)))
        return
    for label, text in lines:
        say(label, text)


def say_error(text: str) -> None:
    """Print what is wrong, to those who read errors."""
    print(f"error: {printable(_spelling(text))}", file=sys.stderr)


def table(rows: Sequence[Sequence[str]], *, indent: int = 0) -> str:
    """Rows in columns as wide as their longest cell; on a terminal, cells are folded to fit it beside an indent."""
    rows = [[printable(cell) for cell in row] for row in rows]
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


def gib(size: float, digits: int = 1) -> str:
    """Bytes in GiB: `5.2 GiB`."""
    return f"{size / GIB:.{digits}f} GiB"


def printable(text: str) -> str:
    """The text with every character but line ends that does not print written as its escape."""
    if text.isprintable():
        return text
    return "".join(
        char if char == "\n" or char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def visible(text: str) -> str:
    """The same, with line ends marked, as the rows of data are shown."""
    return printable(text).replace("\n", "↵\n")


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


def is_file(stream: Any) -> bool:
    """Whether what is written to a stream goes to a file of the system's.

    A notebook's does not, and Jupyter's names one nevertheless: the server's own output.
    """
    with contextlib.suppress(OSError, ValueError):
        return isinstance(stream, io.TextIOWrapper) and stream.fileno() >= 0
    return False


def _outliving(stream: Any, log: Path | None) -> Any:
    if not is_file(stream):
        return stream
    raw, before = _Outliving(stream.fileno(), log), getattr(stream.buffer, "raw", None)
    if isinstance(before, _Outliving) and before.lost:
        raw.lose()
    return io.TextIOWrapper(io.BufferedWriter(raw), stream.encoding, stream.errors, line_buffering=True)


class _Outliving(io.RawIOBase):
    """A descriptor that is replaced by a file when it cannot be written to any more."""

    def __init__(self, descriptor: int, log: Path | None) -> None:
        self._descriptor, self._log = descriptor, log
        self.lost = False

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
            self.lose()
            return os.write(self._descriptor, data)

    def lose(self) -> None:
        """Put the file in the place of the descriptor, so that what other processes are given is alive too."""
        self.lost = True
        try:
            self._replace(self._log or Path(os.devnull))
        except OSError:
            self._replace(Path(os.devnull))

    def _replace(self, path: Path) -> None:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, self._descriptor)
        os.close(file)
