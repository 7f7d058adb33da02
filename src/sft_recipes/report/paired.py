"""Which differences between runs are real: paired tests on the same rows."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from sft_recipes.evaluate import classification, statistics
from sft_recipes.evaluate.statistics import CONFIDENCE
from sft_recipes.evaluate.terms import METRICS
from sft_recipes.evaluate.verdict import MINIMUM_ROWS
from sft_recipes.report.results import Entry, Evaluated, Facts
from sft_recipes.report.table import p_value


def tested(entries: Sequence[Entry], *, first_only: bool = False) -> list[Facts]:
    """Every pair of entries, tested on the same rows by the primary metric, with Holm's correction over all pairs.

    p follows from the difference's standard error (`_differences`) by Student's t: counted resamples cannot give the
    small ones that a correction over many pairs needs. It is never smaller than an exact sign test could make it by
    the rows that the two do not get equally right. McNemar's test, of right against wrong, is exact, corrected alike,
    and made where both are single runs. Of fewer than `MINIMUM_ROWS` rows there are differences, and no tests.

    Args:
        entries: all on the same rows.
        first_only: give the pairs of the first entry alone, without McNemar's test; all pairs are still corrected for.
    """
    if len(entries) < 2:
        return []
    first, second = np.triu_indices(len(entries), 1)
    difference, error, freedom = _differences(entries, first, second)
    levels = [[run.scores if run.gold is None else run.right for run in entry.runs] for entry in entries]
    level = np.array([np.mean(each, axis=0) for each in levels])
    unequal = np.concatenate([(level[i] != level[i + 1 :]).sum(axis=1) for i in range(len(entries) - 1)])
    with np.errstate(divide="ignore", invalid="ignore"):
        # Without an error every resample has the same difference, and the sign test below is what is left.
        p = np.where(error > 0, 2 * stats.t.sf(np.abs(difference) / error, freedom), 0.0)
        p = np.where(difference == 0, 1.0, p)
        half = stats.t.ppf((1 + CONFIDENCE) / 2, freedom) * error
    p = np.minimum(1.0, np.maximum(p, 2 * 0.5**unequal))
    corrected = statistics.holm(p.tolist())
    enough = level.shape[1] >= MINIMUM_ROWS
    pairs = []
    for k in range(len(entries) - 1 if first_only else len(first)):
        a, b = entries[first[k]], entries[second[k]]
        outcome = "better" if difference[k] > 0 else "worse"
        if corrected[k] >= 1 - CONFIDENCE:
            outcome = "not_distinguishable"
        bounds = (difference[k] - half[k], difference[k] + half[k]) if error[k] > 0 else None
        pair = {
            "a": a.name,
            "b": b.name,
            "difference": statistics.estimate(difference[k], bounds),
            "p": float(p[k]) if enough else None,
            "p_holm": corrected[k] if enough else None,
            "outcome": outcome if enough else "none",
            "unequal_rows": int(unequal[k]),
            "includes": ["rows", "seeds"] if len(a.runs) + len(b.runs) > 2 else ["rows"],
            "mcnemar": _mcnemar(a, b) if enough and not first_only else None,
        }
        pairs.append(pair | {"text": _in_words(pair, METRICS[a.runs[0].primary], len(first))})
    tests = [pair["mcnemar"] for pair in pairs if pair["mcnemar"]]
    for test, p_holm in zip(tests, statistics.holm([test["p"] for test in tests]), strict=True):
        test["p_holm"] = p_holm
    return pairs


def _differences(
    entries: Sequence[Entry], first: NDArray[np.intp], second: NDArray[np.intp]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """For pairs of entries: the difference of the primary metric (means over seeds), its error, degrees of freedom.

    The error's square is the variance of the paired bootstrap over rows and, where one of the two has several seeds,
    that of means over seeds, whose spread is pooled as in a two-sample t test; degrees of freedom after Satterthwaite
    (1946, doi:10.2307/3002019). Rows alone would call the luck of a seed a difference of recipes (Bouthillier et al.
    2021, arXiv 2103.03098v1). What rows and seeds do together is in both terms, which errs towards no difference.
    """
    runs = [run for entry in entries for run in entry.runs]
    cells, primary = statistic(runs)
    whole = primary(np.bincount(cells)[None].astype(float))[0]
    drawn = statistics.bootstrap(primary, cells, seed=0)
    size = np.array([len(entry.runs) for entry in entries])
    parts = np.split(np.arange(len(runs)), np.cumsum(size)[:-1])
    means = np.array([whole[part].mean() for part in parts])
    squares = np.array([((whole[part] - whole[part].mean()) ** 2).sum() for part in parts])
    resampled = np.stack([drawn[:, part].mean(axis=1) for part in parts])
    over_rows = np.concatenate([np.nanvar(resampled[i] - resampled[i + 1 :], axis=1) for i in range(len(entries) - 1)])
    repeats = np.maximum(size[first] + size[second] - 2, 1)
    over_seeds = (squares[first] + squares[second]) / repeats * (1 / size[first] + 1 / size[second])
    variance = over_rows + over_seeds
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = variance**2 / (over_rows**2 / (len(cells) - 1) + over_seeds**2 / repeats)
    return means[first] - means[second], np.sqrt(variance), freedom


def _mcnemar(a: Entry, b: Entry) -> Facts | None:
    if len(a.runs) + len(b.runs) > 2:
        return None
    one, other = a.runs[0].right, b.runs[0].right
    only_a, only_b = int((one & ~other).sum()), int((other & ~one).sum())
    return {"only_a": only_a, "only_b": only_b, "p": statistics.mcnemar(only_a, only_b)}


def _in_words(pair: Facts, metric: str, pairs: int) -> str:
    """The outcome as a sentence, the better one first."""
    a, b, sign = (pair["b"], pair["a"], -1) if pair["outcome"] == "worse" else (pair["a"], pair["b"], 1)
    if pair["outcome"] == "none":
        return f"{a} and {b}: not tested, because fewer than {MINIMUM_ROWS} rows are scored"
    difference = pair["difference"]
    evidence = f"{metric} {sign * difference['value']:+.3f}"
    if difference["low"] is not None:
        low, high = sorted((sign * difference["low"], sign * difference["high"]))
        evidence += f", {CONFIDENCE:.0%} {low:+.3f} to {high:+.3f}".replace("%", " %")
    evidence += f", {p_value(pair['p_holm'])}" + (f" after Holm over {pairs} pairs" if pairs > 1 else "")
    if pair["outcome"] == "not_distinguishable":
        return f"{a} and {b}: not distinguishable ({evidence})"
    return f"{a} better than {b} ({evidence})"


def statistic(
    runs: Sequence[Evaluated],
) -> tuple[NDArray[np.intp], Callable[[NDArray[np.float64]], NDArray[np.float64]]]:
    """The rows' cells, and the primary metric of runs from counts of them: (resamples, cells) to (resamples, runs)."""
    scores = np.stack([run.scores for run in runs], axis=1)
    if runs[0].gold is None:
        return np.arange(len(scores)), lambda counts: counts @ scores / counts.sum(axis=1, keepdims=True)
    cells, table = classification.table(np.column_stack([runs[0].gold, scores]), len(runs[0].labels), None)
    macro_f1 = classification.SCORES.index(runs[0].primary)
    return cells, lambda counts: table(counts)[..., macro_f1]
