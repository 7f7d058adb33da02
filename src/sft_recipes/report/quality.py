"""What an evaluation found, as a page shows it: the tables, charts and telling rows of its files."""

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sft_recipes.evaluate.terms import METRICS, NAMES
from sft_recipes.report import charts
from sft_recipes.report.table import Cell, Estimate, Table, p_values

Facts = dict[str, Any]
Lines = Sequence[tuple[str, Mapping[str, Facts]]]
"""Of a chart: each with its label, and the metrics of one or two models by their role (a key of `charts.MARKER`)."""

# Rows that tell most: so many, of which so many missed and broken ones at first.
TELLING, MISSED, BROKEN = 20, 10, 5
# More classes make no readable matrix; then so many of the most frequent confusions are listed instead.
MOST_CLASSES, CONFUSIONS = 25, 30
# More groups make no readable chart.
MOST_GROUPS = 20

OUTCOMES = {"better": "better", "worse": "worse", "not_distinguishable": "not distinguishable", "none": "no verdict"}
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


def models_table(metrics: Facts) -> Table:
    """Tuned model, base model and baselines with their metrics."""
    named = {NAMES.get(name, name): each for name, each in _with_baselines(metrics).items()}
    counted = "invalid" if metrics["task"] == "classification" else "unfinished"
    return estimates("Models and trivial baselines, same rows", named, _columns(named, metrics), counted, counted)


def groups_table(metrics: Facts) -> Table:
    """The metrics of each group and model, the largest group first."""
    by = _groups_by_size(metrics)
    named = {f"{group}, {name}": {"n": each["n"], **each[name]} for group, each in by for name in _models(each)}
    return estimates("Metrics by group", named, _columns(named, metrics), "n", "rows")


def lines(metrics: Facts) -> Lines:
    """Tuned model, base model and baselines as the lines of a chart."""
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
    """Which of the two models is there."""
    return [name for name in ("tuned", "base") if name in named]


def _with_baselines(metrics: Facts) -> dict[str, Facts]:
    """The tuned model, the base model and the baselines, without the single classes of `always`."""
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
        chance = [*p_values(each, "p", "p_holm"), OUTCOMES[each["outcome"]]]
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


def _confusion(model: str, confusion: Facts) -> Facts | Table:
    """The matrix, each cell its rows and their share of the gold class; of many classes the confusions."""
    title, predicted = NAMES[model].capitalize(), confusion["predicted"]
    counted = list(zip(confusion["gold"], confusion["counts"], strict=True))
    if len(counted) <= MOST_CLASSES:
        cells = [(label, [(n, n / max(1, sum(line))) for n in line]) for label, line in counted]
        return {"title": title, "predicted": predicted, "cells": cells}
    wrong = [
        (n, label, other)
        for label, line in counted
        for other, n in zip(predicted, line, strict=True)
        if n and label != other
    ]
    rows = [[label, other, n] for n, label, other in sorted(wrong, reverse=True)[:CONFUSIONS]]
    return Table(f"{title}: most frequent confusions", ["gold", "predicted", "rows"], rows, "words")


def _reliability(models: Mapping[str, Facts]) -> Facts | None:
    if not all(model["reliability"] for model in models.values()):
        return None
    drawn, tables = [], []
    for name, model in models.items():
        bins = [each for each in model["reliability"] if each["n"]]
        title = f"{NAMES[name]}: accuracy, ECE {model['ece']['value']:.3f}"
        draw = functools.partial(charts.reliability, bins=bins, role=name, title=title)
        drawn.append(charts.svg(f"reliability-{name}", f"{title}, over mean confidence", draw, (charts.WIDTH, 3.6)))
        rows = [
            [
                f"{each['low']:.2f} to {each['high']:.2f}",
                each["n"],
                Estimate(each["confidence"]),
                Estimate(each["accuracy"], *each["interval"]),
            ]
            for each in bins
        ]
        tables.append(Table(NAMES[name].capitalize(), ["confidence", "rows", "mean", "accuracy"], rows))
    return {"charts": drawn, "tables": tables}


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
        "key": [(name, {"tuned": "●", "base": "◇"}[name], NAMES[name]) for name in models],
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
    rows = [row for row in predictions if not row["leaked"] and "tuned" in row]
    score = _overlap if task == "generation" else _right
    tuned = [score(row, "tuned") for row in rows]
    gain = [right - score(row, "base") if "base" in row else 0.0 for right, row in zip(tuned, rows, strict=True)]

    def sure(number: int, model: str) -> float:
        return _confidence(rows[number], model) or 0.0

    every = range(len(rows))
    missed = sorted((n for n in every if tuned[n] < 1), key=lambda n: (tuned[n], -sure(n, "tuned")))
    broken = sorted((n for n in every if gain[n] < 0), key=lambda n: (gain[n], -sure(n, "tuned")))
    fixed = sorted((n for n in every if gain[n] > 0), key=lambda n: (-gain[n], -sure(n, "base")))
    chosen: dict[int, str] = {}
    takes = zip((missed, broken, fixed, missed), (*WHY, "missed"), (MISSED, BROKEN, TELLING, TELLING), strict=True)
    for candidates, why, most in takes:
        fresh = [number for number in candidates if number not in chosen]
        chosen |= dict.fromkeys(fresh[: min(most, TELLING - len(chosen))], why)
    return [(why, rows[number]) for number, why in chosen.items()]


def _confidence(row: Facts, model: str) -> float | None:
    """The probability that a model gave its own prediction, None where there is none."""
    probabilities = row[model]["probabilities"]
    return probabilities[row[model]["prediction"]] if probabilities else None


def _right(row: Facts, model: str) -> float:
    return float(row[model]["prediction"] == row["gold"])


def _overlap(row: Facts, model: str) -> float:
    words, wanted = (row[model]["prediction"] or "").split(), row["reference"].split()
    common = (Counter(words) & Counter(wanted)).total()
    return 2 * common / (len(words) + len(wanted)) if words or wanted else 1.0


def _telling(task: str, predictions: Sequence[Facts]) -> Facts | None:
    chosen = telling(task, predictions)
    begin, parts = _common([row["prompt"] for _, row in chosen]), []
    for why, (what, surest, rule) in WHY.items():
        rows = [row for reason, row in chosen if reason == why]
        if rows and task == "classification":
            order = f"the {surest} model's surest first" if rows[0]["tuned"]["probabilities"] else "in file order"
            rule = f"{what}, {order}."
        if rows:
            parts.append(
                {"why": why.capitalize(), "rule": rule, "rows": [_row(row, len(begin), task) for row in rows]}
            )
    return {"begin": begin, "parts": parts} if chosen else None


def _row(row: Facts, begin: int, task: str) -> Facts:
    """A telling row: what the models said is in its title where it is a class, and below it where it is a text."""
    models = _models(row)
    made: Facts = {"number": row["row"], "group": row["group"], "gold": row["gold"], "answers": []}
    texts: dict[str, str] = {"prompt": row["prompt"][begin:]}
    if task == "generation":
        texts["reference"] = row["reference"]
        texts |= {name: row[name]["prediction"] or "" for name in models}
        return made | {"gold": None, "texts": texts}
    answers = [(name, row[name]["prediction"], row[name]["text"], _confidence(row, name)) for name in models]
    return made | {"answers": answers, "texts": texts}


def _common(prompts: Sequence[str]) -> str:
    """What all prompts begin with, up to the end of a word; nothing if that is short."""
    first, last = min(prompts, default=""), max(prompts, default="")
    length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    begin = first[: max(first.rfind("\n", 0, length), first.rfind(" ", 0, length)) + 1]
    return begin if len(prompts) > 1 and len(begin) > 40 else ""
