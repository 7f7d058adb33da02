"""What a classifier got right: scores by scikit-learn, their intervals, calibration.

Classes are numbers from 0 in the order of the labels; the number of labels stands for an invalid output, which is
wrong whatever the row's class and is never a class in a mean over classes.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse, special, stats

from sft_recipes.evaluate.statistics import (
    CONFIDENCE,
    Estimate,
    bootstrap,
    estimate,
    f1_interval,
    percentile,
    share_of,
    wilson,
)

Floats = NDArray[np.float64]
Codes = NDArray[np.intp]

SCORES = ("accuracy", "macro_f1", "micro_f1", "weighted_f1", "mcc", "fpr", "fnr")
# Guo et al. 2017, arXiv 1706.04599v2.
BINS = 15


def table(codes: Codes, classes: int, positive: int | None) -> tuple[Codes, Callable[[Floats], Floats]]:
    """The rows as cells of a table, and the `SCORES` of every predictor from counts of these cells.

    Args:
        codes: shape (rows, 1 + predictors): the class of each row and what each predictor says.
        positive: the class whose false positive and false negative rates are meant, None for the mean over classes.

    Returns:
        For each row its cell; a function from counts (tables, cells) to scores (tables, predictors, len(SCORES)).
    """
    distinct, cells = np.unique(codes, axis=0, return_inverse=True)
    gold = distinct[:, 0]
    number = np.arange(len(gold))

    def indicator(columns: Codes, chosen: NDArray[np.bool_] | slice = slice(None)) -> sparse.csr_array:
        picked = number[chosen]
        return sparse.csr_array((np.ones(len(picked)), (picked, columns[chosen])), shape=(len(gold), classes + 1))

    of_class = indicator(gold)
    said = [(indicator(column), indicator(column, column == gold)) for column in distinct[:, 1:].T]

    def scores(counts: Floats) -> Floats:
        totals = (counts @ of_class)[:, :classes]
        return np.stack(
            [scores_of((counts @ hits)[:, :classes], counts @ called, totals, positive) for called, hits in said],
            axis=-2,
        )

    return cells.ravel(), scores


def scores_of(hits: Floats, predicted: Floats, gold: Floats, positive: int | None) -> Floats:
    """The `SCORES` of tables, NaN where undefined.

    F1 of a class is 2 hits / (predicted + gold) and left out of means where the class is neither; MCC is Gorodkin's
    R_K (2004, doi:10.1016/j.compbiolchem.2004.09.006). FPR is the share of the rows of other classes that are called
    the class, FNR the share of the rows of the class that are not: of the class `positive`, or the mean over classes.

    Args:
        hits: shape (..., classes), the rows rightly predicted as each class.
        predicted: shape (..., classes + 1), the rows predicted as each class, and the invalid.
        gold: shape (..., classes), the rows of each class.
    """
    n = gold.sum(-1)
    called = predicted[..., : gold.shape[-1]]
    with np.errstate(invalid="ignore", divide="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the mean of no classes is NaN, as it should be
        f1 = 2 * hits / (called + gold)
        accuracy = hits.sum(-1) / n
        micro = 2 * hits.sum(-1) / (n + called.sum(-1))
        weighted = np.nansum(f1 * gold, axis=-1) / n
        spread = (n**2 - (predicted**2).sum(-1)) * (n**2 - (gold**2).sum(-1))
        mcc = (n * hits.sum(-1) - (called * gold).sum(-1)) / np.sqrt(spread)
        false_positive = (called - hits) / (n[..., None] - gold)
        false_negative = (gold - hits) / gold
        if positive is None:
            fpr, fnr = np.nanmean(false_positive, axis=-1), np.nanmean(false_negative, axis=-1)
        else:
            fpr, fnr = false_positive[..., positive], false_negative[..., positive]
        return np.stack([accuracy, np.nanmean(f1, axis=-1), micro, weighted, mcc, fpr, fnr], axis=-1)


def describe(
    gold: Codes, predicted: Codes, labels: Sequence[str], resampled: Floats, probabilities: Floats | None, seed: int
) -> dict[str, Any]:
    """Every metric of one predictor.

    Args:
        gold, predicted: shape (rows,).
        resampled: shape (resamples, len(SCORES)), the predictor's scores on resampled rows.
        probabilities: shape (rows, labels), or None.
    """
    from sklearn import metrics

    n, classes = len(gold), range(len(labels))
    means = {
        average: metrics.f1_score(gold, predicted, labels=classes, average=average, zero_division=np.nan)
        for average in ("macro", "micro", "weighted")
    }
    accuracy = share_of(int(np.count_nonzero(gold == predicted)), n)
    invalid = int(np.count_nonzero(predicted == len(labels)))
    bounds = dict(zip(SCORES, map(percentile, resampled.T), strict=True))
    # Without invalid outputs it is the accuracy.
    micro = estimate(means["micro"], bounds["micro_f1"]) if invalid else accuracy
    # scikit-learn says 0 for 0 / 0.
    constant = len(set(predicted)) == 1 or len(set(gold)) == 1
    mcc = np.nan if constant else metrics.matthews_corrcoef(gold, predicted)
    confusion = metrics.confusion_matrix(gold, predicted, labels=range(len(labels) + 1))[: len(labels)]
    ece, reliability = None, None
    if probabilities is not None:
        ece, reliability = calibration(gold, predicted, probabilities, seed=seed, resamples=len(resampled))
    return {
        "accuracy": accuracy,
        "macro_f1": estimate(means["macro"], bounds["macro_f1"]),
        "micro_f1": micro,
        "weighted_f1": estimate(means["weighted"], bounds["weighted_f1"]),
        "mcc": estimate(mcc, bounds["mcc"]),
        "roc_auc": None if probabilities is None else _roc_auc(gold, probabilities),
        "ece": ece,
        "invalid": {"count": invalid, "share": share_of(invalid, n)},
        "classes": _classes(gold, predicted, labels),
        "confusion": {"gold": list(labels), "predicted": [*labels, "invalid"], "counts": confusion.tolist()},
        "reliability": reliability,
    }


def _classes(gold: Codes, predicted: Codes, labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Precision, recall, F1 and support of each class.

    Precision is a proportion of the rows called so, given their number, as recall is one of the rows of the class.
    """
    from sklearn import metrics

    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        gold, predicted, labels=range(len(labels)), zero_division=np.nan
    )
    result = {}
    for code, label in enumerate(labels):
        hits = int(np.count_nonzero((gold == code) & (predicted == code)))
        called, size = int(np.count_nonzero(predicted == code)), int(support[code])
        result[label] = {
            "precision": estimate(precision[code], wilson(hits, called)),
            "recall": estimate(recall[code], wilson(hits, size)),
            "f1": estimate(f1[code], f1_interval(hits, called + size - 2 * hits)),
            "support": size,
        }
    return result


def _roc_auc(gold: Codes, probabilities: Floats) -> Estimate:
    """Mean one-versus-rest ROC-AUC over the classes that have rows, with DeLong's variance on the logit scale.

    DeLong, DeLong and Clarke-Pearson (1988, doi:10.2307/2531595), computed by midranks as in Sun and Xu (2014,
    doi:10.1109/LSP.2014.2337313); a bootstrap would sort again for every resample.
    """
    from sklearn import metrics

    present = [code for code in range(probabilities.shape[1]) if 0 < np.count_nonzero(gold == code) < len(gold)]
    if not present:
        return estimate(np.nan, None)
    targets = (gold[:, None] == present).astype(int)
    scores = probabilities[:, present]
    value = float(metrics.roc_auc_score(targets, scores, average="macro"))
    influence = np.zeros(len(gold))
    for target, score in zip(targets.T.astype(bool), scores.T, strict=True):
        ranks = stats.rankdata(score)
        for side, other in ((target, ~target), (~target, target)):
            # How many rows of the other side are ranked below each row, as a share.
            below = (ranks[side] - stats.rankdata(score[side])) / np.count_nonzero(other)
            influence[side] += (1 if side is target else -1) * (below - below.mean()) / np.count_nonzero(side)
    error = float(np.sqrt((influence**2).sum())) / len(present)
    if not 0 < value < 1 or error == 0:
        return estimate(value, None)
    half = stats.norm.ppf((1 + CONFIDENCE) / 2) * error / (value * (1 - value))
    low, high = special.expit(special.logit(value) + np.array([-half, half]))
    return estimate(value, (float(low), float(high)))


def calibration(
    gold: Codes, predicted: Codes, probabilities: Floats, *, seed: int, resamples: int
) -> tuple[Estimate, list[dict[str, Any]]]:
    """Expected calibration error of the predicted class's probability, and the bins that have rows.

    The error is biased upwards, the more so the fewer the rows, and a percentile interval twice so. Its interval here
    goes as far to both sides as the bins' errors, summed, stray from those observed in 95 % of the resamples: by the
    triangle inequality the error strays no farther. It is wide rather than wrong.
    """
    n = len(gold)
    confidence = probabilities[np.arange(n), predicted]
    right = gold == predicted
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    gaps = np.zeros((n, BINS))
    gaps[np.arange(n), bins] = (right - confidence) / n
    by_bin = gaps.sum(0)
    resampled = bootstrap(lambda counts: counts @ gaps, np.arange(n), seed=seed, resamples=resamples)
    strays = np.abs(resampled - by_bin).sum(-1)
    value, half = float(np.abs(by_bin).sum()), float(np.quantile(strays, CONFIDENCE))
    reliability = []
    for number in np.unique(bins):
        inside = bins == number
        hits = int(np.count_nonzero(right & inside))
        size = int(np.count_nonzero(inside))
        reliability.append(
            {
                "low": float(number / BINS),
                "high": float((number + 1) / BINS),
                "n": size,
                "confidence": float(confidence[inside].mean()),
                "accuracy": hits / size,
                "interval": wilson(hits, size),
            }
        )
    return estimate(value, (max(0.0, value - half), min(1.0, value + half))), reliability


def always(gold: Codes, classes: int) -> list[dict[str, Any]]:
    """What answering each class to every row scores, from the classes' shares of the rows alone.

    All follows from the share s of the class: accuracy s, F1 2 s / (1 + s), and the F1 of every other class 0. So do
    the intervals, from that of s. Per-class tables would only repeat the shares and are None.
    """
    n, support = len(gold), np.bincount(gold, minlength=classes).tolist()
    result = []
    for size in support:
        # A class without rows counts in the mean too, since it is predicted.
        present = sum(map(bool, support)) + (not size)
        share = np.array([size / n, *(wilson(size, n) or ())])
        f1 = 2 * share / (1 + share)
        result.append(
            {
                "accuracy": _listed(share),
                "macro_f1": _listed(f1 / present),
                "micro_f1": _listed(share),
                "weighted_f1": _listed(f1 * share),
                "mcc": estimate(np.nan, None),
                "roc_auc": None,
                "ece": None,
                "invalid": {"count": 0, "share": share_of(0, n)},
                "classes": None,
                "confusion": None,
                "reliability": None,
            }
        )
    return result


def _listed(numbers: Floats) -> Estimate:
    value, low, high = numbers.tolist()
    return estimate(value, (low, high))
