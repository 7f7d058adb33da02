"""What happened in a run, and how several compare, each as one page that opens from the disk.

A run's page is made from its directory alone, a comparison's from the facts of `compare`.
"""

import functools
import json
import operator
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sft_recipes.errors import InputError
from sft_recipes.evaluate import evaluate, forgetting
from sft_recipes.evaluate.terms import METRICS, NAMES
from sft_recipes.files import write_whole
from sft_recipes.recipes import recipe as recipes
from sft_recipes.recipes.schema import as_yaml
from sft_recipes.report import charts, page, quality, rows, tables
from sft_recipes.report.quality import OUTCOMES
from sft_recipes.report.table import Cell, Code, Estimate, Table, pairs
from sft_recipes.runs import earlier, outcome
from sft_recipes.runs.facts import as_written
from sft_recipes.runs.run import RUNS, Run

Facts = dict[str, Any]
# Of the rows where runs disagree, so many stand in the page without its script.
EXAMPLES = 10
# What is drawn of log.jsonl: title, and what evaluations log beside it.
CURVES = {
    "loss": ("loss, nats per supervised token", "eval_loss"),
    "learning_rate": ("learning rate", None),
    "grad_norm": ("gradient norm", None),
    "tokens_per_second": ("tokens a second", None),
}
# What runs of before it was measured have none of.
LATER = ("samples_per_second", "waiting_share", "mfu")


def write(run: Run) -> Path:
    """Write runs/NAME/report.html, whole or not at all, and give its path.

    Raises:
        InputError: The run is a rehearsal, or one of its files is damaged.
    """
    facts = run.facts()
    if facts.get("rehearsal"):
        raise InputError(
            f"{run.directory} is a rehearsal, whose model was tiny and random: it is no result and gets no report; "
            f"train in earnest with: make train RECIPE={facts['recipe']}"
        )
    metrics, predictions = evaluation(run)
    values, log, measured = run.values(), run.log_entries(), facts.get("measured")
    with as_written(run.directory):
        stated, inherited = _recipe(facts, values)
        body = page.html(
            "report.html",
            title=f"{run.name}: {facts['recipe']}",
            run=run.name,
            links=earlier.links(facts.get("continues")),
            held_out=outcome.held_out(measured) if measured else [],
            facts={"seconds": None, "ended": None, "error": None, "resumed": [], "launches": []}
            | facts
            | {"measured": measured and dict.fromkeys(LATER) | measured},
            metrics=metrics,
            speeds=[*evaluate.speeds(metrics["measured"])] if metrics and metrics["measured"] else [],
            forgetting=_forgetting(run),
            outcome=OUTCOMES[metrics["verdict"]["outcome"]] if metrics else None,
            quality=quality.shown(metrics, predictions) if metrics else None,
            browser=quality.browser(metrics, predictions) if metrics else None,
            curves=_curves(log),
            stated=stated,
            inherited=inherited,
            in_effect=_in_effect(facts.get("in_effect") or {}),
        )
    path = run.directory / "report.html"
    write_whole(path, body)
    return path


def evaluation(run: Run) -> tuple[Facts | None, list[Facts]]:
    """Metrics and predictions of the evaluation that stands for the run; None and no rows if there is none."""
    split = run.evaluated()
    if split is None:
        return None, []
    return run.evaluation(split), run.predicted(split) if run.predictions(split).is_file() else []


def _forgetting(run: Run) -> Table | None:
    """What tasks of lm-evaluation-harness found of the base and the tuned model, if they were asked."""
    path = run.directory / forgetting.FILE
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    rows = [
        [
            f"{each['task']} ({each['metric']})",
            each["samples"],
            Estimate.of(each["base"]),
            Estimate.of(each["tuned"]),
            Estimate.of(each["difference"], "+"),
            f"{each['p_holm']:.2g}",
            forgetting.WORDS[each["outcome"]],
        ]
        for each in found["tasks"]
    ]
    header = ["task", "samples", "base", "tuned", "difference", "p, by Holm", "what it comes to"]
    return Table("Tasks of lm-evaluation-harness", header, rows, "numbers", sentences=[forgetting.sentence(found)])


def _curves(log: list[Facts]) -> list[Any]:
    return [
        charts.svg(
            f"curve-{key}",
            f"{title}, over optimizer steps",
            functools.partial(charts.curve, log=log, key=key, title=title, held_out=held_out),
        )
        for key, (title, held_out) in CURVES.items()
        if any(key in entry for entry in log)
    ]


def _recipe(facts: Facts, recipe: Facts) -> tuple[Table, Table]:
    """The values that the recipe or the command line states itself, and those that were taken over or derived."""
    values, extends = {**facts["own"], **recipe}, facts.get("extends")
    base = {each["key"]: as_yaml(each["base"]) for each in facts.get("differences", []) if extends}
    stated: list[list[Cell]] = []
    inherited: list[list[Cell]] = []
    for key, origin in facts["origins"].items():
        value, said_here = as_yaml(values.get(key)), Path(origin.rpartition(":")[0]).stem == facts["recipe"]
        if key == "description":
            continue
        if origin in recipes.GIVEN or said_here:
            stated.append([Code(key), value, base.get(key), origin])
        else:
            inherited.append([Code(key), value, origin])
    header = ["key", "value", f"in {extends}" if extends else "before", "written in"]
    return (
        Table(f"Said by {facts['recipe']} itself or by SET= or DATA=", header, stated, "words"),
        Table("Taken over from its base recipe, or derived", ["key", "value", "written in"], inherited, "words"),
    )


def _in_effect(found: Facts) -> list[Table]:
    """A table for each part of what was read off the loaded model, its rows and the trainer."""
    return [
        pairs(part.capitalize(), {key.replace("_", " "): _plain(key, value) for key, value in values.items()})
        for part, values in found.items()
    ]


def _plain(key: str, value: Any) -> str:
    """A fact of run.json as people read it."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, dict):
        return ", ".join(f"{name} {number:,}" for name, number in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if key.endswith("_share"):
        return f"{100 * value:.1f} %"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)


def comparison(facts: Facts, path: Path, runs: Path = RUNS) -> None:
    """Write the page of a comparison, whole or not at all.

    Args:
        facts: of `compare.compare`.
        path: of the page; it leads to the reports of the runs from there.
    """
    lines: list[tuple[str, Facts]] = [(each["name"], {"tuned": each["metrics"]}) for each in facts["entries"]]
    for each in facts["references"]:
        role = "base" if each["kind"] == "base" else "other"
        lines.append((NAMES.get(each["name"], each["name"]), {role: each["metrics"]}))
    drawn = {key: METRICS[key] for key in facts["metrics"] if key in METRICS}
    data = {"fingerprint": facts["data"]["fingerprint"], "of the rows scored": facts["data"]["rows_fingerprint"]}
    compared = {each["name"]: Run(runs / each["name"]) for each in facts["runs"]}
    unequal, answers = disagreements({name: run.predicted(facts["split"]) for name, run in compared.items()})
    body = page.html(
        "comparison.html",
        title=f"Comparison of {'; '.join(each['name'] for each in facts['entries'])}",
        facts=facts,
        reports=[(name, link(run.report, path)) for name, run in compared.items()],
        charts=quality.plots("compared", lines, dict(list(drawn.items())[:2])),
        losses=_losses({name: run.log_entries() for name, run in compared.items()}),
        tables=tables.of_comparison(facts),
        rows=_examples(unequal, answers, facts["task"]),
        browser=rows.browser(unequal, answers, _labels(unequal, answers), "") if unequal else None,
        data=pairs("Data", data),
    )
    write_whole(path, body)


def link(target: Path, page_at: Path) -> str | None:
    """The address of a file for a page that lies elsewhere, which may be moved with it; None without a file."""
    if not target.is_file():
        return None
    return quote(os.path.relpath(target.absolute(), page_at.absolute().parent))


def disagreements(predicted: Mapping[str, Sequence[Facts]]) -> tuple[list[Facts], dict[str, list[Facts]]]:
    """The scored rows to which runs say different things, and what each run says to them.

    Those that some have right and some wrong come first.

    Args:
        predicted: the rows of predictions.jsonl by the name of the run; the same rows in all.
    """
    unequal = []
    for several in zip(*predicted.values(), strict=True):
        row, said = several[0], [each["tuned"] for each in several]
        if not row["leaked"] and len({(each["prediction"] or "").strip() for each in said}) > 1:
            right = {rows.is_right(row, each) for each in said}
            unequal.append((len(right) == 1, row, said))
    unequal.sort(key=operator.itemgetter(0))
    return [row for _, row, _ in unequal], {
        name: [said[number] for _, _, said in unequal] for number, name in enumerate(predicted)
    }


def _examples(unequal: Sequence[Facts], answers: Mapping[str, Sequence[Facts]], task: str) -> list[Facts]:
    """Some of the rows where runs disagree, for those who run no script."""
    return [
        rows.entry(row, {name: said[number] for name, said in answers.items()}, 0, task)
        for number, row in enumerate(unequal[:EXAMPLES])
    ]


def _labels(scored: Sequence[Facts], answers: Mapping[str, Sequence[Facts]]) -> list[str] | None:
    """The classes that occur in rows or answers; None where rows have none."""
    found = {row["gold"] for row in scored} | {each["prediction"] for said in answers.values() for each in said}
    return None if scored[0]["gold"] is None else sorted(found - {None})


def _losses(logs: Mapping[str, list[Facts]]) -> list[Any]:
    titles = {"loss": "training loss, nats per supervised token", "eval_loss": "eval loss, nats per supervised token"}
    return [
        charts.svg(
            f"together-{key}",
            f"{title}, of each run over optimizer steps",
            functools.partial(charts.curves, logs=having, key=key, title=title),
            (charts.WIDTH, 2.6),
        )
        for key, title in titles.items()
        if (having := {name: log for name, log in logs.items() if any(key in entry for entry in log)})
    ]
