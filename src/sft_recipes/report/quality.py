"""What an evaluation found, as sections of a page, from metrics.json and predictions.jsonl."""

import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sft_recipes.evaluate.terms import METRICS, NAMES
from sft_recipes.report import charts
from sft_recipes.report.page import DASH, estimate, folded, number, side, table, text
from sft_recipes.terminal import count

Facts = dict[str, Any]
Lines = Sequence[tuple[str, Mapping[str, Facts]]]
"""Of a chart: each with its label, and the metrics of one or two models by their role (a key of `charts.MARKER`)."""

# Rows that tell most: so many, of which so many missed and broken ones at first.
TELLING, MISSED, BROKEN = 20, 10, 5
# Characters of a prompt or an answer that are shown, and of a class or a group.
LONGEST, LABEL = 1000, 100
# More classes make no readable matrix; then the most frequent confusions are listed instead.
MOST_CLASSES = 25

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


def sections(metrics: Facts, predictions: Sequence[Facts]) -> Iterator[str]:
    """The sections of a page, in order; none if no row was scored."""
    if not metrics["models"]:
        return
    yield _quality(metrics)
    if metrics["task"] == "classification":
        yield _classes(metrics)
        yield _confusion(metrics)
        yield _reliability(metrics)
    if metrics["groups"] and metrics["groups"]["by"]:
        yield _groups(metrics)
    yield _telling(metrics["task"], predictions)


def lines(metrics: Facts) -> Lines:
    """Tuned model, base model and baselines as the lines of a chart."""
    return [(NAMES.get(n, n), {n if n in charts.MARKER else "other": each}) for n, each in _models(metrics).items()]


def drawn(metrics: Facts) -> dict[str, str]:
    """The metrics that are drawn, with their names: the primary one first."""
    keys = (metrics["primary"], "accuracy" if metrics["task"] == "classification" else "exact_match")
    return {key: METRICS[key] for key in keys}


def panel(of: Lines, key: str, title: str) -> Any:
    """What draws one metric of these lines on axes."""
    rows = [(label, [(role, each.get(key)) for role, each in models.items()]) for label, models in of]
    return functools.partial(charts.intervals, rows=rows, title=title)


def plots(name: str, of: Lines, columns: Mapping[str, str]) -> str:
    """A chart a metric, beside each other; `name` is unique in the page."""
    size = (charts.WIDTH, 0.5 + 0.27 * len(of))
    return side(
        charts.svg(
            f"{name}-{key}", f"{title} with intervals; a table below has the figures", panel(of, key, title), size
        )
        for key, title in columns.items()
    )


def estimates(
    caption: str,
    named: Mapping[str, Facts],
    columns: Mapping[str, str],
    counted: tuple[str, str],
    kind: str = "numbers",
) -> str:
    """A table of metrics.

    Args:
        caption: what it shows.
        named: metrics by the name of their row.
        columns: keys of the metrics with their names.
        counted: key and name of a number that is shown before them.
        kind: of the table.
    """

    def row(name: str, each: Facts) -> list[str]:
        found = each.get(counted[0])
        found = found["count"] if isinstance(found, dict) else found
        return [
            text(name, LABEL),
            DASH if found is None else f"{found:,}",
            *(estimate(each.get(key)) for key in columns),
        ]

    header = ["", counted[1], *map(text, columns.values())]
    return table(caption, header, [row(name, each) for name, each in named.items()], kind)


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
        return confidence(rows[number], model) or 0.0

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


def confidence(row: Facts, model: str) -> float | None:
    """The probability that a model gave its own prediction, None where there is none."""
    probabilities = row[model]["probabilities"]
    return probabilities[row[model]["prediction"]] if probabilities else None


def _right(row: Facts, model: str) -> float:
    return float(row[model]["prediction"] == row["gold"])


def _overlap(row: Facts, model: str) -> float:
    said, wanted = (row[model]["prediction"] or "").split(), row["reference"].split()
    common = (Counter(said) & Counter(wanted)).total()
    return 2 * common / (len(said) + len(wanted)) if said or wanted else 1.0


def _scored(models: Mapping[str, Any]) -> list[str]:
    return [name for name in ("tuned", "base") if name in models]


def _models(metrics: Facts) -> dict[str, Facts]:
    """The tuned model, the base model and the baselines, without the single classes of `always`."""
    first = {name: metrics["models"][name] for name in _scored(metrics["models"])}
    return first | {name: each for name, each in metrics["baselines"].items() if name != "always"}


def _columns(models: Iterable[Facts], first: str) -> dict[str, str]:
    """The metrics that any of the models has, with their names, `first` before the others."""
    have = {key for each in models for key, found in each.items() if found}
    return {key: METRICS[key] for key in dict.fromkeys((first, *METRICS)) if key in have}


def _quality(metrics: Facts) -> str:
    models, leaked = _models(metrics), metrics["leaked"]
    columns = _columns(models.values(), metrics["primary"])
    counted = ("invalid", "invalid") if metrics["task"] == "classification" else ("unfinished", "unfinished")
    always = {f"always {label}": each for label, each in metrics["baselines"].get("always", {}).items()}
    tests = []
    for name, each in metrics["paired"].items():
        mcnemar = each["mcnemar"]
        only = [f"{mcnemar[key]:,}" for key in ("only_tuned", "only_other")]
        found = [estimate(each["difference"], "+"), f"{each['p']:.2g}", OUTCOMES[each["outcome"]]]
        tests.append([text(NAMES.get(name, name)), *found, *only, f"{mcnemar['p']:.2g}"])
    named = {NAMES.get(name, name): each for name, each in models.items()}
    all_models = estimates("Models and trivial baselines, same rows", named, columns, counted, "numbers stacked")
    header = ["tuned model against", METRICS[metrics["primary"]], "p", "tuned is"]
    header += ["only tuned right", "only other right", "McNemar p"]
    by_class = estimates("The same class for every row", always, columns, counted, "numbers stacked")
    rows = f"{count(metrics['scored'], 'row')} of {text(metrics['settings']['source'])}"
    if metrics["predict_by"]:
        rows += f", predicted by {metrics['predict_by']}"
    if leaked:
        rows += f"; {count(leaked, 'other row')} left out, having been trained on"
    kind = f"{100 * metrics['confidence']:g} % intervals"
    bootstrap = f"{metrics['resamples']:,} resamples with seed {metrics['seed']}"
    return f"""\
<h2>Quality on {text(metrics["split"])}</h2>
<p>{rows}. Brackets hold {kind}; where they are bootstrapped, from {bootstrap}.</p>
{plots("models", lines(metrics), drawn(metrics))}
{all_models}
{table("Paired bootstrap of the difference, and McNemar's exact test", header, tests)}
{folded("Every single class as the answer", by_class) if always else ""}"""


def _classes(metrics: Facts) -> str:
    columns = {"precision": "precision", "recall": "recall", "f1": "F1"}
    named = {label: dict(each) for label, each in metrics["models"]["tuned"]["classes"].items()}
    if "base" in metrics["models"]:
        columns["base"] = "F1 of base"
        for label, each in metrics["models"]["base"]["classes"].items():
            named[label]["base"] = each["f1"]
    return "<h2>Classes</h2>" + estimates("The tuned model by class", named, columns, ("support", "rows"))


def _confusion(metrics: Facts) -> str:
    found = {name: metrics["models"][name]["confusion"] for name in _scored(metrics["models"])}
    tables = side(_matrix(NAMES[name].capitalize(), each) for name, each in found.items())
    return f"<h2>Confusion</h2><p>Gold class down, prediction across, shaded by share of the gold class.</p>{tables}"


def _matrix(caption: str, confusion: Facts) -> str:
    gold, predicted, counts = confusion["gold"], confusion["predicted"], confusion["counts"]
    if len(gold) > MOST_CLASSES:
        cells = [
            (n, label, other)
            for label, line in zip(gold, counts, strict=True)
            for other, n in zip(predicted, line, strict=True)
        ]
        wrong = sorted((cell for cell in cells if cell[0] and cell[1] != cell[2]), reverse=True)
        listed = [[text(label, LABEL), text(other, LABEL), f"{n:,}"] for n, label, other in wrong[:30]]
        return table(f"{caption}: most frequent confusions", ["gold", "predicted", "rows"], listed, "words")

    def cell(n: int, total: int) -> str:
        # Light enough for the ink of both colour schemes.
        return f'<td style="background:rgba(90,130,180,{0.55 * n / total:.2f})">{n}</td>' if n else "<td>·</td>"

    rows = [[text(label, 40), *(cell(n, sum(line)) for n in line)] for label, line in zip(gold, counts, strict=True)]
    return table(caption, ["", *(text(label, 40) for label in predicted)], rows, "matrix")


def _reliability(metrics: Facts) -> str:
    models = {name: metrics["models"][name] for name in _scored(metrics["models"])}
    drawn, tables = [], []
    for name, model in models.items():
        if not model["reliability"]:
            return ""
        bins = [each for each in model["reliability"] if each["n"]]
        title = f"{NAMES[name]}: accuracy, ECE {model['ece']['value']:.3f}"
        draw = functools.partial(charts.reliability, bins=bins, role=name, title=title)
        drawn.append(charts.svg(f"reliability-{name}", f"{title}, over mean confidence", draw, (charts.WIDTH, 3.6)))
        rows = []
        for each in bins:
            right = {"value": each["accuracy"], "low": each["interval"][0], "high": each["interval"][1]}
            span = f"{each['low']:.2f} to {each['high']:.2f}"
            rows.append([span, f"{each['n']:,}", number(each["confidence"]), estimate(right)])
        tables.append(table(NAMES[name].capitalize(), ["confidence", "rows", "mean", "accuracy"], rows))
    return f"""\
<h2>Reliability</h2>
<p>On the dotted line as many predictions are right as their confidence says.</p>
{side(drawn)}
{folded("Figures of the bins", side(tables))}"""


def _groups(metrics: Facts) -> str:
    groups = metrics["groups"]
    by = dict(sorted(groups["by"].items(), key=lambda item: -item[1]["n"]))
    models = _scored(next(iter(by.values())))
    columns = _columns((each[name] for each in by.values() for name in models), metrics["primary"])
    of = [(f"{charts.short(g, 18)} ({each['n']:,})", {name: each[name] for name in models}) for g, each in by.items()]
    named = {f"{g}, {name}": {"n": each["n"], **each[name]} for g, each in by.items() for name in models}
    small = sum(each["n"] < groups["minimum"] for each in by.values())
    gaps = [
        [
            NAMES[name],
            METRICS[key],
            estimate(gap),
            *(text(gap[end] or "none", LABEL) for end in ("largest", "smallest")),
        ]
        for name in models
        for key in columns
        if (gap := groups["gaps"].get(name, {}).get(key))
    ]
    return f"""\
<h2>Groups</h2>
<p>By the column <b>{text(groups["column"])}</b>.\
{f" {small} under {groups['minimum']} rows, and so without part in the gaps." if small else ""}</p>
{plots("groups", of[:20], columns)}{_key(models)}
{estimates("Metrics by group", named, columns, ("n", "rows"))}
{table("Largest gap between two groups", ["", "metric", "gap", "largest", "smallest"], gaps, "words")}"""


def _key(models: Iterable[str]) -> str:
    """What the marks of a chart with both models mean."""
    marks = {"tuned": "●", "base": "◇"}
    named = (f'<span class="{name}" aria-hidden="true">{marks[name]}</span> {NAMES[name]}' for name in models)
    return f'<p class="key">{" ".join(named)}</p>'


def _telling(task: str, predictions: Sequence[Facts]) -> str:
    chosen = telling(task, predictions)
    if not chosen:
        return ""
    parts = ["<h2>Rows that tell most</h2><p>Chosen as said below, and no sample: most rows are not like these.</p>"]
    if begin := _common([row["prompt"] for _, row in chosen]):
        parts.append(f'<p class="faint">Each prompt begins so, left out below:</p><pre>{text(begin, LONGEST)}</pre>')
    for why, (what, surest, rule) in WHY.items():
        if rows := [row for reason, row in chosen if reason == why]:
            if task == "classification":
                order = f"the {surest} model's surest first" if rows[0]["tuned"]["probabilities"] else "in file order"
                rule = f"{what}, {order}."
            parts.append(f'<h3>{why.capitalize()}</h3><p class="faint">{rule}</p>')
            parts += [_row(row, len(begin), task) for row in rows]
    return "\n".join(parts)


def _row(row: Facts, begin: int, task: str) -> str:
    models = _scored(row)
    title = [f"row {row['row']:,}"] + ([text(row["group"], LABEL)] if row["group"] is not None else [])
    prompt = row["prompt"][begin:]
    if task == "generation":
        texts = {"prompt": prompt, "reference": row["reference"]}
        texts |= {model: row[model]["prediction"] or "" for model in models}
        shown = (f'<dt class="faint">{n}</dt><dd><pre>{text(said, LONGEST)}</pre></dd>' for n, said in texts.items())
        return f'<div class="row"><p>{" · ".join(title)}</p><dl>{"".join(shown)}</dl></div>'
    title.append(f"gold <b>{text(row['gold'], LABEL)}</b>")
    for model in models:
        said, sure = row[model]["prediction"], confidence(row, model)
        raw = f"invalid <code>{text(row[model]['text'], 200)}</code>"
        answer = raw if said is None else f"<b>{text(said, LABEL)}</b>"
        title.append(f"{model} {answer}{f' {sure:.3f}' if sure is not None else ''}")
    return f'<div class="row"><p>{" · ".join(title)}</p><pre>{text(prompt, LONGEST)}</pre></div>'


def _common(prompts: Sequence[str]) -> str:
    """What all prompts begin with, up to the end of a word; nothing if that is short."""
    first, last = min(prompts), max(prompts)
    length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    begin = first[: max(first.rfind("\n", 0, length), first.rfind(" ", 0, length)) + 1]
    return begin if len(prompts) > 1 and len(begin) > 40 else ""
