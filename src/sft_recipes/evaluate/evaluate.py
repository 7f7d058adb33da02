"""A finished run on rows it has not seen: what base and tuned model say, metrics with intervals, a verdict.

This process imports no torch; what the models say of the rows is the work of another (`scoring.py`).
"""

import contextlib
import hashlib
import json
import math
import shlex
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from sft_recipes.data import sources
from sft_recipes.data.readers import Problems
from sft_recipes.errors import InputError
from sft_recipes.evaluate import scoring_job
from sft_recipes.evaluate.questions import Question, ask, default_split
from sft_recipes.evaluate.terms import METRICS, NAMES
from sft_recipes.files import sealed, write_whole
from sft_recipes.recipes import recipe as recipes
from sft_recipes.recipes import schema, task
from sft_recipes.recipes.sources import entries
from sft_recipes.recipes.task import Task
from sft_recipes.runs import earlier, identity, outcome
from sft_recipes.runs.run import Run, adapter_damage, unfinished
from sft_recipes.terminal import count, duration, say

SCHEMA = 1
MODELS = ("base", "earlier", "tuned")


def evaluate(
    name: str,
    *,
    split: str | None = None,
    base: bool = False,
    overrides: Sequence[str] = (),
) -> tuple[int, Path | None]:
    """Evaluate a finished run into its predictions.jsonl and metrics.json, or go on with an evaluation cut off.

    Args:
        name: The run's.
        split: test or validation; without it test, or validation where the run has no test rows.
        base: Whether to score the base model on the same rows, and the adapter that the run continued from, if it
            did. What has been scored on them already is kept.
        overrides: `key=value` words for the keys of `task.KEYS`, where the run's recipe says nothing or another thing.

    Returns:
        The exit code (0 done, 1 failed, 3 interrupted and resumable) and the metrics' file, if it was written.

    Raises:
        InputError: There is nothing to evaluate, or not as asked.
    """
    run = Run.open(name)
    facts = run.facts()
    if facts.get("rehearsal"):
        raise InputError(f"{run.directory} is a rehearsal: its model is tiny and random, and no result")
    if sentence := unfinished(run):
        raise InputError(sentence)
    own = _own(facts, overrides)
    with run.locked() as lock:
        code, path = _evaluate(run, facts, own, split, base, lock)
    if code:
        # With everything that was asked: another evaluation would begin anew.
        given = {"SPLIT": split, "SET": " ".join(overrides)}
        words = [f"{key}={shlex.quote(value)}" for key, value in given.items() if value]
        again = " ".join(["make evaluate", f"RUN={run.name}", *(["BASE=1"] if base else []), *words])
        say("stopped" if code == 3 else "failed", f"what was scored is kept; go on with: {again}")
    return code, path


def _own(facts: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The keys of the task, as the run's recipe and the overrides say.

    Raises:
        InputError: An override is of another key, or wrong, or there is no task.
    """
    changes = {key: item.value for key, item in recipes.parse_overrides(overrides).items()}
    found = [
        schema.problem(key, value)
        if key in task.KEYS
        else f"SET: {key}: a finished run cannot be changed; an evaluation takes {', '.join(task.KEYS)}"
        for key, value in changes.items()
    ]
    own = {key: changes.get(key, facts["own"].get(key)) for key in task.KEYS}
    if not any(found):
        found = [text for _, text in task.problems(own)]
        if own["task"] is None:
            found = ["the run's recipe names no task; set one: SET='task=classification' or SET='task=generation'"]
    if problems := [problem for problem in found if problem]:
        raise InputError(*problems)
    return own


def _groups_of(own: Mapping[str, Any], facts: Mapping[str, Any]) -> Mapping[str, Any]:
    """The keys of the task, without a group_column of the recipe that other rows than the recipe's do not have."""
    file, column = own["test_file"], own["group_column"]
    if file in (None, facts["own"].get("test_file")) or column is None or column != facts["own"].get("group_column"):
        return own
    found = [sources.find(entry, "test_file", "test") for entry in entries("test_file", file)]
    first = [(source.name, next(source.rows(Problems()), ("", {column: None}))[1]) for source in found]
    without = [name for name, row in first if column not in row]
    if not without:
        return own
    say("groups", f"none: {', '.join(without)} has no {column}, by which the recipe divides its own rows")
    return {**own, "group_column": None}


def _evaluate(
    run: Run, facts: dict[str, Any], own: Mapping[str, Any], split: str | None, base: bool, lock: int
) -> tuple[int, Path | None]:
    if damage := adapter_damage(run):
        raise InputError(damage)
    identity.check(run)
    own = _groups_of(own, facts)
    changes = {key: own[key] for key in ("test_file", "group_column", "task")}
    prepared = identity.training_rows(run, facts, **changes)
    split = split or default_split(prepared, own["task"])
    if split not in prepared.splits or split == "train":
        have = [name for name in prepared.splits if name != "train"]
        raise InputError(
            f"SPLIT={split}: the run has {', '.join(have) or 'no rows held out'}; or set test_file by DATA="
        )
    asked = ask(own, prepared, split)
    for decision in asked.task.decisions:
        say("task", decision)
    settings = {key: own[key] for key in task.KEYS if key not in ("task", "predict_by", "test_file")}
    rows = hashlib.sha256(
        json.dumps([[q.id, q.reference, q.group, q.leaked] for q in asked.questions], ensure_ascii=False).encode()
    ).hexdigest()
    how = json.dumps([rows, asked.task.by, list(asked.task.labels), settings, asked.task.candidates], sort_keys=True)
    head = {
        "schema": SCHEMA,
        "run": run.name,
        "recipe": facts["recipe"],
        "task": asked.task.kind,
        "predict_by": asked.task.by,
        "split": split,
        "settings": {**settings, "source": prepared.splits[split]["source"]},
        "rows_sha256": rows,
        "fingerprint": hashlib.sha256(how.encode()).hexdigest(),
    }
    work = run.directory / f".evaluation-{split}"
    prompts = (question.prompt for question in asked.questions)
    scoring_job.prepare(work, run, asked.task, asked.longest_answers, prompts, head["fingerprint"])
    outputs = _outputs(work)
    continued = earlier.folder(facts["own"])
    there = [model for model in MODELS if continued or model != "earlier"]
    wanted = [model for model in there if model == "tuned" or base or outputs[model]]
    before = _measured(work)
    began = time.monotonic()
    if any(len(outputs[model]) < asked.rows for model in wanted):
        if code := scoring_job.score(work, wanted, lock, continued, measuring):
            return code, None
        outputs = _outputs(work)
        before |= {"process_seconds": time.monotonic() - began}
    else:
        say("scored", "before, by the same files; delete predictions with " + str(work) + " to score anew")
    predictions = [_prediction(asked.task, question, outputs, wanted) for question in asked.questions]
    # The process has measured what it did itself; a model that was done before is as it was measured then.
    measured = before | _measured(work)
    measured["models"] = before.get("models", {}) | measured["models"]
    write_whole(work / "measured.json", json.dumps(measured, indent=1))
    metrics = measuring()
    result = {
        **head,
        "rows": len(predictions),
        "leaked": asked.leaked,
        "scored": len(predictions) - asked.leaked,
        **metrics.measure(
            predictions,
            asked.task.kind,
            asked.training(),
            asked.task.labels or None,
            json_schema=asked.task.schema,
            group_column=asked.grouped_by,
        ),
        "measured": measured,
    }
    lines = (json.dumps(prediction, ensure_ascii=False) + "\n" for prediction in predictions)
    write_whole(run.predictions(split), "".join(lines))
    write_whole(run.metrics(split), json.dumps(result, indent=1) + "\n")
    written = sealed(run.directory, only=[run.metrics(split).name, run.predictions(split).name])
    run.update(evaluated={**run.facts().get("evaluated", {}), split: written})
    for label, text in render(result):
        say(label, text)
    return 0, run.metrics(split)


def measuring() -> ModuleType:
    """What computes metrics, with scikit-learn and SciPy, which the checks before a training need not wait for."""
    from sft_recipes.evaluate import metrics

    return metrics


def render(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The metrics and the verdict, as (subject, text) for `terminal.say`."""
    text = f"{count(result['scored'], 'row')} of {result['settings']['source']} by {result['predict_by']}"
    if result["leaked"]:
        text += f"; {result['leaked']:,} more are training rows too, and do not count"
    yield "evaluated", f"{text} ({', '.join(speeds(result['measured']))})"
    shown = ("macro_f1", "accuracy") if result["task"] == "classification" else ("exact_match", "rougeL", "chrf")
    shown = (*shown, "valid_json") if result["primary"] == "valid_json" else shown
    if any(figures.get("call_match") for figures in result["models"].values()):
        shown = (*shown, "call_match")
    for model in reversed(MODELS):
        if model in result["models"]:
            yield model, _figures(result["models"][model], shown)
    for name, figures in result["baselines"].items():
        if name in NAMES:
            yield "trivial", f"{NAMES[name]}: {_figures(figures, shown)}"
    yield from _gaps(result["groups"])
    yield "verdict", "\n".join([outcome.verdict(result["verdict"]), *result["verdict"]["reasons"]])


def speeds(measured: Mapping[str, Any]) -> Iterator[str]:
    """How fast each model was, how long the weights took to load, and the process in all."""
    for model, each in measured["models"].items():
        written = f" and {_rate(each['tokens_per_second'])} tokens/s" if "tokens_per_second" in each else ""
        yield f"{model} {_rate(each['rows_per_second'])} rows/s{written}"
    if "load_seconds" in measured:
        yield f"loaded in {_time(measured['load_seconds'])}"
    if "process_seconds" in measured:
        yield f"{_time(measured['process_seconds'])} in all"


def _rate(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def _time(seconds: float) -> str:
    return duration(seconds) if seconds >= 10 else f"{seconds:.2g} s"


def _figures(figures: Mapping[str, Any], names: Iterable[str]) -> str:
    parts = [f"{METRICS[name]} {estimate(figures[name])}" for name in names]
    if (figures.get("invalid") or {}).get("count"):
        parts.append(f"{figures['invalid']['count']:,} invalid")
    return ", ".join(parts)


def estimate(held: Mapping[str, float | None] | None) -> str:
    """A value with its 95 % interval, as people read it."""
    if held is None or held["value"] is None:
        return "undefined"
    if held["low"] is None or held["high"] is None:
        return f"{held['value']:.3f}"
    return f"{held['value']:.3f} ({held['low']:.3f} to {held['high']:.3f})"


def _gaps(groups: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    if not groups:
        return
    small = [name for name, each in groups["by"].items() if each["n"] < groups["minimum"]]
    gap = (groups["gaps"].get("tuned") or {}).get("accuracy")
    if gap and gap["value"] is not None:
        told = (
            f"largest gap in accuracy by {groups['column']} {estimate(gap)}: {gap['largest']} over {gap['smallest']}"
        )
        yield "groups", told
    if small:
        yield "groups", f"too few rows to judge (under {groups['minimum']}): {', '.join(small)}"


def _measured(work: Path) -> dict[str, Any]:
    path = work / "measured.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _outputs(work: Path) -> dict[str, dict[int, dict[str, Any]]]:
    """What each model has said so far, by row."""
    found: dict[str, dict[int, dict[str, Any]]] = {model: {} for model in MODELS}
    path = work / "outputs.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        with contextlib.suppress(ValueError):  # a line cut off by a crash
            output = json.loads(line)
            found[output["model"]][output["row"]] = output
    return found


def _prediction(
    found: Task, question: Question, outputs: Mapping[str, Mapping[int, dict[str, Any]]], models: list[str]
) -> dict[str, Any]:
    """A line of predictions.jsonl."""
    classes = found.kind == "classification"
    return {
        "row": question.row,
        "id": question.id,
        "prompt": question.text,
        "group": question.group,
        "gold": found.label(question.reference) if classes else None,
        "reference": question.reference,
        "leaked": question.leaked,
        **({"call": True} if question.call else {}),
        **{model: said(found, outputs[model][question.row], call=question.call) for model in models},
    }


def said(found: Task, output: Mapping[str, Any], *, call: bool = False) -> dict[str, Any]:
    """What one model says to a row, with probabilities that sum to one over the labels; where it is asked for a `call`
    the calls in what it says, if there are any.
    """
    if found.by == "likelihood":
        scores = output["log_likelihoods"]
        highest = max(scores.values())
        weights = {label: math.exp(score - highest) for label, score in scores.items()}
        total = sum(weights.values())
        probabilities = {label: float(f"{weight / total:.6g}") for label, weight in weights.items()}
        # The first of the labels where two are equally likely, as argmax would.
        return {
            "prediction": max(scores, key=scores.__getitem__),
            "probabilities": probabilities,
            "text": None,
            "finished": None,
        }
    text = task.answer_of(output["text"])
    if call and (calls := task.calls_in(text)):
        text = task.calls_text(calls)
    prediction = found.label(text) if found.kind == "classification" else text
    return {"prediction": prediction, "probabilities": None, "text": output["text"], "finished": output["finished"]}
