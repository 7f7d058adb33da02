"""What happened in a run, and how several compare, each as one page that opens from the disk.

A run's page is made from its directory alone, a comparison's from the facts of `compare`.
"""

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from sft_recipes.errors import InputError
from sft_recipes.evaluate.terms import METRICS, NAMES
from sft_recipes.files import json_lines, write_whole
from sft_recipes.recipes.schema import as_yaml
from sft_recipes.report import charts, page, quality, tables
from sft_recipes.report.quality import OUTCOMES
from sft_recipes.report.table import Cell, Code, Table, pairs
from sft_recipes.runs.run import Run
from sft_recipes.terminal import count, duration

Facts = dict[str, Any]
# What is drawn of log.jsonl: title, and what evaluations log beside it.
CURVES = {
    "loss": ("loss, nats per supervised token", "eval_loss"),
    "learning_rate": ("learning rate", None),
    "grad_norm": ("gradient norm", None),
    "tokens_per_second": ("tokens a second", None),
}


def write(run: Run) -> Path:
    """Write runs/NAME/report.html, whole or not at all, and give its path.

    Raises:
        InputError: The run is a rehearsal.
    """
    facts = run.facts()
    if facts.get("rehearsal"):
        raise InputError(
            f"{run.directory} is a rehearsal, whose model was tiny and random: it is no result and gets no report; "
            f"train in earnest with: make train RECIPE={facts['recipe']}"
        )
    metrics, predictions = evaluation(run)
    stated, inherited = _recipe(facts, yaml.safe_load(run.recipe.read_text(encoding="utf-8")))
    in_effect = (facts.get("in_effect") or {}).items()
    body = page.html(
        "report.html",
        title=f"{run.name}: {facts['recipe']}",
        run=run.name,
        facts=facts,
        ended=_time(facts["ended"]) if "ended" in facts else None,
        verdicts=list(_verdicts(run, facts, metrics)),
        metrics=metrics,
        quality=quality.shown(metrics, predictions) if metrics else None,
        curves=_curves(charts.read_log(run)),
        measured=pairs("Time and memory", dict(_measured(facts, metrics))),
        stated=stated,
        inherited=inherited,
        findings=facts["findings"],
        in_effect=[
            pairs(part.capitalize(), {key.replace("_", " "): _plain(key, each) for key, each in found.items()})
            for part, found in in_effect
        ],
        files=_files(facts),
        fingerprints=_fingerprints(facts, metrics),
        environment=[pairs("What it ran on", _environment(facts)), pairs("Packages", facts["versions"])],
    )
    path = run.directory / "report.html"
    write_whole(path, body)
    return path


def evaluation(run: Run) -> tuple[Facts | None, list[Facts]]:
    """Metrics and predictions of the evaluation that stands for the run; None and no rows if there is none."""
    split = run.evaluated()
    if split is None:
        return None, []
    predictions = run.predictions(split)
    rows = json_lines(predictions) if predictions.is_file() else []
    return json.loads(run.metrics(split).read_text(encoding="utf-8")), rows


def picture(run: Run, path: Path) -> None:
    """Write a PNG of the primary and a second metric: tuned model, base and trivial baselines, with intervals.

    Raises:
        InputError: The run was not evaluated, or no row of it could be scored.
    """
    metrics, _ = evaluation(run)
    if metrics is None or not metrics["models"]:
        raise InputError(f"{run.directory} has no evaluation to draw; make one with: make evaluate RUN={run.name}")
    lines = quality.lines(metrics)
    panels = [quality.panel(lines, key, title) for key, title in quality.drawn(metrics).items()]
    charts.save(path, panels, (6.4, 0.6 + 0.26 * len(lines)))


def _verdicts(run: Run, facts: Facts, metrics: Facts | None) -> Iterator[Facts]:
    """How the run ended if not well, and what its evaluation comes to."""
    if facts["status"] != "finished":
        reason = facts.get("error") or "its figures are not final"
        yield _verdict("none", f"the run is {facts['status']}", reason)
    if metrics is None:
        hint = f"nothing says whether the model got better. Evaluate it with: make evaluate RUN={run.name}"
        yield _verdict("none", "not evaluated", hint)
    else:
        verdict = metrics["verdict"]
        yield _verdict(verdict["outcome"], OUTCOMES[verdict["outcome"]], verdict["text"]) | verdict


def _verdict(outcome: str, word: str, sentence: str) -> Facts:
    """A sentence that begins with its outcome, which is put before it where it does not."""
    rest = sentence[len(word) :] if sentence.lower().startswith(word) else f": {sentence}"
    return {"outcome": outcome, "word": word.capitalize(), "rest": rest, "reasons": []}


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


def _measured(facts: Facts, metrics: Facts | None) -> Iterator[tuple[str, str]]:
    """What was measured in training and evaluation, as (quantity, text)."""
    if measured := facts.get("measured"):
        kind = "resident" if facts["topology"]["use_cpu"] else "allocated on the GPU"
        yield "steps", f"{measured['step']:,} in {duration(measured['training_seconds'])}"
        if speed := measured["tokens_per_second"]:
            yield "throughput", f"{speed:,.0f} tokens/s within steps, padding not counted"
        yield "peak memory", f"{tables.gib(measured['peak_memory_bytes'])} in the largest process, {kind}"
        if losses := measured["eval_loss"]:
            first, best = losses[0], min(losses, key=lambda entry: entry["eval_loss"])
            form = "{eval_loss:.4f} at step {step:,}"
            yield "held-out loss", f"{form.format(**first)}, at its lowest {form.format(**best)}"
        if measured["best_checkpoint"]:
            yield "best checkpoint", measured["best_checkpoint"]
        if adapter := measured.get("adapter"):
            yield "adapter", f"{count(adapter['tensors'], 'tensor')}, norm of lora_B {adapter['lora_b_norm']:.3f}"
    if "seconds" in facts:
        yield "in all", f"{duration(facts['seconds'])}, with loading, evaluations while training, and saving"
    if resumed := facts.get("resumed"):
        each = "; ".join(f"{_time(each['at'])} at step {each['step']:,}" for each in resumed)
        yield "resumed", f"{each}; speed and memory are those of the last launch"
    if metrics is not None and (scored := metrics["measured"]):
        speeds = ", ".join(f"{name} {each['rows_per_second']:,.0f} rows/s" for name, each in scored["models"].items())
        yield "evaluation", f"{speeds} on {scored['device']}, {tables.gib(scored['peak_memory_bytes'])} at its peak"


def _recipe(facts: Facts, recipe: Facts) -> tuple[Table, Table]:
    """The values that the recipe or SET= states itself, and those that were taken over or derived."""
    values, extends = {**facts["own"], **recipe}, facts.get("extends")
    base = {each["key"]: as_yaml(each["base"]) for each in facts.get("differences", []) if extends}
    stated: list[list[Cell]] = []
    inherited: list[list[Cell]] = []
    for key, origin in facts["origins"].items():
        value = as_yaml(values.get(key))
        if origin == "SET" or Path(origin.rpartition(":")[0]).stem == facts["recipe"]:
            stated.append([Code(key), value, base.get(key), origin])
        else:
            inherited.append([Code(key), value, origin])
    stated = [row for row in stated if row[0] != "description"]
    inherited = [row for row in inherited if row[0] != "description"]
    header = ["key", "value", f"in {extends}" if extends else "before", "written in"]
    return (
        Table(f"Said by {facts['recipe']} itself or by SET=", header, stated, "words"),
        Table("Taken over from its base recipe, or derived", ["key", "value", "written in"], inherited, "words"),
    )


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


def _files(facts: Facts) -> Table:
    rows: list[list[Cell]] = []
    for name, split in facts["data"]["splits"].items():
        digest = Code(split["sha256"]) if split.get("sha256") else None
        rows.append([name, split["source"], split.get("rows"), split.get("prepared_rows"), digest])
    return Table("Files", ["split", "file", "rows", "prepared", "SHA-256"], rows, "words")


def _fingerprints(facts: Facts, metrics: Facts | None) -> Table:
    data = facts["data"]
    prints = {"format": f"{data['format']}, {data['kind']}", "fingerprint of all": data["fingerprint"]}
    if metrics is not None:
        prints["of what was evaluated"] = metrics["fingerprint"]
    return pairs("Format and fingerprints", prints)


def _environment(facts: Facts) -> dict[str, Cell]:
    git, where = facts["git"], facts["topology"]
    commit = f"{git['commit']}{' and uncommitted changes' if git['dirty'] else ''}" if git else "no repository"
    return {
        "command": facts["command"],
        "started": _time(facts["started"]),
        "hardware": "; ".join([*facts["gpus"], count(facts["cpus"], "CPU core")]),
        "topology": f"{where['name']}: {where['backend']}, {count(where['processes'], 'process')}",
        "git commit": commit,
        "Python": facts["python"],
    }


def _time(stamp: str) -> str:
    """A time of run.json without its seconds: `2026-11-25 02:52 +0000`."""
    return f"{stamp[:10]} {stamp[11:16]} {stamp[19:]}"


def comparison(facts: Facts, path: Path) -> None:
    """Write the page of a comparison, the facts of `compare.compare`, whole or not at all."""
    lines: list[tuple[str, Facts]] = [(each["name"], {"tuned": each["metrics"]}) for each in facts["entries"]]
    for each in facts["references"]:
        role = "base" if each["kind"] == "base" else "other"
        lines.append((NAMES.get(each["name"], each["name"]), {role: each["metrics"]}))
    drawn = {key: METRICS[key] for key in facts["metrics"] if key in METRICS}
    data = {"fingerprint": facts["data"]["fingerprint"], "of the rows scored": facts["data"]["rows_fingerprint"]}
    body = page.html(
        "comparison.html",
        title=f"Comparison of {'; '.join(each['name'] for each in facts['entries'])}",
        facts=facts,
        charts=quality.plots("compared", lines, dict(list(drawn.items())[:2])),
        tables=tables.of_comparison(facts),
        data=pairs("Data", data),
    )
    write_whole(path, body)
