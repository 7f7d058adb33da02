"""Which rows, inputs and answers are there more than once, of any number of rows in memory of one size.

Of each row a few hashes are kept, in files. What is equal has equal hashes, so rows are compared by those alone whose
hashes have the same remainder, one remainder after the other.
"""

import heapq
import os
import tempfile
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypedDict, cast

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Examples kept of each problem.
EXAMPLES = 5
# Rows whose hashes are in memory at once, about 60 bytes each while they are compared.
AT_ONCE = 1 << 17
_BLOCK = 1 << 16

Pairs = tuple[int, list[list[int]]]


class RowsFound(TypedDict):
    """How many rows have something, and the first of them: each its number, or [its number, that of another row]."""

    count: int
    examples: list[Any]


class Hashes:
    """Hashes of rows, in a file for each thing that is compared; the files are gone when this is."""

    NAMES = ("row", "normalised_row", "input", "normalised_input", "answer")

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        # Beside the surveys: what is called temporary is kept in memory on many machines.
        made = {name: tempfile.TemporaryFile(dir=directory) for name in self.NAMES}  # noqa: SIM115, closed with this
        self._files = cast(dict[str, BinaryIO], made)
        self.rows = 0

    def extend(self, values: Mapping[str, "array[int]"]) -> None:
        """Add the hashes of rows, by what is compared of them."""
        for name, kept in values.items():
            self._files[name].seek(0, os.SEEK_END)
            kept.tofile(self._files[name])
        self.rows += len(values[self.NAMES[0]])

    def parts(self) -> int:
        """How many parts there have to be for each to have about `AT_ONCE` rows."""
        return 1 + self.rows // AT_ONCE

    def part(self, number: int, of: int, name: str, beside: str | None = None) -> "tuple[NDArray[np.int64], ...]":
        """The rows, counted from 0, whose hash has this remainder, their hashes, and those of something else."""
        import numpy as np

        found = [
            (start + chosen, values[chosen], other[chosen])
            for start, values, other in self._blocks(name, beside or name)
            if len(chosen := np.flatnonzero(values.view(np.uint64) % np.uint64(of) == number))
        ]
        return tuple(map(np.concatenate, zip(*found, strict=True))) if found else (np.zeros(0, np.int64),) * 3

    def _blocks(self, *names: str) -> Iterator[tuple[Any, ...]]:
        import numpy as np

        for start in range(0, self.rows, _BLOCK):
            blocks = []
            for name in names:
                self._files[name].seek(start * 8)
                blocks.append(np.frombuffer(self._files[name].read(_BLOCK * 8), np.int64))
            yield start, *blocks


def within(hashes: Hashes) -> dict[str, RowsFound]:
    """Rows that were there before, exactly and normalised, and inputs that were there before with another answer."""
    return {
        "duplicates": _found(_repeats(hashes, "row")),
        "normalised_duplicates": _found(_repeats(hashes, "normalised_row")),
        "contradictions": _found(_repeats(hashes, "input", "answer")),
    }


def _repeats(hashes: Hashes, name: str, other: str | None = None) -> Iterator[Pairs]:
    """Rows of each part that repeat an earlier one, or that do and differ from the first in something else."""
    import numpy as np

    for number in range(hashes.parts()):
        rows, values, beside = hashes.part(number, hashes.parts(), name, other)
        _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
        first = first[inverse]
        again = np.flatnonzero(first != np.arange(len(first)) if other is None else beside != beside[first])
        yield (
            len(again),
            [[int(rows[each]) + 1, int(rows[first[each]]) + 1] for each in again[:EXAMPLES]],
        )


def distinct(hashes: Hashes, name: str) -> int:
    """How many different ones there are."""
    import numpy as np

    parts = hashes.parts()
    return sum(len(np.unique(hashes.part(number, parts, name)[1])) for number in range(parts))


def between(own: Hashes, other: Hashes) -> dict[str, RowsFound]:
    """Rows of a split whose input is in another, exactly and normalised, with [row, row of the other]."""
    return {
        kind: _found(_shared(own, other, name))
        for kind, name in (("exact", "input"), ("normalised", "normalised_input"))
    }


def _shared(own: Hashes, other: Hashes, name: str) -> Iterator[Pairs]:
    import numpy as np

    parts = max(own.parts(), other.parts())
    for number in range(parts):
        rows, values, _ = own.part(number, parts, name)
        theirs, known, _ = other.part(number, parts, name)
        shared = np.flatnonzero(np.isin(values, known))
        twins = (theirs[np.flatnonzero(known == values[each])[0]] for each in shared[:EXAMPLES])
        yield len(shared), [[int(rows[each]) + 1, int(twin) + 1] for each, twin in zip(shared, twins, strict=False)]


def _found(parts: Iterator[Pairs]) -> RowsFound:
    counts, examples = zip(*parts, strict=True)
    return {"count": sum(counts), "examples": heapq.nsmallest(EXAMPLES, (each for part in examples for each in part))}
