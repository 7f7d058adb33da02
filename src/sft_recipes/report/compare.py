"""Runs beside each other: what differs, what it changed, how sure that is, and what it cost.

Read from run directories alone. Only what is comparable is compared: models that learned from the same rows and were
scored on the same rows.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jsonschema import Draft202012Validator
from numpy.typing import NDArray
from scipy import stats

from sft_recipes.errors import InputError
from sft_recipes.evaluate import classification, generation, statistics, terms
from sft_recipes.evaluate.statistics import CONFIDENCE
from sft_recipes.evaluate.verdict import MINIMUM_ROWS
from sft_recipes.recipes import schema
from sft_recipes.runs.run import RUNS, Run
from sft_recipes.terminal import count

SCHEMA = 1
# The metrics of a table, in order, after the primary one.
METRICS = {key: name for key, name in terms.METRICS.items() if key != "micro_f1"}
METRICS |= {"invalid": "invalid", "unfinished": "unfinished"}
SEEDS = ("seed", "data_seed")
# Where rows lie and how they are read, for which the data's fingerprint stands; where results lie; what is said of a
# recipe; and what the topology and the task say themselves. All other keys may change what is learned, or its cost.
BOOKKEEPING = {
    *("dataset_name", "dataset_config", "dataset_train_split", "dataset_test_split", "validation_split_size"),
    *("train_file", "validation_file", "test_file", "data_format", "data_columns", "group_column"),
    *("output_dir", "run_name", "extends", "description", "accelerate_config", "silence"),
    *("use_cpu", "task", "labels"),
}
# Said by the evaluation, as it was made.
EVALUATION = ("predict_by", "label_field", "label_pattern", "max_new_tokens", "json_schema")


def compare(names: Sequence[str], split: str = "test", runs: Path = RUNS) -> dict[str, Any]:
    """The facts of a comparison: differences, metrics, paired tests between all entries, costs.

    An entry is a run, or all those runs that differ in their seeds alone.

    Args:
        names: runs, in the order in which they are to be shown.
        split: whose evaluation is compared.
        runs: where the runs are.

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
    if problems:
        raise InputError(*problems)
    return _facts(found)


def _facts(found: Sequence["Evaluated"]) -> dict[str, Any]:
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
        "notes": [*notes(entries)],
    }


def leaderboard(split: str = "test", runs: Path = RUNS) -> dict[str, Any]:
    """The facts of all evaluated runs: a board for each set of runs that `compare` would take, best first.

    Raises:
        InputError: There is no run at all.
    """
    boards: dict[Any, list[Evaluated]] = {}
    left_out = []
    for path in sorted(runs.glob("*/run.json")):
        try:
            run = read(Run(path.parent), split)
        except InputError as error:
            left_out.append({"run": path.parent.name, "reason": "; ".join(error.problems)})
        else:
            boards.setdefault(tuple(equal for equal, _ in comparable(run).values()), []).append(run)
    if not boards and not left_out:
        raise InputError(f"no run in {runs}/; make train RECIPE=demo makes one")
    return {"schema": SCHEMA, "boards": [board(found) for found in boards.values()], "left_out": left_out}


def board(found: Sequence["Evaluated"]) -> dict[str, Any]:
    """One table of a leaderboard: entries, bases and the best baseline by the primary metric, the highest first.

    Each entry but the first has its test against the first. Which one is first is decided by the same rows, so it is
    tested as one of all pairs.
    """

    def height(row: dict[str, Any]) -> float:
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
        "notes": [selected] if len(entries) > 1 else [],
    }


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluated:
    """A finished run, and what its tuned model made of the scored rows."""

    name: str
    facts: dict[str, Any]
    """Its run.json."""
    values: dict[str, Any]
    """The resolved recipe and our own keys."""
    evaluation: dict[str, Any]
    """Its metrics.json."""
    fingerprint: str
    """SHA-256 of the scored rows: prompts and references, in order."""
    gold: NDArray[np.intp] | None
    """The class of each row, by its number in `labels`; None for generation."""
    scores: NDArray[Any]
    """The predicted class of each row (an invalid one is the number of labels); for generation, its primary score."""
    right: NDArray[np.bool_]
    """Whether it is the class, or the reference to the letter."""

    @property
    def primary(self) -> str:
        return self.evaluation["primary"]

    @property
    def labels(self) -> list[str]:
        """The classes in one order for all runs; none for generation."""
        return sorted(self.evaluation["labels"] or [])

    def __getitem__(self, key: str) -> Any:
        """The value of a key: as it was resolved, or TRL's default."""
        return self.values[key] if key in self.values else (schema.upstream().get(key) or {}).get("default")

    def cost(self) -> dict[str, Any]:
        """What it took; docs/run_directory.md says what the figures cover."""
        measured, topology = self.facts["measured"], self.facts["topology"]
        kinds = sorted({gpu.partition(",")[0] for gpu in self.facts["gpus"]})
        cpu = f"CPU, {count(self.facts['cpus'], 'core')}"
        return {
            # Of a resumed run only the last launch was measured.
            "training_seconds": None if self.facts.get("resumed") else measured["training_seconds"],
            "seconds": self.facts["seconds"],
            "tokens_per_second": measured["tokens_per_second"],
            "peak_memory_bytes": measured["peak_memory_bytes"],
            "steps": measured["step"],
            "hardware": cpu if topology["use_cpu"] else f"{topology['processes']} x {' or '.join(kinds) or 'GPU'}",
            "trainable_parameters": self.facts["in_effect"]["adapter"]["trainable_parameters"],
            "evaluation_rows_per_second": self.evaluation["measured"]["models"]["tuned"]["rows_per_second"],
        }


def read(run: Run, split: str) -> Evaluated:
    """A run as a result.

    Raises:
        InputError: It is none: a rehearsal, unfinished, not evaluated, or its files do not belong together.
    """
    suffix, variable = ("", "") if split == "test" else (f"-{split}", f" SPLIT={split}")
    evaluate = f"make evaluate RUN={run.name}{variable}"
    try:
        facts = run.facts()
        if facts["rehearsal"]:
            raise InputError(f"{run.name} is a rehearsal, whose model is tiny and random: no result; leave it out")
        if facts["status"] != "finished":
            raise InputError(f"{run.name} is {facts['status']}, not finished; make resume NAME={run.name}")
        evaluation = json.loads((run.directory / f"metrics{suffix}.json").read_text(encoding="utf-8"))
        with (run.directory / f"predictions{suffix}.jsonl").open(encoding="utf-8") as file:
            rows = [row for row in map(json.loads, file) if not row["leaked"]]
        values = yaml.safe_load(run.recipe.read_text(encoding="utf-8")) | facts["own"]
        if not rows:
            raise InputError(f"{run.name}: no row of {split} is scored; {evaluate}")
        found = _evaluated(run.name, facts, values, evaluation, rows)
        # All that will be said of it is looked at here, so that a broken file is a message.
        _facts([found])
        comparable(found)
        cells, primary = _statistic([found])
        value = float(primary(np.bincount(cells)[None].astype(float))[0, 0])
        given = evaluation["models"]["tuned"][found.primary]["value"]
        if len(rows) != evaluation["scored"] or not math.isclose(given, value, abs_tol=1e-6):
            raise InputError(
                f"{run.name}: its predictions give {found.primary} {value:.4f} on {count(len(rows), 'row')}, and its "
                f"metrics say {given:.4f} on {evaluation['scored']}: one of the two was changed; {evaluate}"
            )
    except FileNotFoundError as error:
        missing = Path(error.filename).name
        raise InputError(f"{run.name} is not evaluated on {split} (no {missing}); {evaluate}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        wrong = f"{type(error).__name__}: {error}"
        raise InputError(f"{run.name}: its files are not as they are written ({wrong}); {evaluate}") from None
    return found


def _evaluated(
    name: str, facts: dict[str, Any], values: dict[str, Any], evaluation: dict[str, Any], rows: list[Any]
) -> Evaluated:
    decisive = [[row[key] for key in ("row", "id", "gold", "reference")] for row in rows]
    fingerprint = hashlib.sha256(json.dumps(decisive).encode()).hexdigest()
    predictions = [row["tuned"]["prediction"] for row in rows]
    if evaluation["task"] == "classification":
        codes = {label: code for code, label in enumerate(sorted(evaluation["labels"]))}
        gold = np.array([codes[row["gold"]] for row in rows])
        scores = np.array([codes.get(prediction, len(codes)) for prediction in predictions])
        right = gold == scores
    else:
        gold = None
        checker = _checker(name, evaluation["settings"]["json_schema"])
        every = generation.scores([row["reference"] for row in rows], predictions, checker)
        scores = every[:, generation.SCORES.index(evaluation["primary"])]
        right = every[:, generation.SCORES.index("exact_match")] == 1
    return Evaluated(name, facts, values, evaluation, fingerprint, gold, scores, right)


def _checker(name: str, path: str | None) -> Draft202012Validator | None:
    if path is None:
        return None
    try:
        return generation.validator(json.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise InputError(f"{name}: its json_schema {path} cannot be read ({error}); put it back") from None


def _statistic(
    runs: Sequence[Evaluated],
) -> tuple[NDArray[np.intp], Callable[[NDArray[np.float64]], NDArray[np.float64]]]:
    """The rows' cells, and the primary metric of runs from counts of them: (resamples, cells) to (resamples, runs)."""
    scores = np.stack([run.scores for run in runs], axis=1)
    if runs[0].gold is None:
        return np.arange(len(scores)), lambda counts: counts @ scores / counts.sum(axis=1, keepdims=True)
    cells, table = classification.table(np.column_stack([runs[0].gold, scores]), len(runs[0].labels), None)
    macro_f1 = classification.SCORES.index(runs[0].primary)
    return cells, lambda counts: table(counts)[..., macro_f1]


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


def unlike(found: Sequence[Evaluated]) -> list[str]:
    """Why these runs cannot be compared with each other, and which of them differ."""
    problems = []
    for subject, remedy in REMEDIES.items():
        sides: dict[str, list[Evaluated]] = {}
        for run in found:
            sides.setdefault(comparable(run)[subject][0], []).append(run)
        if len(sides) > 1:
            listed = [
                f"{', '.join(r.name for r in runs)}: {comparable(runs[0])[subject][1]}" for runs in sides.values()
            ]
            problems.append(f"different {subject}: {'; '.join(listed)}. Instead: {remedy}")
    return problems


@dataclasses.dataclass(frozen=True, eq=False)
class Entry:
    """A run, or those runs that differ in their seeds alone."""

    runs: list[Evaluated]

    @property
    def name(self) -> str:
        names, seeds = [run.name for run in self.runs], [run["seed"] for run in self.runs]
        stem = names[0].removesuffix(f"-seed{seeds[0]}")
        if len(names) > 1 and names == [f"{stem}-seed{seed}" for seed in seeds]:
            return f"{stem}, seeds {' '.join(map(str, seeds))}"
        return ", ".join(names)

    def facts(self) -> dict[str, Any]:
        """Its metrics, verdict and cost; of several runs the means, and the largest peak memory."""
        costs = [run.cost() for run in self.runs]
        cost = dict(costs[0])
        for key in ("training_seconds", "seconds", "tokens_per_second", "evaluation_rows_per_second"):
            values = [each[key] for each in costs]
            cost[key] = None if None in values else sum(values) / len(values)
        cost["peak_memory_bytes"] = max(each["peak_memory_bytes"] for each in costs)
        verdict = self.runs[0].evaluation["verdict"] if len(self.runs) == 1 else None
        return {
            "name": self.name,
            "runs": [run.name for run in self.runs],
            "recipe": self.runs[0].facts["recipe"],
            **{f"{key}s": [run[key] for run in self.runs] for key in SEEDS},
            "metrics": self._metrics(),
            "verdict": verdict and {key: verdict[key] for key in ("outcome", "text")},
            "cost": cost,
        }

    def _metrics(self) -> dict[str, Any]:
        """Of one run with its interval over rows; of several the mean, with Student's t interval over seeds."""
        each = [_estimates(run.evaluation["models"]["tuned"], run.primary) for run in self.runs]
        if len(each) == 1:
            return {key: {**estimate, "over": "rows"} for key, estimate in each[0].items()}
        metrics: dict[str, Any] = {}
        for key in each[0]:
            values = [estimates.get(key, {}).get("value") for estimates in each]
            if None in values:
                metrics[key] = {"value": None, "low": None, "high": None, "over": "seeds"}
                continue
            mean, _, interval = statistics.over_seeds(values)
            low, high = interval or (mean, mean)
            # Student's interval of few seeds can be wider than the metric's range.
            bounds = (max(low, -1.0 if key == "mcc" else 0.0), min(high, 1.0)) if low < high else None
            metrics[key] = {**statistics.estimate(mean, bounds)}
            metrics[key] |= {"over": "seeds", "min": min(values), "max": max(values)}
        return metrics


def _estimates(model: dict[str, Any], primary: str) -> dict[str, Any]:
    """The estimates of a model in metrics.json that a table shows, the primary one first."""
    shown = {primary: model[primary]} | {key: model[key] for key in METRICS if model.get(key) is not None}
    estimates = {key: value.get("share", value) for key, value in shown.items()}
    return {key: {part: each[part] for part in ("value", "low", "high")} for key, each in estimates.items()}


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


def tested(entries: Sequence[Entry], *, first_only: bool = False) -> list[dict[str, Any]]:
    """Every pair of entries, tested on the same rows by the primary metric, with Holm's correction over all pairs.

    p follows from the difference's standard error (`_differences`) by Student's t: counted resamples cannot give the
    small ones that a correction over many pairs needs. It is never smaller than an exact sign test could make it by
    the rows that the two do not get equally right. McNemar's test, of right against wrong, is exact, corrected alike,
    and made where both are single runs.

    Args:
        entries: all on the same rows.
        first_only: give the pairs of the first entry alone, without McNemar's test; all pairs are still corrected for.
    """
    if len(entries) < 2:
        return []
    first, second = np.triu_indices(len(entries), 1)
    difference, error, freedom = _differences(entries, first, second)
    levels = [[run.scores if run.gold is None else run.right for run in entry.runs] for entry in entries]
    level = np.array([np.mean(each, axis=0) for each in levels])
    unequal = np.concatenate([(level[i] != level[i + 1 :]).sum(axis=1) for i in range(len(entries) - 1)])
    with np.errstate(divide="ignore", invalid="ignore"):
        p = np.where(difference == 0, 1.0, 2 * stats.t.sf(np.abs(difference) / error, freedom))
        half = stats.t.ppf((1 + CONFIDENCE) / 2, freedom) * error
    p = np.minimum(1.0, np.maximum(p, 2 * 0.5**unequal))
    corrected = statistics.holm(p.tolist())
    pairs = []
    for k in range(len(entries) - 1 if first_only else len(first)):
        a, b = entries[first[k]], entries[second[k]]
        outcome = "better" if difference[k] > 0 else "worse"
        if corrected[k] >= 1 - CONFIDENCE:
            outcome = "not_distinguishable"
        bounds = (difference[k] - half[k], difference[k] + half[k]) if error[k] > 0 else None
        pair = {
            "a": a.name,
            "b": b.name,
            "difference": statistics.estimate(difference[k], bounds),
            "p": float(p[k]),
            "p_holm": corrected[k],
            "outcome": outcome if level.shape[1] >= MINIMUM_ROWS else "none",
            "unequal_rows": int(unequal[k]),
            "includes": ["rows", "seeds"] if len(a.runs) + len(b.runs) > 2 else ["rows"],
            "mcnemar": None if first_only else _mcnemar(a, b),
        }
        pairs.append(pair | {"text": _in_words(pair, METRICS[a.runs[0].primary], len(first))})
    tests = [pair["mcnemar"] for pair in pairs if pair["mcnemar"]]
    for test, p_holm in zip(tests, statistics.holm([test["p"] for test in tests]), strict=True):
        test["p_holm"] = p_holm
    return pairs


def _differences(
    entries: Sequence[Entry], first: NDArray[np.intp], second: NDArray[np.intp]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """For pairs of entries: the difference of the primary metric (means over seeds), its error, degrees of freedom.

    The error's square is the variance of the paired bootstrap over rows and, where one of the two has several seeds,
    that of means over seeds, whose spread is pooled as in a two-sample t test; degrees of freedom after Satterthwaite
    (1946, doi:10.2307/3002019). Rows alone would call the luck of a seed a difference of recipes (Bouthillier et al.
    2021, arXiv 2103.03098). What rows and seeds do together is in both terms, which errs towards no difference.
    """
    runs = [run for entry in entries for run in entry.runs]
    cells, statistic = _statistic(runs)
    whole = statistic(np.bincount(cells)[None].astype(float))[0]
    drawn = statistics.bootstrap(statistic, cells, seed=0)
    size = np.array([len(entry.runs) for entry in entries])
    parts = np.split(np.arange(len(runs)), np.cumsum(size)[:-1])
    means = np.array([whole[part].mean() for part in parts])
    squares = np.array([((whole[part] - whole[part].mean()) ** 2).sum() for part in parts])
    resampled = np.stack([drawn[:, part].mean(axis=1) for part in parts])
    over_rows = np.concatenate([np.nanvar(resampled[i] - resampled[i + 1 :], axis=1) for i in range(len(entries) - 1)])
    repeats = np.maximum(size[first] + size[second] - 2, 1)
    over_seeds = (squares[first] + squares[second]) / repeats * (1 / size[first] + 1 / size[second])
    variance = over_rows + over_seeds
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = variance**2 / (over_rows**2 / (len(cells) - 1) + over_seeds**2 / repeats)
    return means[first] - means[second], np.sqrt(variance), freedom


def _mcnemar(a: Entry, b: Entry) -> dict[str, Any] | None:
    if len(a.runs) + len(b.runs) > 2:
        return None
    one, other = a.runs[0].right, b.runs[0].right
    only_a, only_b = int((one & ~other).sum()), int((other & ~one).sum())
    return {"only_a": only_a, "only_b": only_b, "p": statistics.mcnemar(only_a, only_b)}


def _in_words(pair: dict[str, Any], metric: str, pairs: int) -> str:
    """The outcome as a sentence, the better one first."""
    a, b, sign = (pair["b"], pair["a"], -1) if pair["outcome"] == "worse" else (pair["a"], pair["b"], 1)
    if pair["outcome"] == "none":
        return f"{a} and {b}: not tested, because fewer than {MINIMUM_ROWS} rows are scored"
    difference = pair["difference"]
    evidence = f"{metric} {sign * difference['value']:+.3f}"
    if difference["low"] is not None:
        low, high = sorted((sign * difference["low"], sign * difference["high"]))
        evidence += f", {CONFIDENCE:.0%} {low:+.3f} to {high:+.3f}".replace("%", " %")
    evidence += f", {p_value(pair['p_holm'])}" + (f" after Holm over {pairs} pairs" if pairs > 1 else "")
    if pair["outcome"] == "not_distinguishable":
        return f"{a} and {b}: not distinguishable ({evidence})"
    return f"{a} better than {b} ({evidence})"


def p_value(p: float) -> str:
    """`p 0.013`, or `p < 0.001`."""
    return f"p {p:.3f}" if p >= 0.001 else "p < 0.001"


def common(found: Sequence[Evaluated]) -> dict[str, Any]:
    """What the runs of a comparison have in common."""
    run = found[0]
    train = run.facts["data"]["splits"]["train"]
    measured = [_estimates(each.evaluation["models"]["tuned"], run.primary) for each in found]
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


def references(found: Sequence[Evaluated]) -> list[dict[str, Any]]:
    """Each different base once, and the best of the trivial baselines, which depend on the data alone."""
    primary = found[0].primary
    bases: dict[str, list[Evaluated]] = {}
    for run in found:
        if "base" in run.evaluation["models"]:
            bases.setdefault(json.dumps(run.evaluation["models"]["base"]), []).append(run)
    rows = [
        {
            "kind": "base",
            "name": "base" if len(bases) == 1 else f"base of {', '.join(run.name for run in runs)}",
            "runs": [run.name for run in runs],
            "metrics": _estimates(runs[0].evaluation["models"]["base"], primary),
        }
        for runs in bases.values()
    ]
    baselines = dict(found[0].evaluation["baselines"])
    baselines |= {f"always {label}": model for label, model in baselines.pop("always", {}).items()}
    known = {name: model for name, model in baselines.items() if model[primary]["value"] is not None}
    if known:
        best = max(known, key=lambda name: known[name][primary]["value"])
        every = [run.name for run in found]
        rows.append({"kind": "baseline", "name": best, "runs": every, "metrics": _estimates(known[best], primary)})
    return rows


def differences(found: Sequence[Evaluated]) -> list[dict[str, Any]]:
    """Values that are not equal in all runs, by the name of the run."""
    values = decisive(found)
    return [
        {"of": of, "key": key, "values": {name: schema.as_yaml(each[of, key]) for name, each in values.items()}}
        for of, key in values[found[0].name]
        if len({json.dumps(each[of, key]) for each in values.values()}) > 1
    ]


def environment(found: Sequence[Evaluated]) -> list[dict[str, Any]]:
    """Packages, hardware and commit, where they are not equal in all runs."""
    texts = {}
    for run in found:
        git = run.facts["git"] or {}
        commit = f"{git.get('commit') or 'none'}{' with changes' if git.get('dirty') else ''}"
        own = {"python": run.facts["python"], "cpus": str(run.facts["cpus"]), "commit": commit}
        texts[run.name] = {**run.facts["versions"], **own, "gpus": "; ".join(run.facts["gpus"]) or "none"}
    keys = dict.fromkeys(key for text in texts.values() for key in text)
    values = {key: {name: text.get(key, "none") for name, text in texts.items()} for key in keys}
    return [{"key": key, "values": each} for key, each in values.items() if len(set(each.values())) > 1]


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
