"""From the predictions of base and tuned model to the numbers of metrics.json: intervals, paired tests, a verdict.

Only rows that are not leaked count. Proportions have Wilson intervals and the F1 of a class the one derived from it,
ROC-AUC has DeLong's; everything else, differences first of all, has a seeded bootstrap over rows. One set of resamples
serves all models and baselines, so that their differences are paired. What is undefined is None, never 0 or NaN.
What these choices rest on is in docs/intervals.md.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sft_recipes.data.readers import Problems
from sft_recipes.evaluate import baselines, classification, generation
from sft_recipes.evaluate.statistics import (
    CONFIDENCE,
    RESAMPLES,
    bootstrap,
    difference_p,
    estimate,
    holm,
    mcnemar,
    percentile,
    share_of,
    wilson,
)
from sft_recipes.evaluate.verdict import MINIMUM_ROWS, verdict
from sft_recipes.recipes import json_schemas

Row = Mapping[str, Any]
Train = Sequence[tuple[str, str]]
Floats = NDArray[np.float64]
Codes = NDArray[np.intp]

MODELS = ("base", "earlier", "tuned")
# Groups of fewer rows take no part in gaps. With so many the interval of an accuracy is up to 34 points wide.
MINIMUM_GROUP = 30
# Even if all of fewer rows favoured one model, an exact test would not reach p = 0.05: 2 x 0.5^5 = 0.06.
MINIMUM_DIFFERING = 6
GROUP_SCORES = ("accuracy", "macro_f1", "fpr", "fnr")


@dataclass(frozen=True)
class _Sample:
    """Rows with what every predictor makes of them.

    Args:
        predictors: names, in the order of the predictors' axis of every array.
        scores: names, in the order of the last axis.
        data: what `table` takes, first axis the row.
        table: from the data of some rows to each row's cell, and a function from counts of cells to scores.
        right: shape (rows, predictors), whether it is right.
        shares: for each score that is a share, the rows of which it is one.
    """

    predictors: list[str]
    scores: tuple[str, ...]
    data: NDArray[Any]
    table: Callable[[NDArray[Any]], tuple[Codes, Callable[[Floats], Floats]]]
    right: NDArray[np.bool_]
    shares: dict[str, NDArray[np.bool_]]

    def bootstrap(self, seed: Sequence[int], resamples: int, rows: Any = slice(None)) -> tuple[Floats, Floats]:
        """The scores (predictors, scores), and those of resampled rows (resamples, predictors, scores)."""
        cells, statistic = self.table(self.data[rows])
        observed = statistic(np.bincount(cells)[None].astype(float))[0]
        return observed, bootstrap(statistic, cells, seed=seed, resamples=resamples)

    def estimates(self, observed: Floats, resampled: Floats, model: str, rows: Any = slice(None)) -> dict[str, Any]:
        """Every score of one predictor with its interval."""
        which = self.predictors.index(model)
        result = {}
        for score, value, draws in zip(self.scores, observed[which], resampled[:, which].T, strict=True):
            if score in self.shares:
                trials = int(np.count_nonzero(self.shares[score][rows]))
                result[score] = estimate(value, wilson(value * trials, trials))
            else:
                result[score] = estimate(value, percentile(draws))
        return result


def measure(
    rows: Sequence[Row],
    task: str,
    train: Train,
    labels: Sequence[str] | None = None,
    *,
    json_schema: Any = None,
    group_column: str | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """Everything of metrics.json from `labels` to `verdict`.

    Args:
        rows: the objects of predictions.jsonl.
        task: "classification" or "generation".
        train: the prompt (its last user turn) and the class or answer of every training row, for the baselines.
        labels: the classes of a classification, in the order of all tables.
        json_schema: what the answers of a generation task have to be; then `valid_json` is the primary metric.
        group_column: the name of what `group` holds, None where there are no groups.

    Raises:
        InputError: A row lacks a model, or holds what is no label or what contradicts its probabilities; or the
            schema is not valid.
    """
    labels = labels if task == "classification" else None
    scored = [row for row in rows if not row["leaked"]]
    models = [name for name in MODELS if any(name in row for row in scored)]
    result: dict[str, Any] = {
        "labels": None if labels is None else list(labels),
        "primary": _primary(labels, json_schema),
        "seed": seed,
        "resamples": resamples,
        "confidence": CONFIDENCE,
        "models": {},
        "baselines": {},
        "paired": {},
        "groups": None,
    }
    if scored:
        _check(scored, models, labels, train)
        if labels is not None:
            sample, numbers = _classify(scored, models, train, labels, seed, resamples)
        else:
            sample, numbers = _compare_texts(scored, models, train, json_schema, seed, resamples)
        result |= numbers
        if group_column is not None:
            groups = _groups(sample, scored, models, seed, resamples)
            positive = None if labels is None else _positive(labels, train)
            result["groups"] = {"column": group_column, "minimum": MINIMUM_GROUP, "positive": positive} | groups
    most = baselines.MOST_NEIGHBOURS if labels is None else baselines.MOST_ROWS
    unseen = len(train) - len(baselines.sample([text for text, _ in train], seed, most))
    return result | {"verdict": verdict(result, rows, unseen)}


def _primary(labels: Sequence[str] | None, json_schema: Any) -> str:
    return "macro_f1" if labels is not None else "rougeL" if json_schema is None else "valid_json"


def _positive(labels: Sequence[str], train: Train) -> str | None:
    """The label whose FPR and FNR are meant: of two the one rarer in training, of equals the second.

    It is the one that is looked for, as a rule. None with more labels: then both rates are means over the labels, each
    against all others, which with two labels would be equal to each other.
    """
    if len(labels) != 2:
        return None
    rows = Counter(label for _, label in train)
    return labels[0] if rows[labels[0]] < rows[labels[1]] else labels[1]


def _check(rows: Sequence[Row], models: Sequence[str], labels: Sequence[str] | None, train: Train = ()) -> None:
    """Refuse what no scorer of ours writes, and training rows of other classes."""
    problems = Problems()
    known = None if labels is None else set(labels)
    if known is not None:
        for label in sorted({label for _, label in train} - known):
            problems.add("training rows", f"the class {label!r} is none of the labels; write it into labels")
    for row in rows:
        place = f"predictions, row {row['row']}"
        if known is not None and row["gold"] not in known:
            problems.add(place, f"gold is {row['gold']!r}, which is none of the labels")
        for model in models:
            if model not in row:
                problems.add(place, f"no answer of {model}, which other rows have; evaluate again")
            elif known is not None and (fault := _fault(row[model], rows[0].get(model, {}), known)):
                problems.add(place, f"{model}: {fault}; evaluate again")
    problems.stop()


def _fault(answer: Row, first_answer: Row, labels: set[str]) -> str | None:
    prediction, probabilities = answer["prediction"], answer.get("probabilities")
    if prediction is not None and prediction not in labels:
        return f"the prediction {prediction!r} is none of the labels"
    if (probabilities is None) != (first_answer.get("probabilities") is None):
        return "only some rows have probabilities"
    if probabilities is None:
        return None
    if set(probabilities) != labels or not math.isclose(sum(probabilities.values()), 1, abs_tol=1e-3):
        return "the probabilities are not of all labels or do not add up to 1"
    if prediction is None or probabilities[prediction] < max(probabilities.values()) - 1e-6:
        return f"the prediction {prediction!r} is not the most probable label"
    return None


def _codes(rows: Sequence[Row], models: Sequence[str], labels: Sequence[str]) -> tuple[Codes, dict[str, Codes]]:
    """The class of each row and what each model says, as `classification` numbers them."""
    code: dict[str | None, int] = {label: number for number, label in enumerate(labels)} | {None: len(labels)}
    said = {model: np.array([code[row[model]["prediction"]] for row in rows]) for model in models}
    return np.array([code[row["gold"]] for row in rows]), said


def _class_sample(gold: Codes, said: Mapping[str, Codes], classes: int, positive: int | None) -> _Sample:
    data = np.stack([gold, *said.values()], axis=1)
    shares = {"accuracy": np.ones(len(gold), dtype=bool)}
    if positive is not None:
        shares |= {"fpr": gold != positive, "fnr": gold == positive}
    return _Sample(
        predictors=list(said),
        scores=classification.SCORES,
        data=data,
        table=lambda part: classification.table(part, classes, positive),
        right=data[:, 1:] == gold[:, None],
        shares=shares,
    )


def _text_sample(rows: Sequence[Row], said: Mapping[str, Sequence[str]], json_schema: Any) -> _Sample:
    checker = None if json_schema is None else json_schemas.validator(json_schema)
    calls = [row.get("call", False) for row in rows]
    left_out = {*(() if checker else ("valid_json",)), *(() if any(calls) else ("call_match",))}
    scores = tuple(score for score in generation.SCORES if score not in left_out)
    references = [row["reference"] for row in rows]
    data = np.stack([generation.scores(references, texts, checker, calls) for texts in said.values()], axis=1)
    every = np.ones(len(rows), dtype=bool)
    return _Sample(
        predictors=list(said),
        scores=scores,
        data=data,
        table=generation.table,
        right=data[:, :, 0] == 1,
        shares={"exact_match": every, "valid_json": every, "call_match": np.array(calls, dtype=bool)},
    )


def _classify(
    rows: Sequence[Row], models: Sequence[str], train: Train, labels: Sequence[str], seed: int, resamples: int
) -> tuple[_Sample, dict[str, Any]]:
    gold, said = _codes(rows, models, labels)
    code = {label: number for number, label in enumerate(labels)}
    known = np.array([code[label] for _, label in train])
    prompts = [row["prompt"] for row in rows]
    trivial = baselines.classes([text for text, _ in train], known, prompts, len(labels), seed)
    always = dict(zip(labels, classification.always(gold, len(labels)), strict=True))
    best = max(labels, key=lambda label: always[label]["macro_f1"]["value"])
    said |= trivial | {"always_best": np.full(len(gold), code[best])}
    positive = _positive(labels, train)
    sample = _class_sample(gold, said, len(labels), None if positive is None else code[positive])
    observed, resampled = sample.bootstrap([seed], resamples)

    def described(name: str) -> dict[str, Any]:
        probabilities = None
        if name in models and rows[0][name].get("probabilities") is not None:
            probabilities = np.array([[row[name]["probabilities"][label] for label in labels] for row in rows])
        draws = resampled[:, sample.predictors.index(name)]
        return classification.describe(gold, said[name], labels, draws, probabilities, seed)

    return sample, {
        "models": {name: described(name) for name in models},
        "baselines": {name: described(name) for name in trivial} | {"always": always},
        "paired": _all_paired(sample, observed, resampled, "macro_f1"),
    }


def _compare_texts(
    rows: Sequence[Row], models: Sequence[str], train: Train, json_schema: Any, seed: int, resamples: int
) -> tuple[_Sample, dict[str, Any]]:
    texts, answers = [text for text, _ in train], [answer for _, answer in train]
    trivial = baselines.answers(texts, answers, [row["prompt"] for row in rows], seed)
    said = {model: [row[model]["prediction"] for row in rows] for model in models} | trivial
    sample = _text_sample(rows, said, json_schema)
    observed, resampled = sample.bootstrap([seed], resamples)

    def described(name: str) -> dict[str, Any]:
        unfinished = None
        if name in models:
            number = sum(row[name].get("finished") is False for row in rows)
            unfinished = {"count": number, "share": share_of(number, len(rows))}
        numbers = sample.estimates(observed, resampled, name)
        return {score: numbers.get(score) for score in generation.SCORES} | {"unfinished": unfinished}

    return sample, {
        "models": {name: described(name) for name in models},
        "baselines": {name: described(name) for name in trivial},
        "paired": _all_paired(sample, observed, resampled, _primary(None, json_schema)),
    }


def _all_paired(sample: _Sample, observed: Floats, resampled: Floats, primary: str) -> dict[str, Any]:
    """The tuned model against every other, worse than one only where Holm's correction over all of them leaves it so.

    To be better it has to beat each of them, which needs no correction; one of many seems to beat it by chance alone.
    Of fewer rows than a verdict needs there are differences, and no tests.
    """
    if "tuned" not in sample.predictors:
        return {}
    others = [name for name in sample.predictors if name != "tuned"]
    pairs = {name: _paired(sample, observed, resampled, primary, "tuned", name) for name in others}
    for pair, corrected in zip(pairs.values(), holm([pair["p"] for pair in pairs.values()]), strict=True):
        pair["p_holm"] = corrected
        if len(sample.data) < MINIMUM_ROWS:
            pair |= {"p": None, "p_holm": None, "outcome": "none", "mcnemar": pair["mcnemar"] | {"p": None}}
        elif pair["outcome"] == "worse" and corrected > 1 - CONFIDENCE:
            pair["outcome"] = "not_distinguishable"
    return pairs


def _paired(
    sample: _Sample, observed: Floats, resampled: Floats, primary: str, first: str, second: str
) -> dict[str, Any]:
    """First minus second on the same rows, and McNemar's test of which are right."""
    column = sample.scores.index(primary)
    one, other = sample.predictors.index(first), sample.predictors.index(second)
    value = observed[one, column] - observed[other, column]
    draws = resampled[:, one, column] - resampled[:, other, column]
    only_first = int(np.count_nonzero(sample.right[:, one] & ~sample.right[:, other]))
    only_second = int(np.count_nonzero(sample.right[:, other] & ~sample.right[:, one]))
    differing = only_first + only_second
    if primary != "macro_f1":
        differing = int(np.count_nonzero(sample.data[:, one, column] != sample.data[:, other, column]))
    # With few rows that differ, resamples cannot know what other rows would have said: no interval, and no p-value
    # below the smallest of an exact sign test.
    enough = differing >= MINIMUM_DIFFERING
    p = difference_p(draws) if enough else max(difference_p(draws), min(1.0, 2 * 0.5**differing))
    outcome = "not_distinguishable" if p > 1 - CONFIDENCE else "better" if value > 0 else "worse"
    return {
        "metric": primary,
        "difference": estimate(value, percentile(draws) if enough else None),
        "p": p,
        "outcome": outcome,
        "differing": differing,
        "mcnemar": {"only_tuned": only_first, "only_other": only_second, "p": mcnemar(only_first, only_second)},
    }


def _groups(sample: _Sample, rows: Sequence[Row], models: Sequence[str], seed: int, resamples: int) -> dict[str, Any]:
    """Scores by group, and the largest gap of each."""
    classes = sample.scores == classification.SCORES
    scores = GROUP_SCORES if classes else sample.scores
    groups = sorted({row["group"] for row in rows} - {None})
    members = {group: np.flatnonzero([row["group"] == group for row in rows]) for group in groups}
    # A seed for each: groups are resampled independently of each other.
    drawn = {
        group: sample.bootstrap([seed, number], resamples, members[group]) for number, group in enumerate(groups, 1)
    }
    by: dict[str, Any] = {}
    for group, inside in members.items():
        by[group] = {"n": len(inside)}
        for model in models:
            numbers = sample.estimates(*drawn[group], model, inside)
            by[group][model] = {score: numbers[score] for score in scores}
            if classes:
                invalid = sum(rows[int(row)][model]["prediction"] is None for row in inside)
                by[group][model]["invalid"] = {"count": invalid, "share": share_of(invalid, len(inside))}
    large = {group: drawn[group] for group in groups if len(members[group]) >= MINIMUM_GROUP}
    gaps = {
        model: {score: _gap(large, sample.predictors.index(model), sample.scores.index(score)) for score in scores}
        for model in models
    }
    return {"by": by, "gaps": gaps}


def _gap(drawn: Mapping[str, tuple[Floats, Floats]], which: int, score: int) -> dict[str, Any]:
    """The largest difference of a score between two groups, with an interval that knows that it is the largest.

    The interval reaches as far to both sides as, in 95 % of the resamples, the difference between any two groups
    strays at most from the one observed: it holds for all pairs at once, as Tukey's range does.
    """
    names = [name for name, (observed, _) in drawn.items() if not np.isnan(observed[which, score])]
    if len(names) < 2:
        return estimate(np.nan, None) | {"largest": None, "smallest": None}
    values = np.array([drawn[name][0][which, score] for name in names])
    strays = np.stack([drawn[name][1][:, which, score] for name in names], axis=1) - values
    defined = strays[~np.isnan(strays).any(axis=1)]
    gap = float(np.ptp(values))
    bounds = None
    if len(defined) >= CONFIDENCE * len(strays) and defined.any():
        half = float(np.quantile(np.ptp(defined, axis=1), CONFIDENCE))
        bounds = max(0.0, gap - half), min(1.0, gap + half)
    return estimate(gap, bounds) | {"largest": names[values.argmax()], "smallest": names[values.argmin()]}
