"""What packing makes of rows of these lengths. Lengths are a histogram: {tokens: rows}."""

import bisect
import random

Lengths = dict[int, int]
# Rows drawn to estimate what packing does to a whole data set.
SAMPLE = 20_000


def mean(lengths: Lengths) -> float:
    return sum(length * rows for length, rows in lengths.items()) / sum(lengths.values())


def percentile(lengths: Lengths, share: float) -> int:
    """The smallest length that at least this share of the rows does not exceed."""
    wanted, seen = share * sum(lengths.values()), 0
    for length in sorted(lengths):
        seen += lengths[length]
        if seen >= wanted:
            return length
    raise ValueError("no lengths")


def real_token_share(lengths: Lengths, batch_size: int, within: int | None = None) -> float:
    """Expected share of batch positions that hold tokens, when `batch_size` random rows are padded to the longest.

    The expected longest of k independent draws is the sum over lengths x of x (F(x)^k - F(x - 1)^k).

    Args:
        lengths: Rows by tokens.
        batch_size: Rows that are padded together.
        within: Rows that are sorted by length before they are divided, as many times `batch_size`; their share is
            that of the rows, or of a fixed sample of them, in a fixed random order.
    """
    if within and lengths:
        drawn = _sample(lengths)
        steps = (sorted(drawn[at : at + within], reverse=True) for at in range(0, len(drawn), within))
        return sum(drawn) / sum(
            step[at] * len(step[at : at + batch_size]) for step in steps for at in range(0, len(step), batch_size)
        )
    rows, below, expected, seen = sum(lengths.values()), 0.0, 0.0, 0
    for length in sorted(lengths):
        seen += lengths[length]
        up_to = (seen / rows) ** batch_size
        expected += length * (up_to - below)
        below = up_to
    return mean(lengths) / expected if rows else 1.0


def packed(lengths: Lengths, length: int) -> tuple[float, int]:
    """Share of real tokens, and packed rows, when rows are packed to `length` by best-fit decreasing, as TRL does."""
    rows = sorted((min(each, length) for each in _sample(lengths)), reverse=True)
    # Free space of each bin, in order; the row goes where the least is left over.
    free: list[int] = []
    bins = 0
    for row in rows:
        place = bisect.bisect_left(free, row)
        if place == len(free):
            bins += 1
            left = length - row
        else:
            left = free.pop(place) - row
        if left:
            bisect.insort(free, left)
    return sum(rows) / (bins * length), max(round(bins * sum(lengths.values()) / len(rows)), 1)


def _sample(lengths: Lengths) -> list[int]:
    """Lengths of all rows in a fixed random order, or of a fixed random sample of them."""
    total = sum(lengths.values())
    rng = random.Random(0)  # noqa: S311, a sample, no secrets
    if total <= SAMPLE:
        rows = [length for length, number in sorted(lengths.items()) for _ in range(number)]
        rng.shuffle(rows)
        return rows
    return rng.choices(sorted(lengths), [lengths[length] for length in sorted(lengths)], k=SAMPLE)
