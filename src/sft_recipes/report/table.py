"""One table for every form: lines for a terminal, Markdown, CSV, and HTML by the macro `table` of parts.html."""

import csv
import html
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from sft_recipes import terminal
from sft_recipes.terminal import visible


class Code(str):
    """A cell that is shown as code on a page."""

    __slots__ = ()


@dataclass(frozen=True)
class Estimate:
    """A value with its interval, where it has one; `sign` is `+` where a plus is to be shown."""

    value: float
    low: float | None = None
    high: float | None = None
    sign: str = ""

    @classmethod
    def of(cls, found: Mapping[str, Any] | None, sign: str = "") -> Self | None:
        """What metrics.json holds as `value`, `low` and `high`; None where there is no value."""
        if found is None or found["value"] is None:
            return None
        return cls(found["value"], found["low"], found["high"], sign)

    def __str__(self) -> str:
        value, *ends = (f"{each:{self.sign}.3f}" for each in (self.value, self.low, self.high) if each is not None)
        return f"{value} ({' to '.join(ends)})" if ends else value


Cell = str | int | Estimate | None


@dataclass(frozen=True)
class Table:
    """Rows whose first cell names them.

    Args:
        header: one name a column; empty for no header.
        rows: cells; None where there is no value.
        kind: `numbers`, or `words` for what is read from the left.
        subject: what its lines are labelled with in a terminal.
        sentences: what it comes to, said before it.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    kind: str = "numbers"
    subject: str = ""
    sentences: Sequence[str] = ()


def pairs(title: str, values: Mapping[str, Cell]) -> Table:
    """A table of values by name."""
    return Table(title, [], [[name, value] for name, value in values.items()], "words")


def shown(cell: Any) -> str:
    """A cell as text."""
    if cell is None:
        return "\N{EN DASH}"
    return f"{cell:,}" if isinstance(cell, int) else str(cell)


def number(value: float, sign: str = "") -> str:
    """A figure with three decimals, as it is set on a page."""
    return f"{value:{sign}.3f}".replace("-", "\N{MINUS SIGN}")


def p_value(p: float) -> str:
    """`p 0.013`, or `p < 0.001`."""
    return f"p {p:.3f}" if p >= 0.001 else "p < 0.001"


def p_values(test: Mapping[str, Any], *keys: str) -> list[Cell]:
    """The p-values of a test as cells, empty where nothing was tested."""
    return [None if test.get(key) is None else f"{test[key]:.2g}" for key in keys]


def lines(table: Table) -> list[str]:
    """The table for a terminal, each cell on one line and without control characters."""
    rows = [[one_line(shown(cell)) for cell in row] for row in [table.header, *table.rows]]
    return [*map(one_line, table.sentences), *terminal.table(rows, indent=terminal.LABEL + 1).splitlines()]


def markdown(table: Table) -> str:
    """The table as Markdown."""
    rows = [[markdown_text(cell) for cell in row] for row in [table.header, *table.rows]]
    rows.insert(1, ["---"] * len(table.header))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of equal or different keys as CSV; numbers are whole, and an empty cell is what is not known."""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _no_formula(value) for key, value in row.items()} for row in rows)
    return file.getvalue()


def _no_formula(value: Any) -> Any:
    """Text that a spreadsheet would compute gets an apostrophe (owasp.org/www-community/attacks/CSV_Injection)."""
    formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
    return f"'{value}" if formula and not re.fullmatch(r"[+-]?[\d.]+(e[+-]?\d+)?", value) else value


def markdown_text(value: Any) -> str:
    """Anybody's text as one line of Markdown that is text and nothing else."""
    escaped = html.escape(one_line(shown(value)), quote=False)
    # An underscore within a word emphasises nothing.
    return re.sub(r"[\\`*\[\]|~#]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", escaped)


def one_line(text: str) -> str:
    """Text on one line, with everything that does not print written as its escape."""
    return visible(text).replace("↵\n", "\\n")
