"""The tokens of prepared rows, in files that a plan writes once and training reads.

They lie beside the rows, `.tokens/KEY/` in the prepared directory, where `datasets` looks for none: Arrow streams with
the columns `input_ids` and `labels`, of whole rows, as TRL would make them (`tokens.py`). A recipe's `max_length` and
packing come later.
"""

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_recipes import files

if TYPE_CHECKING:
    from sft_recipes.data.tokens import Size

# Part of every key: raise it when the same rows would be written otherwise.
TOKENS_VERSION = 1
FOLDER, FACTS = ".tokens", "tokens.json"
# Rows of a file at most, and files that a split has at least if each has `FEWEST`: as many processes write them. What
# is counted of each is put together in order, so nothing depends on how many are counted at once.
PART, FILES, FEWEST = 20_000, 16, 1000
# Tokenisations of the same rows that are kept: those of other templates and tokenizers, the last used ones.
KEPT = 3
_DAY = 24 * 3600
IGNORED = -100
"""The label of a token that no loss is computed on."""


@dataclass(frozen=True)
class Part:
    """Some rows of a split that follow each other."""

    split: str
    number: int
    before: int  # rows of the split before them
    rows: int
    offset: int  # of the first one's line in the file

    @property
    def name(self) -> str:
        return f"{self.split}-{self.number:05}.arrow"


@dataclass
class Written:
    """What is known of the rows of a file, or of a split, without reading them."""

    rows: int = 0
    longest: int = 0
    unsupervised: int = 0  # rows without a supervised token


def parts(path: Path, rows: int) -> list[Part]:
    """The parts of a split's file of so many JSON lines."""
    each = min(PART, max(rows // FILES, FEWEST))
    found: list[Part] = []
    offset = before = 0
    with path.open("rb") as lines:
        while sizes := [len(line) for line in itertools.islice(lines, each)]:
            found.append(Part(path.stem, len(found), before, len(sizes), offset))
            offset, before = offset + sum(sizes), before + len(sizes)
    return found


def lines(directory: Path, part: Part) -> Iterator[str]:
    """The lines of a part."""
    with (directory / f"{part.split}.jsonl").open("rb") as file:
        file.seek(part.offset)
        for line in itertools.islice(file, part.rows):
            yield line.decode("utf-8")


def place(prepared: Path, fingerprint: str) -> Path:
    """Where the tokens of prepared rows are that a tokenizer of this fingerprint makes."""
    key = hashlib.sha256(f"{TOKENS_VERSION} {fingerprint}".encode()).hexdigest()[:16]
    return prepared / FOLDER / key


def facts(directory: Path, *, whole: bool = False) -> dict[str, Any] | None:
    """What is known of the tokens in a directory; None where they are not there, or not as they were written.

    Args:
        whole: Whether every byte is looked at, and not sizes alone.
    """
    try:
        found: dict[str, Any] = json.loads((directory / FACTS).read_text(encoding="utf-8"))
        sizes = {name: (directory / name).stat().st_size for name in found["files"]}
        as_written = sizes == {name: was["bytes"] for name, was in found["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if not as_written or (whole and files.difference(directory, found["files"])):
        return None
    # The last used ones are kept.
    with contextlib.suppress(OSError):
        os.utime(directory / FACTS)
    return found


@contextlib.contextmanager
def writing(directory: Path, template: str | None) -> Iterator[tuple[Path, dict[str, Written]]]:
    """A directory for the files of parts, which is the named one when all are written, and what is in each split.

    Args:
        template: The chat template that renders the rows; None for plain text.
    """
    splits: dict[str, Written] = {}
    with files.staged(directory.with_name(f".{directory.name}.{uuid.uuid4().hex}")) as staging:
        yield staging, splits
        known = {"template": template, "splits": {name: asdict(each) for name, each in splits.items()}}
        (staging / FACTS).write_text(json.dumps(known | {"files": files.sealed(staging)}), encoding="utf-8")
        files.publish(staging, directory, lambda: facts(directory, whole=True) is not None)
        _forget(directory.parent)


def _forget(folder: Path) -> None:
    """Delete all but the last used tokenisations of the same rows, and what a process that was killed has left."""
    there = {path: path.stat().st_mtime for path in folder.iterdir()}
    used = {path: (path / FACTS).stat().st_mtime for path in there if (path / FACTS).is_file() and path.name[0] != "."}
    old = sorted(used, key=lambda path: used[path])[:-KEPT]
    old += [path for path, changed in there.items() if path.name[0] == "." and changed < time.time() - _DAY]
    for path in old:
        # Who trains on them has them open.
        shutil.rmtree(path, ignore_errors=True)


class Writer:
    """Writes the file of a part, a batch of rows after the other."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        numbers = pa.list_(pa.int32())
        self._schema = pa.schema({"input_ids": numbers, "labels": numbers})
        self._file = pa.ipc.new_stream(str(path), self._schema)
        self.written = Written()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def write(self, sizes: Sequence["Size"]) -> None:
        """Write rows."""
        import numpy as np
        import pyarrow as pa

        lengths = np.fromiter((size.length for size in sizes), np.int32, len(sizes))
        edges = np.concatenate([np.zeros(1, np.int32), np.cumsum(lengths, dtype=np.int32)])
        ids = np.fromiter(itertools.chain.from_iterable(size.ids for size in sizes), np.int32, edges[-1])
        labels = np.full(len(ids), IGNORED, np.int32)
        for edge, size in zip(edges.tolist(), sizes, strict=False):
            for start, end in size.spans:
                labels[edge + start : edge + end] = ids[edge + start : edge + end]
            self.written.unsupervised += not any(start < end for start, end in size.spans)
        columns = [pa.ListArray.from_arrays(edges, values) for values in (ids, labels)]
        self._file.write_batch(pa.record_batch(columns, schema=self._schema))
        self.written.rows += len(sizes)
        self.written.longest = max(self.written.longest, int(lengths.max(initial=0)))
