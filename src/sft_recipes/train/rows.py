"""The rows that are trained on: those that a plan has tokenised, once TRL has made the same of a sample of them."""

import copy
import itertools
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, concatenate_datasets, load_dataset
from numpy.typing import NDArray
from trl import SFTConfig

from sft_recipes.data import tokenised
from sft_recipes.errors import InputError

SAMPLE = 100
"""Rows of a split that TRL tokenises too, spread evenly over all."""


def lengths(dataset: Dataset) -> NDArray[np.int64]:
    """The tokens of each tokenised row."""
    batches = (batch["input_ids"].combine_chunks() for batch in dataset.with_format("arrow").iter(1000))
    return np.concatenate([np.zeros(0, np.int64), *(each.value_lengths().to_numpy() for each in batches)])


def sampler_of(loader: Any) -> Any:
    """What draws the rows of a loader that accelerate has prepared, whose own function knows a part of them alone."""
    # Of several processes each has its share of the batches of one.
    return getattr(loader.batch_sampler, "batch_sampler", loader.batch_sampler).sampler


class ByLength:
    """The rows that another sampler draws, those of each step sorted by length, so that less of them is padding.

    The longest come first, so that memory that does not suffice shows in the first micro-batch.

    Args:
        sampler: Draws the numbers of the rows.
        lengths: Tokens of each row, by its number.
        batch: Rows of an optimizer step, on all processes.
    """

    def __init__(self, sampler: Any, lengths: NDArray[np.int64], batch: int) -> None:
        self._sampler, self._lengths, self._batch = sampler, lengths, batch

    def __iter__(self) -> Iterator[int]:
        drawn: Iterable[int] = iter(self._sampler)
        while step := [*itertools.islice(drawn, self._batch)]:
            yield from sorted(step, key=lambda number: self._lengths[number], reverse=True)

    def __len__(self) -> int:
        return len(self._sampler)

    def set_epoch(self, epoch: int) -> None:
        """As accelerate tells its samplers, which draw others in each."""
        if hasattr(self._sampler, "set_epoch"):
            self._sampler.set_epoch(epoch)


class Tokenised:
    """The rows of a split that were tokenised before.

    Args:
        prepared: The directory of the rows as text.
        directory: Where their tokens are.

    Raises:
        InputError: The tokens are not as they were written.
    """

    def __init__(self, prepared: Path, directory: Path, split: str) -> None:
        facts = tokenised.facts(directory)
        if facts is None:
            raise _damaged(directory)
        self._prepared, self._directory, self.split = prepared, directory, split
        self.template: str | None = facts["template"]
        self._facts = tokenised.Written(**facts["splits"][split])
        self._files = sorted(name for name in facts["files"] if name.startswith(f"{split}-"))
        # Rounded up, so that it is no more than that.
        step = -(-self._facts.rows // SAMPLE)
        self.numbers = range(0, self._facts.rows, step)  # the rows of the sample, counted from 0

    def sample(self) -> Dataset:
        """Some of the rows as text, read as `datasets` reads all of them."""
        with tempfile.TemporaryDirectory() as scratch:
            path = self._prepared / f"{self.split}.jsonl"
            with path.open("rb") as lines:
                chosen = itertools.islice(lines, self.numbers.start, self.numbers.stop, self.numbers.step)
                Path(scratch, path.name).write_bytes(b"".join(chosen))
            if (card := self._prepared / "README.md").is_file():
                shutil.copy(card, scratch)
            cache = str(Path(scratch, "cache"))
            return load_dataset(scratch, split=self.split, cache_dir=cache, keep_in_memory=True)

    def as_text(self) -> Dataset:
        """All rows as text."""
        return load_dataset(str(self._prepared))[self.split]

    def whole(self, *, everything: bool = False) -> Dataset:
        """All rows with their labels, uncut; `everything` whether the loss is on all tokens."""
        try:
            found = concatenate_datasets([Dataset.from_file(str(self._directory / name)) for name in self._files])
        except (OSError, pa.ArrowInvalid):
            raise _damaged(self._directory) from None
        return cut(found, None, everything=True) if everything else found

    def is_cut(self, limit: int | None, *, drop: bool) -> bool:
        """Whether `cut` has anything to do."""
        return (limit is not None and limit < self._facts.longest) or (drop and self._facts.unsupervised > 0)


def _damaged(directory: Path) -> InputError:
    return InputError(f"the tokens in {directory} are not as they were written; start again, which makes them anew")


def cut(
    rows: Dataset, limit: int | None, *, from_end: bool = False, everything: bool = False, drop: bool = False
) -> Dataset:
    """Tokenised rows as TRL cuts them, many at once.

    Args:
        rows: With `input_ids` and `labels`.
        limit: Tokens that are left of a row; None for all.
        from_end: Whether its end is kept (`truncation_mode: keep_end`).
        everything: Whether the loss is on all tokens.
        drop: Whether rows without a loss are left out.
    """
    how = {"limit": limit, "from_end": from_end, "everything": everything, "drop": drop}
    return rows.with_format("arrow").map(_cut_batch, batched=True, fn_kwargs=how).with_format(None)


def _cut_batch(batch: pa.Table, limit: int | None, from_end: bool, everything: bool, drop: bool) -> pa.Table:
    columns = [batch[name].combine_chunks() for name in ("input_ids", "labels")]
    edges = columns[0].offsets.to_numpy()
    ids, labels = (column.values.to_numpy() for column in columns)
    labels = ids if everything else labels
    lengths = np.diff(edges)
    kept = lengths if limit is None else np.minimum(lengths, limit)
    starts = edges[1:] - kept if from_end else edges[:-1]
    if drop:
        before = np.concatenate([[0], np.cumsum(labels != tokenised.IGNORED)])
        supervised = before[starts + kept] > before[starts]
        starts, kept = starts[supervised], kept[supervised]
    after = np.concatenate([np.zeros(1, np.int32), np.cumsum(kept, dtype=np.int32)])
    places = np.repeat(starts - after[:-1], kept) + np.arange(after[-1])
    return pa.table({name: _lists(after, values[places]) for name, values in (("input_ids", ids), ("labels", labels))})


def _lists(edges: NDArray[np.int32], values: NDArray[np.int32]) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(edges, pa.int32()), pa.array(values, pa.int32()))


def changed(args: SFTConfig, **changes: Any) -> SFTConfig:
    """The arguments with others for the preparation of some rows."""
    other = copy.copy(args)
    for name, value in changes.items():
        setattr(other, name, value)
    return other


def compare(ours: Dataset, theirs: Dataset, what: str, numbers: Sequence[int] | None = None) -> None:
    """Refuse rows of which TRL makes something else.

    Args:
        ours: Rows of the files.
        theirs: The same as TRL makes them.
        numbers: Of the rows, counted from 0, where none was left out."""
    for place, (own, trl) in enumerate(itertools.zip_longest(ours, theirs)):
        if own is None or trl is None or any(own[name] != trl[name] for name in ("input_ids", "labels")):
            where = f"row {numbers[place] + 1} of " if numbers else ""
            raise InputError(
                f"{where}{what}: the tokens that were kept of it are not those that TRL makes of it; delete "
                ".cache/data and start again, and if that does not help, report it with the row and the model"
            )
