"""Runs beside each other: what differs, what it changed, how sure that is, and what it cost.

Read from run directories alone. Only what is comparable is compared: models that learned from the same rows and were
scored on the same rows.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from sft_recipes.errors import InputError, refuse
from sft_recipes.evaluate.statistics import CONFIDENCE
from sft_recipes.evaluate.verdict import FEW_ROWS, few_rows
from sft_recipes.recipes import schema
from sft_recipes.report.paired import statistic, tested
from sft_recipes.report.results import SEEDS, Entry, Evaluated, Facts, estimates, with_scores
from sft_recipes.runs.run import RUNS, Run, unfinished
from sft_recipes.terminal import count

Key = TypeVar("Key")

SCHEMA = 1
# Where rows lie and how they are read, for which the data's fingerprint stands; where results lie; what is said of a
# recipe; and what the topology and the task say themselves. All other keys may change what is learned, or its cost.
BOOKKEEPING = {
    *("dataset_name", "dataset_config", "dataset_train_split", "dataset_test_split", "validation_split_size"),
    *("test_split_size", "train_file", "validation_file", "test_file", "data_format", "data_columns", "group_column"),
    "stopping_strategy",
    *("output_dir", "run_name", "extends", "description", "accelerate_config", "silence"),
    *("use_cpu", "task", "labels"),
}
# Said by the evaluation, as it was made.
EVALUATION = ("predict_by", "label_field", "label_pattern", "max_new_tokens", "json_schema")


def compare(names: Sequence[str], split: str = "test", runs: Path = RUNS) -> Facts:
    """The facts of a comparison: differences, metrics, paired tests between all entries, costs.

    An entry is a run, or all those runs that differ in their seeds alone.

    Args:
        names: runs, in the order in which they are to be shown.

    Raises:
        InputError: With everything that forbids the comparison: too few runs, rehearsals, unfinished runs, runs
            without an evaluation, other training rows, other rows or labels scored.
    """
    problems = []
    if len(names) < 2:
        have = sorted(path.parent.name for path in runs.glob("*/run.json"))
        problems.append(f"name at least two runs: RUNS='a b'; there are {', '.join(have) if have else 'none'}")
    problems += [f"{name} is named twice; keep one" for name in dict.fromkeys(names) if names.count(name) > 1]
    found = []
    for name in dict.fromkeys(names):
        try:
            found.append(read(Run.open(name, runs), split))
        except InputError as error:
            problems += error.problems
    problems += unlike(found)
    refuse(problems)
    return _facts(found)


def _facts(found: Sequence["Evaluated"]) -> Facts:
    entries = grouped(found)
    return {
        "schema": SCHEMA,
        **common(found),
        "entries": [entry.facts() for entry in entries],
        "runs": [{**Entry([run]).facts(), "entry": entry.name} for entry in entries for run in entry.runs],
        "references": references(found),
        "differences": differences(found),
        "environment": environment(found),
        "pairs": tested(entries),
        "notes": [*notes(entries), *_few(found[0])],
    }


def _few(run: Evaluated) -> list[str]:
    """What is to be known of intervals of so few rows as these, which all runs of a comparison share."""
    few = run.gold is not None and few_rows(np.bincount(run.gold, minlength=len(run.labels)).tolist())
    return [FEW_ROWS] if few else []


def leaderboard(split: str = "test") -> Facts:
    """The facts of all evaluated runs: a board for each set of runs that `compare` would take, best first.

    Raises:
        InputError: There is no run at all.
    """
    boards: dict[Any, list[Evaluated]] = {}
    left_out = []
    for path in sorted(RUNS.glob("*/run.json")):
        try:
            run = read(Run(path.parent), split)
        except InputError as error:
            left_out.append({"run": path.parent.name, "reason": "; ".join(error.problems)})
        else:
            boards.setdefault(tuple(equal for equal, _ in comparable(run).values()), []).append(run)
    if not boards and not left_out:
        raise InputError(f"no run in {RUNS}/; make train RECIPE=demo makes one")
    return {"schema": SCHEMA, "boards": [board(found) for found in boards.values()], "left_out": left_out}


def board(found: Sequence["Evaluated"]) -> Facts:
    """One table of a leaderboard: entries, bases and the best baseline by the primary metric, the highest first.

    Each entry but the first has its test against the first. Which one is first is decided by the same rows, so it is
    tested as one of all pairs.
    """

    def height(row: Facts) -> float:
        value = row["metrics"][found[0].primary]["value"]
        return -math.inf if value is None else value

    entries = sorted(grouped(found), key=lambda entry: height(entry.facts()), reverse=True)
    rows = [
        {"kind": "run", **entry.facts(), "first_against_it": pair}
        for entry, pair in zip(entries, [None, *tested(entries, first_only=True)], strict=True)
    ]
    selected = (
        f"the first of {len(entries)} is first in part by luck, so its figure on these rows is optimistic; choose by "
        "one split (SPLIT=validation) and report by another"
    )
    return {
        **common(found),
        "rows": sorted(rows + references(found), key=height, reverse=True),
        "notes": ([selected] if len(entries) > 1 else []) + _few(found[0]),
    }


def read(run: Run, split: str) -> Evaluated:
    """A run as a result.

    Raises:
        InputError: It is none: a rehearsal, unfinished, not evaluated, or its files do not belong together.
    """
    evaluate = f"make evaluate RUN={run.name}" + ("" if split == "test" else f" SPLIT={split}")
    try:
        facts = run.facts()
        if facts.get("rehearsal"):
            raise InputError(f"{run.name} is a rehearsal, whose model is tiny and random: no result; leave it out")
        refuse([unfinished(run)])
        evaluation = run.evaluation(split)
        rows = [row for row in run.predicted(split) if not row["leaked"]]
        values = run.values() | facts["own"]
        if not rows:
            raise InputError(f"{run.name}: no row of {split} is scored; {evaluate}")
        found = with_scores(run.name, facts, values, evaluation, rows)
        # All that will be said of it is looked at here, so that a broken file is a message.
        _facts([found])
        comparable(found)
        cells, primary = statistic([found])
        value = float(primary(np.bincount(cells)[None].astype(float))[0, 0])
        given = evaluation["models"]["tuned"][found.primary]["value"]
        if len(rows) != evaluation["scored"] or not math.isclose(given, value, abs_tol=1e-6):
            raise InputError(
                f"{run.name}: its predictions give {found.primary} {value:.4f} on {count(len(rows), 'row')}, and its "
                f"metrics say {given:.4f} on {evaluation['scored']}: one of the two was changed; {evaluate}"
            )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        wrong = f"{type(error).__name__}: {error}"
        raise InputError(f"{run.name}: its files are not as they are written ({wrong}); {evaluate}") from None
    return found


def comparable(run: Evaluated) -> dict[str, tuple[str, str]]:
    """What all runs of a comparison have in common, each as what must be equal and how it is said."""
    data, labels = run.facts["data"], run.labels
    train = data["splits"]["train"]
    learned = f"{train['source']}, {count(train['rows'], 'row')}, fingerprint {data['fingerprint'][:12]}"
    scored = f"{run.evaluation['settings']['source']}, {count(len(run.right), 'row')}, fingerprint "
    task = f"{run.evaluation['task']} by {run.primary}" + (f" of {', '.join(labels)}" if labels else "")
    return {
        "training data": (data["fingerprint"], learned),
        "scored rows": (run.fingerprint, scored + run.fingerprint[:12]),
        "task": (task, task),
    }


REMEDIES = {
    "training data": "train on the same data; otherwise the rows could make the difference, not the recipe",
    "scored rows": "evaluate all of them on the same rows",
    "task": "give the recipes the same task, labels and json_schema, and evaluate again",
}


def unlike(found: Sequence[Evaluated]) -> Iterator[str]:
    """Why these runs cannot be compared with each other, and which of them differ."""
    for subject, remedy in REMEDIES.items():
        sides: dict[str, list[Evaluated]] = {}
        for run in found:
            sides.setdefault(comparable(run)[subject][0], []).append(run)
        if len(sides) > 1:
            listed = "; ".join(
                f"{', '.join(run.name for run in runs)}: {comparable(runs[0])[subject][1]}" for runs in sides.values()
            )
            yield f"different {subject}: {listed}. Instead: {remedy}"


def decisive(found: Sequence[Evaluated]) -> dict[str, dict[tuple[str, str], Any]]:
    """For each run what makes it another experiment, by (of what, key): TRL's keys, ours, topology, evaluation."""
    keys = sorted(dict.fromkeys(key for run in found for key in run.values), key=schema.own().__contains__)
    values = {}
    for run in found:
        settings = run.evaluation["settings"] | {"predict_by": run.evaluation["predict_by"]}
        values[run.name] = {
            **{("recipe", key): run[key] for key in keys if key not in BOOKKEEPING and key not in EVALUATION},
            **{("topology", key): value for key, value in run.facts["topology"].items()},
            **{("evaluation", key): settings[key] for key in EVALUATION},
        }
    return values


def grouped(found: Sequence[Evaluated]) -> list[Entry]:
    """The entries of a comparison, packages and hardware aside.

    A repeat with the same seed is no second seed, so such runs stay apart.
    """
    alike: dict[str, list[Evaluated]] = {}
    for run, values in zip(found, decisive(found).values(), strict=True):
        others = [(*key, value) for key, value in values.items() if key[1] not in SEEDS]
        alike.setdefault(json.dumps(others), []).append(run)
    entries = []
    for runs in alike.values():
        seeds = {tuple(run[key] for key in SEEDS) for run in runs}
        entries += [Entry(runs)] if len(seeds) == len(runs) else [Entry([run]) for run in runs]
    return entries


def common(found: Sequence[Evaluated]) -> Facts:
    """What the runs of a comparison have in common."""
    run = found[0]
    train = run.facts["data"]["splits"]["train"]
    measured = [estimates(each.evaluation["models"]["tuned"], run.primary) for each in found]
    return {
        "split": run.evaluation["split"],
        "task": run.evaluation["task"],
        "primary": run.primary,
        "confidence": CONFIDENCE,
        "data": {
            "fingerprint": run.facts["data"]["fingerprint"],
            "train_source": train["source"],
            "train_rows": train["rows"],
            "rows_source": run.evaluation["settings"]["source"],
            "rows_fingerprint": run.fingerprint,
            "scored": len(run.right),
        },
        "metrics": list(dict.fromkeys(key for metrics in measured for key in metrics)),
    }


def references(found: Sequence[Evaluated]) -> list[Facts]:
    """Each different base once, and the best of the trivial baselines, which depend on the data alone."""
    primary, rows = found[0].primary, []
    bases: dict[str, list[Evaluated]] = {}
    for run in found:
        if "base" in run.evaluation["models"]:
            bases.setdefault(json.dumps(run.evaluation["models"]["base"]), []).append(run)
    for runs in bases.values():
        names = [run.name for run in runs]
        name = "base" if len(bases) == 1 else f"base of {', '.join(names)}"
        metrics = estimates(runs[0].evaluation["models"]["base"], primary)
        rows.append({"kind": "base", "name": name, "runs": names, "metrics": metrics})
    baselines = dict(found[0].evaluation["baselines"])
    baselines |= {f"always {label}": model for label, model in baselines.pop("always", {}).items()}
    known = {
        name: estimates(model, primary) for name, model in baselines.items() if model[primary]["value"] is not None
    }
    if known:
        best = max(known, key=lambda name: known[name][primary]["value"])
        every = [run.name for run in found]
        rows.append({"kind": "baseline", "name": best, "runs": every, "metrics": known[best]})
    return rows


def differences(found: Sequence[Evaluated]) -> list[Facts]:
    """Values that are not equal in all runs, by the name of the run."""
    return [
        {"of": of, "key": key, "values": {name: schema.as_yaml(value) for name, value in each.items()}}
        for (of, key), each in _unequal(decisive(found)).items()
    ]


def environment(found: Sequence[Evaluated]) -> list[Facts]:
    """Packages, hardware and commit, where they are not equal in all runs."""
    texts = {}
    for run in found:
        git = run.facts["git"] or {}
        commit = f"{git.get('commit') or 'none'}{' with changes' if git.get('dirty') else ''}"
        own = {"python": run.facts["python"], "cpus": str(run.facts["cpus"]), "commit": commit}
        texts[run.name] = {**run.facts["versions"], **own, "gpus": "; ".join(run.facts["gpus"]) or "none"}
    return [{"key": key, "values": each} for key, each in _unequal(texts).items()]


def _unequal(values: Mapping[str, Mapping[Key, Any]]) -> dict[Key, dict[str, Any]]:
    """From the values of each run by their keys: those that are not equal in all runs, by the name of the run."""
    keys = dict.fromkeys(key for each in values.values() for key in each)
    by_run = {key: {name: each.get(key, "none") for name, each in values.items()} for key in keys}
    return {key: each for key, each in by_run.items() if len(set(map(json.dumps, each.values()))) > 1}


def notes(entries: Sequence[Entry]) -> Iterator[str]:
    """What a reader of the figures has to know."""
    runs = [run for entry in entries for run in entry.runs]
    single = [entry.name for entry in entries if len(entry.runs) == 1]
    if len(entries) == 1:
        yield "all runs are of one recipe with several seeds, so there is no pair to test"
    elif len(single) == len(entries):
        yield (
            "one seed each: intervals and tests are of these models on other such rows; another seed may change them, "
            f"make train RECIPE={runs[0].facts['recipe']} SEEDS='42 43 44' shows by how much"
        )
    elif single:
        yield (
            f"of {', '.join(single)} one seed ran: the spread over seeds of the others is taken to be theirs too"
            + ("; between themselves they are tested over rows alone" if len(single) > 1 else "")
        )
    if len(entries) > 1 and len(single) < len(entries):
        yield (
            "metrics of several seeds have an interval over seeds, on these rows; the tests take rows and seeds into "
            "account"
        )
    ways = {run.evaluation["predict_by"] for run in runs}
    if len(ways) > 1:
        yield (
            f"some are scored by {' and some by '.join(sorted(ways))}: a difference between these is one of training "
            "and of scoring together"
        )
