"""Intervals and tests agree with scipy, with each other and with what they promise."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from sft_recipes.evaluate import statistics


def mean(values: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    return lambda counts: counts @ values / len(values)


@pytest.mark.parametrize("n", [1, 7, 100, 12345])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
def test_wilson_is_scipys(n: int, share: float) -> None:
    hits = round(share * n)
    expected = stats.binomtest(hits, n).proportion_ci(method="wilson")
    assert statistics.wilson(hits, n) == pytest.approx(tuple(expected), abs=1e-12)


def test_a_proportion_of_nothing_has_no_interval() -> None:
    assert statistics.wilson(0, 0) is None
    assert statistics.f1_interval(0, 0) is None


def test_the_f1_interval_is_that_of_the_share_of_hits() -> None:
    assert statistics.f1_interval(15, 5) == pytest.approx(tuple(2 * j / (1 + j) for j in statistics.wilson(15, 20)))


def test_the_f1_interval_holds_the_truth_also_in_a_class_of_few_rows() -> None:
    generator = np.random.default_rng(0)
    held = []
    for _ in range(2000):
        hits, missed, false_alarms, _ = generator.multinomial(100, [0.08, 0.01, 0.01, 0.9])
        bounds = statistics.f1_interval(hits, missed + false_alarms)
        held.append(bounds is not None and bounds[0] <= 2 * 0.08 / (2 * 0.08 + 0.02) <= bounds[1])
    assert 0.93 <= np.mean(held) <= 0.98


def test_the_bootstrap_interval_is_scipys() -> None:
    values = np.random.default_rng(1).gamma(2, size=80)
    drawn = statistics.bootstrap(mean(values), np.arange(80), seed=0, resamples=9999)
    expected = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=9999, rng=0).confidence_interval
    assert statistics.percentile(drawn) == pytest.approx(tuple(expected), rel=0.01)


def test_rows_that_share_a_cell_are_drawn_as_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(2).integers(0, 5, size=60)
    by_row = statistics.bootstrap(mean(values), np.arange(60), seed=3)
    by_cell = statistics.bootstrap(lambda counts: counts @ np.arange(5) / 60, values, seed=3)
    np.testing.assert_allclose(by_row, by_cell)
    monkeypatch.setattr(statistics, "_BLOCK", 1000)
    np.testing.assert_array_equal(by_row, statistics.bootstrap(mean(values), np.arange(60), seed=3))


def test_a_seed_gives_the_same_numbers_and_another_seed_others() -> None:
    values = np.random.default_rng(4).normal(size=50)
    first, again, other = (statistics.bootstrap(mean(values), np.arange(50), seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_what_resampling_cannot_see_has_no_interval() -> None:
    assert statistics.percentile(np.ones(2000)) is None
    draws = np.linspace(0, 1, 2000)
    draws[:101] = np.nan
    assert statistics.percentile(draws) is None
    draws[100] = 0.5
    assert statistics.percentile(draws) is not None


def test_p_is_at_most_five_percent_exactly_where_the_interval_excludes_zero() -> None:
    generator = np.random.default_rng(5)
    seen = set()
    for shift in np.linspace(1.8, 2.1, 200):
        draws = np.round(generator.normal(shift, size=2000) * generator.choice([-1, 1]), 2)
        bounds = statistics.percentile(draws)
        assert bounds is not None
        excluded = bounds[0] > 0 or bounds[1] < 0
        assert (statistics.difference_p(draws) <= 0.05) == excluded
        seen.add(excluded)
    assert seen == {True, False}


def test_no_p_is_zero_and_none_above_one() -> None:
    assert statistics.difference_p(np.ones(1999)) == pytest.approx(2 / 2000)
    assert statistics.difference_p(np.zeros(1999)) == 1


def test_mcnemar_is_the_exact_binomial_test_of_discordant_rows() -> None:
    assert statistics.mcnemar(0, 0) == 1
    assert statistics.mcnemar(6, 0) == pytest.approx(2 / 2**6)
    assert statistics.mcnemar(12, 5) == statistics.mcnemar(5, 12) == pytest.approx(2 * stats.binom.cdf(5, 17, 0.5))


def test_holm_steps_down_in_the_order_given() -> None:
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.4, 0.9]) == pytest.approx([0.8, 0.9])
    assert statistics.holm([0.7, 0.7]) == pytest.approx([1, 1])
    assert statistics.holm([]) == []


def test_seeds_have_students_interval() -> None:
    values = [0.71, 0.74, 0.69, 0.75]
    mean_value, deviation, bounds = statistics.over_seeds(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert mean_value == pytest.approx(np.mean(values))
    assert deviation == pytest.approx(np.std(values, ddof=1))
    assert bounds == pytest.approx(tuple(expected))
    assert statistics.over_seeds([0.5]) == (0.5, None, None)
