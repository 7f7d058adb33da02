"""What packing makes of rows, against TRL's own packing."""

import random

import pytest

from sft_recipes.data import packing


@pytest.mark.parametrize("length", [64, 200])
def test_packed_rows_are_as_many_as_trl_packs(length: int) -> None:
    from datasets import Dataset
    from trl.data_utils import pack_dataset

    rng = random.Random(1)  # noqa: S311, seeded rows, no secrets
    rows = [rng.randint(3, 90) for _ in range(500)]
    lengths = {each: rows.count(each) for each in set(rows)}
    upstream = pack_dataset(Dataset.from_dict({"input_ids": [[1] * row for row in rows]}), length, "bfd")
    fill, packed = packing.packed(lengths, length)
    assert packed == len(upstream)
    assert fill == pytest.approx(sum(map(len, upstream["input_ids"])) / (len(upstream) * length))


def test_percentiles_are_lengths_that_rows_have() -> None:
    lengths = {10: 90, 50: 9, 400: 1}
    assert [packing.percentile(lengths, share) for share in (0.5, 0.9, 0.95, 1.0)] == [10, 10, 50, 400]
    assert packing.mean(lengths) == (900 + 450 + 400) / 100
