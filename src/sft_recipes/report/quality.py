"""What an evaluation found, as a page shows it: the tables, charts and telling rows of its files."""

import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sft_recipes.evaluate.terms import IN_SENTENCES, METRICS, NAMES
from sft_recipes.report import charts, rows
from sft_recipes.report.table import Cell, Estimate, Table, p_values

Facts = dict[str, Any]
Lines = Sequence[tuple[str, Mapping[str, Facts]]]
"""Of a chart: each with its label, and the metrics of models by their role (a key of `charts.MARKER`)."""

# Rows that tell most: so many, of which so many missed and broken ones at first.
TELLING, MISSED, BROKEN = 20, 10, 5
# More classes make no readable matrix; then so many of the most frequent confusions are listed instead.
MOST_CLASSES, CONFUSIONS = 25, 30
# More groups make no readable chart.
MOST_GROUPS = 20

OUTCOMES = {"better": "better", "worse": "worse", "not_distinguishable": "not distinguishable", "none": "no verdict"}
# And of a pair, which is not tested where so few rows are scored that nothing is concluded.
PAIRED = OUTCOMES | {"none": "not tested"}
# Why a row tells: what the two models made of it and whose confidence puts it first; and the same for generation.
WHY = {
    "missed": (
        "Wrong by the tuned model",
        "tuned",
        "The tuned model's answers with the fewest words in common with the reference.",
    ),
    "broken by training": (
        "Right by the base model and wrong by the tuned one",
        "tuned",
        "Answers whose words in common with the reference fell most from the base model to the tuned one.",
    ),
    "fixed by training": (
        "Wrong by the base model and right by the tuned one",
        "base",
        "Answers whose words in common with the reference rose most from the base model to the tuned one.",
    ),
}


def shown(metrics: Facts, predictions: Sequence[Facts]) -> Facts | None:
    """What quality.html shows; None if no row was scored."""
    if not metrics["models"]:
        return None
    classification = metrics["task"] == "classification"
    always = {f"always {label}": each for label, each in metrics["baselines"].get("always", {}).items()}
    both = _models(metrics["models"])
    return {
        "charts": plots("models", lines(metrics), drawn(metrics)),
        "models": models_table(metrics),
        "tests": _tests(metrics),
        "always": estimates("The same class for every row", always, _columns(always, metrics), "invalid", "invalid"),
        "classes": _classes(metrics["models"]) if classification else None,
        "confusion": [_confusion(name, metrics["models"][name]["confusion"]) for name in both if classification],
        "reliability": _reliability({name: metrics["models"][name] for name in both}) if classification else None,
        "groups": _groups(metrics) if metrics["groups"] and metrics["groups"]["by"] else None,
        "telling": _telling(metrics["task"], predictions),
    }


def browser(metrics: Facts, predictions: Sequence[Facts]) -> Facts | None:
    """What browser.html shows of the scored rows; None where there are none."""
    scored = _scored(predictions)
    if not (scored and metrics["models"]):
        return None
    answers = {NAMES[name]: [row[name] for row in scored] for name in _models(metrics["models"])}
    return rows.browser(scored, answers, metrics["labels"], "wrong")


def _scored(predictions: Sequence[Facts]) -> list[Facts]:
    return [row for row in predictions if not row["leaked"] and "tuned" in row]


def models_table(metrics: Facts) -> Table:
    """The models and the baselines with their metrics."""
    named = {NAMES.get(name, name): each for name, each in _with_baselines(metrics).items()}
    counted = "invalid" if metrics["task"] == "classification" else "unfinished"
    return estimates("Models and trivial baselines, same rows", named, _columns(named, metrics), counted, counted)


def groups_table(metrics: Facts) -> Table:
    """The metrics of each group and model, the largest group first."""
    by = _groups_by_size(metrics)
    named = {f"{group}, {name}": {"n": each["n"], **each[name]} for group, each in by for name in _models(each)}
    return estimates("Metrics by group", named, _columns(named, metrics), "n", "rows")


def lines(metrics: Facts) -> Lines:
    """The models and the baselines as the lines of a chart."""
    of = _with_baselines(metrics).items()
    return [(NAMES.get(name, name), {name if name in charts.MARKER else "other": each}) for name, each in of]


def drawn(metrics: Facts) -> dict[str, str]:
    """The metrics that are drawn, with their names: the primary one first."""
    keys = (metrics["primary"], "accuracy" if metrics["task"] == "classification" else "exact_match")
    return {key: METRICS[key] for key in keys}


def panel(of: Lines, key: str, title: str) -> Any:
    """What draws one metric of these lines on axes."""
    rows = [(label, [(role, each.get(key)) for role, each in models.items()]) for label, models in of]
    return functools.partial(charts.intervals, rows=rows, title=title)


def plots(name: str, of: Lines, columns: Mapping[str, str]) -> list[Any]:
    """A chart a metric; `name` is unique in the page."""
    size, label = (charts.WIDTH, 0.5 + 0.27 * len(of)), "{} with intervals; a table below has the figures"
    return [
        charts.svg(f"{name}-{key}", label.format(title), panel(of, key, title), size) for key, title in columns.items()
    ]


def estimates(title: str, named: Mapping[str, Facts], columns: Mapping[str, str], counted: str, noun: str) -> Table:
    """A table of metrics by the name of their row, with the number under the key `counted` before them."""
    rows: list[list[Cell]] = []
    for name, each in named.items():
        found = each.get(counted)
        number = found["count"] if isinstance(found, dict) else found
        rows.append([name, number, *(Estimate.of(each.get(key)) for key in columns)])
    return Table(title, ["", noun, *columns.values()], rows)


def _models(named: Mapping[str, Any]) -> list[str]:
    """Which of the models are there."""
    return [name for name in ("tuned", "earlier", "base") if name in named]


def _with_baselines(metrics: Facts) -> dict[str, Facts]:
    """The models and the baselines, without the single classes of `always`."""
    models = {name: metrics["models"][name] for name in _models(metrics["models"])}
    return models | {name: each for name, each in metrics["baselines"].items() if name != "always"}


def _columns(named: Mapping[str, Facts], metrics: Facts) -> dict[str, str]:
    """The metrics that any of these has, with their names, the primary one before the others."""
    have = {key for each in named.values() for key, found in each.items() if found}
    return {key: METRICS[key] for key in dict.fromkeys((metrics["primary"], *METRICS)) if key in have}


def _tests(metrics: Facts) -> Table:
    rows: list[list[Cell]] = []
    for name, each in metrics["paired"].items():
        mcnemar = each["mcnemar"]
        only = [mcnemar["only_tuned"], mcnemar["only_other"], *p_values(mcnemar, "p")]
        difference = Estimate.of(each["difference"], "+")
        chance = [*p_values(each, "p", "p_holm"), PAIRED[each["outcome"]]]
        rows.append([NAMES.get(name, name), difference, *chance, *only])
    header = ["tuned model against", METRICS[metrics["primary"]], "p", "p, Holm", "tuned is"]
    header += ["only tuned right", "only other right", "McNemar p"]
    return Table("Paired bootstrap of the difference, and McNemar's exact test", header, rows)


def _classes(models: Facts) -> Table:
    columns = {"precision": "precision", "recall": "recall", "f1": "F1"}
    named = {label: dict(each) for label, each in models["tuned"]["classes"].items()}
    if "base" in models:
        columns["base"] = "F1 of base"
        for label, each in models["base"]["classes"].items():
            named[label]["base"] = each["f1"]
    return estimates("The tuned model by class", named, columns, "support", "rows")


def _confusion(model: str, confusion: Facts) -> Facts:
    """The matrix, each cell its rows and their share of the gold class; of many classes the confusions."""
    title, gold, predicted = NAMES[model].capitalize(), confusion["gold"], confusion["predicted"]
    if len(gold) <= MOST_CLASSES:
        counted = zip(gold, confusion["counts"], strict=True)
        cells = [(label, [(n, n / max(1, sum(line))) for n in line]) for label, line in counted]
        return {"title": title, "predicted": predicted, "cells": cells}
    wrong = [
        (n, i, j)
        for i, line in enumerate(confusion["counts"])
        for j, n in enumerate(line)
        if n and gold[i] != predicted[j]
    ]
    listed = {"gold": gold, "predicted": predicted, "pairs": sorted(wrong, reverse=True)[:CONFUSIONS]}
    return {"title": f"{title}: most frequent confusions", **listed}


def _reliability(models: Mapping[str, Facts]) -> Facts | None:
    if not all(model["reliability"] for model in models.values()):
        return None
    drawn, tables = [], []
    for name, model in models.items():
        bins = [each for each in model["reliability"] if each["n"]]
        title = f"{NAMES[name]}: accuracy, ECE {model['ece']['value']:.3f}"
        draw = functools.partial(charts.reliability, bins=bins, role=name, title=title)
        drawn.append(charts.svg(f"reliability-{name}", f"{title}, over mean confidence", draw, (charts.WIDTH, 3.6)))
        figures = [
            [
                f"{each['low']:.2f} to {each['high']:.2f}",
                each["n"],
                Estimate(each["confidence"]),
                Estimate(each["accuracy"], *each["interval"]),
            ]
            for each in bins
        ]
        tables.append(Table(NAMES[name].capitalize(), ["confidence", "rows", "mean", "accuracy"], figures))
    return {"charts": drawn, "tables": tables, "worse": [*less_calibrated(models)]}


def less_calibrated(models: Mapping[str, Facts]) -> Iterator[str]:
    """That the tuned model's confidence is further from its accuracy than another model's, and which way it errs."""
    tuned = models["tuned"]
    bins = [each for each in tuned["reliability"] if each["n"]]
    said, right = (sum(each["n"] * each[key] for each in bins) for key in ("confidence", "accuracy"))
    total = sum(each["n"] for each in bins)
    for name, model in models.items():
        if name == "tuned" or tuned["ece"]["value"] <= model["ece"]["value"]:
            continue
        ends = (tuned["ece"]["low"], model["ece"]["high"])
        apart = None not in ends and ends[0] > ends[1]
        yield (
            f"Calibration got worse than that of {IN_SENTENCES[name]}: ECE {Estimate.of(tuned['ece'])} against "
            f"{Estimate.of(model['ece'])}{'' if apart else ', whose intervals overlap'}. On average the tuned model's "
            f"confidence is {said / total:.3f} and its accuracy {right / total:.3f}, so it is "
            f"{'too sure' if said > right else 'not sure enough'} of its answers."
        )


def _groups(metrics: Facts) -> Facts:
    groups, by = metrics["groups"], _groups_by_size(metrics)
    models = _models(by[0][1])
    columns = _columns({f"{group}, {name}": each[name] for group, each in by for name in models}, metrics)
    of = [(f"{charts.short(group, 18)} ({each['n']:,})", {name: each[name] for name in models}) for group, each in by]
    gaps = [
        [NAMES[name], METRICS[key], Estimate.of(gap), gap["largest"] or "none", gap["smallest"] or "none"]
        for name in models
        for key in columns
        if (gap := groups["gaps"].get(name, {}).get(key))
    ]
    return {
        "small": sum(each["n"] < groups["minimum"] for _, each in by),
        "charts": plots("groups", of[:MOST_GROUPS], columns),
        "key": [(name, {"tuned": "●", "earlier": "△", "base": "◇"}[name], NAMES[name]) for name in models],
        "metrics": groups_table(metrics),
        "gaps": Table("Largest gap between two groups", ["", "metric", "gap", "largest", "smallest"], gaps, "words"),
    }


def _groups_by_size(metrics: Facts) -> list[tuple[str, Facts]]:
    return sorted(metrics["groups"]["by"].items(), key=lambda item: -item[1]["n"])


def telling(task: str, predictions: Sequence[Facts]) -> list[tuple[str, Facts]]:
    """The rows that tell most, at most `TELLING` of those scored, each once, with the key of `WHY` that tells why.

    Args:
        task: `classification`, where a row is right or wrong, or `generation`, where it is as right as it has words
            in common with the reference (F1).
        predictions: the rows of predictions.jsonl.
    """
    scored = _scored(predictions)
    score = _overlap if task == "generation" else _right
    tuned = [score(row, "tuned") for row in scored]
    gain = [right - score(row, "base") if "base" in row else 0.0 for right, row in zip(tuned, scored, strict=True)]

    def sure(number: int, model: str) -> float:
        return rows.confidence(scored[number][model]) or 0.0

    every = range(len(scored))
    missed = sorted((n for n in every if tuned[n] < 1), key=lambda n: (tuned[n], -sure(n, "tuned")))
    broken = sorted((n for n in every if gain[n] < 0), key=lambda n: (gain[n], -sure(n, "tuned")))
    fixed = sorted((n for n in every if gain[n] > 0), key=lambda n: (-gain[n], -sure(n, "base")))
    chosen: dict[int, str] = {}
    takes = zip((missed, broken, fixed, missed), (*WHY, "missed"), (MISSED, BROKEN, TELLING, TELLING), strict=True)
    for candidates, why, most in takes:
        fresh = [number for number in candidates if number not in chosen]
        chosen |= dict.fromkeys(fresh[: min(most, TELLING - len(chosen))], why)
    return [(why, scored[number]) for number, why in chosen.items()]


def _right(row: Facts, model: str) -> float:
    return float(row[model]["prediction"] == row["gold"])


def _overlap(row: Facts, model: str) -> float:
    words, wanted = (row[model]["prediction"] or "").split(), row["reference"].split()
    common = (Counter(words) & Counter(wanted)).total()
    return 2 * common / (len(words) + len(wanted)) if words or wanted else 1.0


def _telling(task: str, predictions: Sequence[Facts]) -> Facts | None:
    chosen = telling(task, predictions)
    begin, parts = rows.common([row["prompt"] for _, row in chosen]), []
    for why, (what, surest, rule) in WHY.items():
        of = [row for reason, row in chosen if reason == why]
        if of and task == "classification":
            order = f"the {surest} model's surest first" if of[0]["tuned"]["probabilities"] else "in file order"
            rule = f"{what}, {order}."
        if of:
            made = [rows.entry(row, {name: row[name] for name in _models(row)}, len(begin), task) for row in of]
            parts.append({"why": why.capitalize(), "rule": rule, "rows": made})
    return {"begin": begin, "parts": parts} if chosen else None
