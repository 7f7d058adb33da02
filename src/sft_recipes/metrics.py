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

from sft_recipes import baselines, classification, generation
from sft_recipes.readers import Problems
from sft_recipes.statistics import (
    CONFIDENCE,
    RESAMPLES,
    Estimate,
    bootstrap,
    difference_p,
    estimate,
    mcnemar,
    percentile,
    wilson,
)
from sft_recipes.terminal import count, share

Row = Mapping[str, Any]
Floats = NDArray[np.float64]
Codes = NDArray[np.intp]

MODELS = ("base", "tuned")
# Of fewer scored rows nothing is concluded, and of a class of fewer rows nothing can be said by itself.
MINIMUM_ROWS = 100
MINIMUM_CLASS = 10
MINIMUM_GROUP = 30
# Even if all of fewer rows favoured one model, an exact test would not reach p = 0.05: 2 x 0.5^5 = 0.06.
MINIMUM_DISCORDANT = 6

GROUP_SCORES = ("accuracy", "macro_f1", "fpr", "fnr")
NAMES = {
    "base": "the base",
    "tuned": "the tuned model",
    "majority": "the majority class",
    "stratified": "a stratified draw",
    "tfidf_logistic_regression": "TF-IDF + logistic regression",
    "most_common_answer": "the most common answer",
    "nearest_training_row": "the nearest training row's answer",
    "macro_f1": "macro F1",
    "rougeL": "ROUGE-L",
    "valid_json": "valid JSON",
}


@dataclass(frozen=True)
class _Sample:
    """Rows with what every predictor makes of them.

    Args:
        predictors: names, in the order of the predictors' axis of every array.
        scores: names, in the order of the last axis.
        data: what `table` takes, first axis the row.
        table: from the data of some rows to each row's cell, and a function from counts of cells to scores.
        shares: for each score that is a share, the rows of which it is one.
        right: for each predictor which rows it has right.
    """

    predictors: list[str]
    scores: tuple[str, ...]
    data: NDArray[Any]
    table: Callable[[NDArray[Any]], tuple[Codes, Callable[[Floats], Floats]]]
    shares: dict[str, NDArray[np.bool_]]
    right: dict[str, NDArray[np.bool_]]

    def bootstrap(self, seed: Sequence[int], resamples: int, rows: Any = slice(None)) -> tuple[Floats, Floats]:
        """The scores (predictors, scores), and those of resampled rows (resamples, predictors, scores)."""
        cells, statistic = self.table(self.data[rows])
        observed = statistic(np.bincount(cells)[None].astype(float))[0]
        return observed, bootstrap(statistic, cells, seed=seed, resamples=resamples)

    def estimate(self, score: str, value: float, resampled: Floats, rows: Any = slice(None)) -> Estimate:
        """A score of one predictor with its interval."""
        if score not in self.shares:
            return estimate(value, percentile(resampled))
        trials = int(np.count_nonzero(self.shares[score][rows]))
        return estimate(value, wilson(value * trials, trials))


def measure(
    rows: Sequence[Row],
    task: str,
    train: Sequence[tuple[str, str]],
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
    if not scored:
        reason = "every row's prompt is among the training rows" if rows else "there are no rows"
        return result | {"verdict": {"outcome": "none", "text": f"no verdict: {reason}", "reasons": [reason]}}
    _check(scored, models, labels)
    if labels is not None:
        sample, numbers = _classify(scored, models, train, labels, seed, resamples)
    else:
        sample, numbers = _compare_texts(scored, models, train, json_schema, seed, resamples)
    result |= numbers
    if group_column is not None:
        result["groups"] = _groups(sample, scored, models, group_column, seed, resamples)
    result["verdict"] = _verdict(result, rows, scored)
    return result


def difference(
    rows: Sequence[Row],
    first: str,
    second: str,
    labels: Sequence[str] | None = None,
    *,
    json_schema: Any = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """The paired difference of two models' primary metric, first minus second, as in `paired` of metrics.json.

    Args:
        rows: as in predictions.jsonl, with what the two say under their names, which may be any.
        labels: the classes of a classification, None for generation.

    Raises:
        InputError: as `measure`.
    """
    scored = [row for row in rows if not row["leaked"]]
    _check(scored, [first, second], labels)
    if labels is not None:
        gold, said = _codes(scored, [first, second], labels)
        sample = _class_sample(gold, said, len(labels), None)
    else:
        sample = _text_sample(scored, {name: _said(scored, name) for name in (first, second)}, json_schema)
    return _paired(sample, *sample.bootstrap([seed], resamples), _primary(labels, json_schema), first, second)


def _primary(labels: Sequence[str] | None, json_schema: Any) -> str:
    return "macro_f1" if labels is not None else "rougeL" if json_schema is None else "valid_json"


def _check(rows: Sequence[Row], models: Sequence[str], labels: Sequence[str] | None) -> None:
    """Refuse what no scorer of ours writes."""
    problems = Problems()
    known = set(labels or ())
    for row in rows:
        place = f"predictions, row {row['row']}"
        if labels is not None and row["gold"] not in known:
            problems.add(place, f"gold is {row['gold']!r}, which is none of the labels")
        for model in models:
            if model not in row:
                problems.add(place, f"no answer of {model}, which other rows have; evaluate again")
            elif labels is not None and (fault := _fault(row[model], known)):
                problems.add(place, f"{model}: {fault}; evaluate again")
    for model in models:
        if len({row[model].get("probabilities") is None for row in rows if model in row}) == 2:
            problems.add("predictions", f"only some rows have probabilities of {model}; evaluate again")
    problems.stop()


def _fault(answer: Mapping[str, Any], labels: set[str]) -> str | None:
    prediction, probabilities = answer["prediction"], answer.get("probabilities")
    if prediction is not None and prediction not in labels:
        return f"the prediction {prediction!r} is none of the labels"
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
    shares = {"accuracy": np.ones(len(gold), dtype=bool)}
    if positive is not None:
        shares |= {"fpr": gold != positive, "fnr": gold == positive}
    return _Sample(
        predictors=list(said),
        scores=classification.SCORES,
        data=np.stack([gold, *said.values()], axis=1),
        table=lambda codes: classification.table(codes, classes, positive),
        shares=shares,
        right={name: codes == gold for name, codes in said.items()},
    )


def _classify(
    rows: Sequence[Row],
    models: Sequence[str],
    train: Sequence[tuple[str, str]],
    labels: Sequence[str],
    seed: int,
    resamples: int,
) -> tuple[_Sample, dict[str, Any]]:
    gold, said = _codes(rows, models, labels)
    code = {label: number for number, label in enumerate(labels)}
    classes = np.array([code[label] for _, label in train])
    trivial = baselines.classes([text for text, _ in train], classes, _prompts(rows), len(labels), seed)
    always = classification.always(gold, len(labels))
    best = max(range(len(labels)), key=lambda number: always[number]["macro_f1"]["value"])
    said |= trivial | {"always_best": np.full(len(gold), best)}
    # With two labels the means over both would be equal; the rarer one is, as a rule, the one that is looked for.
    positive = int(np.argmin(np.bincount(classes, minlength=2)[::-1])) ^ 1 if len(labels) == 2 else None
    sample = _class_sample(gold, said, len(labels), positive)
    observed, resampled = sample.bootstrap([seed], resamples)

    def described(name: str) -> dict[str, Any]:
        probabilities = None
        if name in models and rows[0][name].get("probabilities") is not None:
            probabilities = np.array([[row[name]["probabilities"][label] for label in labels] for row in rows])
        draws = resampled[:, sample.predictors.index(name)]
        return classification.describe(gold, said[name], labels, draws, probabilities, seed)

    numbers = {
        "models": {name: described(name) for name in models},
        "baselines": {name: described(name) for name in trivial} | {"always": dict(zip(labels, always, strict=True))},
        "paired": _all_paired(sample, observed, resampled, "macro_f1"),
    }
    return sample, numbers


def _prompts(rows: Sequence[Row]) -> list[str]:
    return [row["prompt"] for row in rows]


def _said(rows: Sequence[Row], model: str) -> list[str]:
    return [row[model]["prediction"] for row in rows]


def _text_sample(rows: Sequence[Row], said: Mapping[str, Sequence[str]], json_schema: Any) -> _Sample:
    checker = None if json_schema is None else generation.validator(json_schema)
    references = [row["reference"] for row in rows]
    values = np.stack([generation.scores(references, texts, checker) for texts in said.values()], axis=1)
    every = np.ones(len(rows), dtype=bool)
    return _Sample(
        predictors=list(said),
        scores=generation.SCORES,
        data=values,
        table=generation.table,
        shares={"exact_match": every, "valid_json": every},
        right={name: values[:, number, 0] == 1 for number, name in enumerate(said)},
    )


def _compare_texts(
    rows: Sequence[Row],
    models: Sequence[str],
    train: Sequence[tuple[str, str]],
    json_schema: Any,
    seed: int,
    resamples: int,
) -> tuple[_Sample, dict[str, Any]]:
    texts, answers = [text for text, _ in train], [answer for _, answer in train]
    trivial = baselines.answers(texts, answers, _prompts(rows), seed)
    sample = _text_sample(rows, {model: _said(rows, model) for model in models} | trivial, json_schema)
    observed, resampled = sample.bootstrap([seed], resamples)

    def described(name: str) -> dict[str, Any]:
        which = sample.predictors.index(name)
        unfinished = None
        if name in models:
            number = sum(row[name]["finished"] is False for row in rows)
            unfinished = {"count": number, "share": estimate(number / len(rows), wilson(number, len(rows)))}
        numbers: dict[str, Any] = {
            score: sample.estimate(score, observed[which, column], resampled[:, which, column])
            for column, score in enumerate(sample.scores)
        }
        return (
            numbers
            | {"valid_json": numbers["valid_json"] if json_schema is not None else None}
            | {"unfinished": unfinished}
        )

    numbers = {
        "models": {name: described(name) for name in models},
        "baselines": {name: described(name) for name in trivial},
        "paired": _all_paired(sample, observed, resampled, _primary(None, json_schema)),
    }
    return sample, numbers


def _all_paired(sample: _Sample, observed: Floats, resampled: Floats, primary: str) -> dict[str, Any]:
    others = [name for name in sample.predictors if name != "tuned"]
    if "tuned" not in sample.predictors:
        return {}
    return {name: _paired(sample, observed, resampled, primary, "tuned", name) for name in others}


def _paired(
    sample: _Sample, observed: Floats, resampled: Floats, primary: str, first: str, second: str
) -> dict[str, Any]:
    """First minus second on the same rows."""
    column = sample.scores.index(primary)
    one, other = sample.predictors.index(first), sample.predictors.index(second)
    draws = resampled[:, one, column] - resampled[:, other, column]
    value = observed[one, column] - observed[other, column]
    p = difference_p(draws)
    # Rows on which their scores differ, and those that only one has right.
    if primary == "macro_f1":
        differing = np.count_nonzero(sample.right[first] != sample.right[second])
    else:
        differing = np.count_nonzero(sample.data[:, one, column] != sample.data[:, other, column])
    only_first = int(np.count_nonzero(sample.right[first] & ~sample.right[second]))
    only_second = int(np.count_nonzero(sample.right[second] & ~sample.right[first]))
    outcome = "not_distinguishable"
    if p <= 1 - CONFIDENCE and differing >= MINIMUM_DISCORDANT:
        outcome = "better" if value > 0 else "worse"
    return {
        "metric": primary,
        "difference": estimate(value, percentile(draws)),
        "p": p,
        "outcome": outcome,
        "mcnemar": {"only_tuned": only_first, "only_other": only_second, "p": mcnemar(only_first, only_second)},
    }


def _groups(
    sample: _Sample, rows: Sequence[Row], models: Sequence[str], column: str, seed: int, resamples: int
) -> dict[str, Any]:
    """Scores by group, and the largest gap of each."""
    members = np.array([row["group"] if row["group"] is not None else "" for row in rows])
    scores = GROUP_SCORES if sample.scores == classification.SCORES else sample.scores
    by: dict[str, Any] = {}
    drawn = {}
    for number, group in enumerate(sorted({row["group"] for row in rows} - {None})):
        inside = np.flatnonzero(members == group)
        # A seed of its own: groups are drawn independently of each other.
        drawn[group] = observed, resampled = sample.bootstrap([seed, number + 1], resamples, inside)
        by[group] = {"n": len(inside)}
        for model in models:
            which = sample.predictors.index(model)
            by[group][model] = {
                score: sample.estimate(score, observed[which, at], resampled[:, which, at], inside)
                for score in scores
                for at in [sample.scores.index(score)]
            }
    large = {group: drawn[group] for group in by if by[group]["n"] >= MINIMUM_GROUP}
    gaps = {
        model: {score: _gap(large, sample.predictors.index(model), sample.scores.index(score)) for score in scores}
        for model in models
    }
    return {"column": column, "minimum": MINIMUM_GROUP, "by": by, "gaps": gaps}


def _gap(drawn: Mapping[str, tuple[Floats, Floats]], which: int, score: int) -> dict[str, Any]:
    """The largest difference of a score between two groups, with an interval that knows that it is the largest.

    The interval reaches as far as the largest of all differences between groups strays from its observed value in
    95 % of the resamples, as Tukey's range does; it holds for every pair at once, so also for the one picked.
    """
    names = [name for name, (observed, _) in drawn.items() if not np.isnan(observed[which, score])]
    if len(names) < 2:
        return {"value": None, "low": None, "high": None, "largest": None, "smallest": None}
    values = np.array([drawn[name][0][which, score] for name in names])
    draws = np.stack([drawn[name][1][:, which, score] for name in names], axis=1)
    strays = draws - values
    strayed = np.nanmax(strays, axis=1) - np.nanmin(strays, axis=1)
    half = float(np.nanquantile(strayed, CONFIDENCE))
    gap = float(values.max() - values.min())
    bounds = (max(0.0, gap - half), min(1.0, gap + half)) if half else None
    return estimate(gap, bounds) | {"largest": names[values.argmax()], "smallest": names[values.argmin()]}


def _verdict(result: Mapping[str, Any], rows: Sequence[Row], scored: Sequence[Row]) -> dict[str, Any]:
    """What the paired differences say together, in one line.

    Better is better than the base and than every baseline, each at 95 %: an intersection-union test, which needs no
    correction for the number of comparisons (Berger 1982, doi:10.1080/00401706.1982.10487790).
    """
    reasons = _reasons(result, rows, scored)
    paired: dict[str, Any] = result["paired"]
    if "tuned" not in result["models"]:
        reasons.insert(0, "the tuned model was not scored")
        return {"outcome": "none", "text": f"no verdict: {reasons[0]}", "reasons": reasons}
    clauses = _clauses(result)
    if len(scored) < MINIMUM_ROWS:
        reasons.insert(0, f"{count(len(scored), 'row')} scored, fewer than {MINIMUM_ROWS}")
        return {"outcome": "none", "text": f"no verdict: {reasons[0]}", "reasons": reasons}
    if "base" not in paired:
        reasons.insert(0, "the base was not scored")
        return {"outcome": "none", "text": f"no verdict: {reasons[0]}; {clauses}", "reasons": reasons}
    outcomes = {pair["outcome"] for pair in paired.values()}
    outcome = next(word for word in ("worse", "not_distinguishable", "better") if word in outcomes)
    return {"outcome": outcome, "text": clauses, "reasons": reasons}


def _clauses(result: Mapping[str, Any]) -> str:
    """What the tuned model is worse than, not distinguishable from and better than, with the differences."""
    paired: dict[str, Any] = result["paired"]
    by_outcome = {
        outcome: [name for name in paired if paired[name]["outcome"] == outcome]
        for outcome in ("worse", "not_distinguishable", "better")
    }
    clauses = []
    for outcome, phrase in (("worse", "worse than"), ("not_distinguishable", "not distinguishable from")):
        named = [f"{_name(name, result)} ({_said_difference(paired[name])})" for name in by_outcome[outcome]]
        if named:
            clauses.append(f"{phrase} {' and '.join([', '.join(named[:-1])] * (len(named) > 1) + named[-1:])}")
    better = by_outcome["better"]
    beaten = [f"the base ({_said_difference(paired['base'])})"] if "base" in better else []
    trivial = [name for name in better if name != "base"]
    if trivial:
        best = min(trivial, key=lambda name: paired[name]["difference"]["value"])
        every = (
            "every trivial baseline" if len(trivial) == len(set(paired) - {"base"}) else "every other trivial baseline"
        )
        by = _said_difference(paired[best], with_metric=not beaten)
        beaten.append(f"{every} (the best, {_name(best, result)}, by {by})")
    if beaten:
        clauses.append(f"better than {' and '.join(beaten)}")
    return "; ".join(clauses)


def _said_difference(pair: Mapping[str, Any], with_metric: bool = True) -> str:
    value, low, high = (pair["difference"][key] for key in ("value", "low", "high"))
    digits = 3 if min(abs(number) for number in (value, low, high) if number is not None) < 0.01 else 2
    text = f"{value:+.{digits}f}" + (f" {NAMES[pair['metric']]}" if with_metric else "")
    interval = f"{low:.{digits}f} to {high:.{digits}f}" if low is not None else ""
    return text + (f", {'95 % ' if with_metric else ''}{interval}" if interval else "")


def _name(name: str, result: Mapping[str, Any]) -> str:
    if name != "always_best":
        return NAMES[name]
    always = result["baselines"]["always"]
    return f"always answering `{max(always, key=lambda label: always[label]['macro_f1']['value'])}`"


def _reasons(result: Mapping[str, Any], rows: Sequence[Row], scored: Sequence[Row]) -> list[str]:
    """What a reader of the verdict has to know about the rows and the tuned model's answers."""
    reasons = []
    if len(scored) < len(rows):
        left_out = count(len(rows) - len(scored), "row")
        reasons.append(f"{left_out} of {len(rows):,} left out: the prompt is among the training rows")
    for model in result["models"]:
        who = NAMES[model]
        said = Counter(row[model]["prediction"] for row in scored)
        if len(said) == 1 and len(scored) > 1:
            (only,) = said
            answer = f"`{only}`" if only is not None else "nothing valid"
            reasons.append(f"{who} answers {answer} for every row")
        elif result["labels"] and said[None]:
            reasons.append(f"{who}: {share(said[None], len(scored))} of the outputs are invalid")
        unfinished = sum(row[model].get("finished") is False for row in scored)
        if unfinished:
            reasons.append(f"{who}: {share(unfinished, len(scored))} of the outputs are cut at max_new_tokens")
    if result["labels"]:
        support = Counter(row["gold"] for row in scored)
        rare = [f"`{label}` ({support[label]})" for label in result["labels"] if support[label] < MINIMUM_CLASS]
        if rare:
            reasons.append(f"classes of fewer than {MINIMUM_CLASS} rows: {', '.join(rare)}")
    return reasons
