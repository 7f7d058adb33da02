"""Intervals and tests for what a model got right on a sample of rows.

Nothing here knows of models or files: functions take counts, per-row values or resampled values.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

CONFIDENCE = 0.95
# The Monte-Carlo error of a bound is then 3 % of the interval's half-width.
RESAMPLES = 2000

Interval = tuple[float, float]
Estimate = dict[str, float | None]
# Elements of one block of resampled counts: 32 MiB.
_BLOCK = 2**22


def estimate(value: float, interval: Interval | None) -> Estimate:
    """A number and the bounds of its interval, as files hold it: None for what is undefined (NaN or no interval)."""
    if np.isnan(value):
        return {"value": None, "low": None, "high": None}
    low, high = interval or (None, None)
    return {"value": float(value), "low": low, "high": high}


def share_of(part: float, whole: float) -> Estimate:
    """A share with its Wilson interval; undefined of nothing."""
    return estimate(part / whole if whole else np.nan, wilson(part, whole))


def wilson(successes: float, n: float, confidence: float = CONFIDENCE) -> Interval | None:
    """Wilson's score interval of a proportion, None without a trial (Wilson 1927, doi:10.2307/2276774).

    Its coverage is near nominal at all shares and also for few rows, and at 0 or `n` successes it still has a width
    (Brown, Cai and DasGupta 2001, doi:10.1214/ss/1009213286).
    """
    if n == 0:
        return None
    n = float(n)
    z = float(stats.norm.ppf((1 + confidence) / 2))
    share = float(successes / n)
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
    # At a share of 0 or 1 that bound is exact but for rounding.
    return max(0.0, centre - half) if share else 0.0, min(1.0, centre + half) if share < 1 else 1.0


def f1_interval(hits: float, wrong: float) -> Interval | None:
    """Interval of the F1 of one class: Wilson "indirect" of Lam, Gopal and Qian (2023, arXiv 2309.14621v2).

    Of the rows that are of the class or called so, the share J of hits is a proportion, and F1 = 2 J / (1 + J).
    A bootstrap would have no width where every row is right, as often in a class of few rows.

    Args:
        hits: true positives.
        wrong: false positives and false negatives.
    """
    bounds = wilson(hits, hits + wrong)
    return bounds and (2 * bounds[0] / (1 + bounds[0]), 2 * bounds[1] / (1 + bounds[1]))


def bootstrap(
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    cells: NDArray[np.intp],
    *,
    seed: int | Sequence[int],
    resamples: int = RESAMPLES,
) -> NDArray[np.float64]:
    """A statistic's values when the rows are drawn again with replacement (Efron 1979, doi:10.1214/aos/1176344552).

    Args:
        statistic: from counts of shape (resamples, cells) to values of shape (resamples, ...); NaN where undefined.
        cells: for each row the number of its cell: equal rows share one, so that a table stays small; for statistics
            of per-row values it is `numpy.arange(rows)`.

    Returns:
        The values, first axis the resample. Everything computed from the same resamples is paired.
    """
    generator = np.random.default_rng(seed)
    width = int(cells.max()) + 1
    block = max(1, min(resamples, _BLOCK // width))
    values = []
    for start in range(0, resamples, block):
        drawn = [cells[generator.integers(len(cells), size=len(cells))] for _ in range(min(block, resamples - start))]
        counts = np.array([np.bincount(one, minlength=width) for one in drawn], dtype=np.float64)
        values.append(statistic(counts))
    return np.concatenate(values)


def percentile(values: NDArray[np.float64], confidence: float = CONFIDENCE) -> Interval | None:
    """Percentile interval of resampled values: the (B+1)(1-confidence)/2-th smallest and largest of the B.

    Not BCa: its bounds do not belong to a p-value counted from the same resamples, as these do (`difference_p`). How
    often they hold the truth is in docs/intervals.md. Order statistics as in Davison and Hinkley (1997,
    doi:10.1017/CBO9780511802843, section 5.2).

    None where fewer than the share `confidence` of the resamples define the statistic, and where all are equal:
    resampling cannot see the errors that a sample happens to be without.
    """
    defined = np.sort(values[~np.isnan(values)])
    if len(defined) < confidence * len(values) or defined[0] == defined[-1]:
        return None
    k = max(1, int((len(defined) + 1) * (1 - confidence) / 2))
    return float(defined[k - 1]), float(defined[-k])


def difference_p(values: NDArray[np.float64]) -> float:
    """Two-sided p-value of a difference from its resampled values: twice the smaller tail beyond zero.

    Counts the observed sample among the resamples, so it is never 0 (Davison and Hinkley 1997, equation 4.11). It is
    at most 0.05 exactly where `percentile` at 95 % excludes 0.
    """
    tail = min(np.count_nonzero(values <= 0), np.count_nonzero(values >= 0))
    return min(1.0, 2 * (float(tail) + 1) / (len(values) + 1))


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided exact p-value that two classifiers err equally often on the same rows (McNemar 1947).

    Args:
        only_first: rows that only the first has right.
        only_second: rows that only the second has right. Rows on which both are right or wrong say nothing.
    """
    discordant = only_first + only_second
    return float(stats.binomtest(only_first, discordant).pvalue) if discordant else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given (Holm 1979, jstor.org/stable/4615733).

    Rejecting where one is at most alpha keeps the chance of any false rejection among all of them below alpha,
    whatever their dependence.
    """
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    adjusted = np.minimum(1.0, np.maximum.accumulate(np.asarray(p_values, dtype=float)[order] * factors))
    result = np.empty(len(p_values))
    result[order] = adjusted
    return [float(value) for value in result]


def over_seeds(values: ArrayLike) -> tuple[float, float | None, Interval | None]:
    """Mean of one number over runs that differ in their seed, its sample standard deviation and Student's t interval.

    The interval is of the mean over seeds, on the same rows: it says nothing of other rows. None from a single run.
    """
    numbers = np.asarray(values, dtype=float)
    mean = float(numbers.mean())
    if len(numbers) < 2:
        return mean, None, None
    deviation = float(numbers.std(ddof=1))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(numbers) - 1)) * deviation / len(numbers) ** 0.5
    return mean, deviation, (mean - half, mean + half)
