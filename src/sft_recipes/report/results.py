"""A run as a result: what its tuned model made of the scored rows, alone or as one of several seeds."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from jsonschema import Draft202012Validator
from numpy.typing import NDArray

from sft_recipes.errors import InputError
from sft_recipes.evaluate import generation, statistics, terms
from sft_recipes.recipes import json_schemas, schema
from sft_recipes.terminal import count

Facts = dict[str, Any]

SEEDS = ("seed", "data_seed")


@dataclass(frozen=True, eq=False)
class Evaluated:
    """A finished run, and what its tuned model made of the scored rows."""

    name: str
    facts: Facts  # its run.json
    values: Facts  # the resolved recipe and our own keys
    evaluation: Facts  # its metrics.json
    fingerprint: str  # SHA-256 of the scored rows: prompts and references, in order
    gold: NDArray[np.intp] | None  # the class of each row, by its number in `labels`; None for generation
    scores: NDArray[Any]
    """The predicted class of each row (an invalid one is the number of labels); for generation, its primary score."""
    right: NDArray[np.bool_]  # whether it is the class, or the reference to the letter

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

    def cost(self) -> Facts:
        """What it took; docs/run_directory.md says what the figures cover."""
        measured, topology = self.facts["measured"], self.facts["topology"]
        kinds = sorted({gpu.partition(",")[0] for gpu in self.facts["gpus"]})
        cpu = f"CPU, {count(self.facts['cpus'], 'core')}"
        return {
            # Before launches were listed, only the last of a resumed run was measured.
            "training_seconds": None
            if self.facts.get("resumed") and not self.facts.get("launches")
            else measured["training_seconds"],
            "seconds": self.facts["seconds"],
            "tokens_per_second": measured["tokens_per_second"],
            # Runs of before they were measured have none of these.
            **{key: measured.get(key) for key in ("samples_per_second", "waiting_share", "mfu")},
            "peak_memory_bytes": measured["peak_memory_bytes"],
            "steps": measured["step"],
            "hardware": cpu if topology["use_cpu"] else f"{topology['processes']} x {' or '.join(kinds) or 'GPU'}",
            "trainable_parameters": self.facts["in_effect"]["adapter"]["trainable_parameters"],
            "evaluation_rows_per_second": self.evaluation["measured"]["models"]["tuned"]["rows_per_second"],
        }


def with_scores(name: str, facts: Facts, values: Facts, evaluation: Facts, rows: list[Any]) -> Evaluated:
    """A run with what its predictions say of each scored row."""
    decisive = [[row[key] for key in ("row", "id", "gold", "reference")] for row in rows]
    fingerprint = hashlib.sha256(json.dumps(decisive).encode()).hexdigest()
    predictions = [row["tuned"]["prediction"] for row in rows]
    gold = None
    if evaluation["task"] == "classification":
        codes = {label: code for code, label in enumerate(sorted(evaluation["labels"]))}
        gold = np.array([codes[row["gold"]] for row in rows])
        scores = np.array([codes.get(prediction, len(codes)) for prediction in predictions])
        right = gold == scores
    else:
        checker = _checker(name, evaluation["settings"]["json_schema"])
        every = generation.scores([row["reference"] for row in rows], predictions, checker)
        scores = every[:, generation.SCORES.index(evaluation["primary"])]
        right = every[:, generation.SCORES.index("exact_match")] == 1
    return Evaluated(name, facts, values, evaluation, fingerprint, gold, scores, right)


def _checker(name: str, path: str | None) -> Draft202012Validator | None:
    try:
        return None if path is None else json_schemas.validator(json_schemas.read(path))
    except InputError as error:
        raise InputError(*(f"{name}: {problem}; put it back" for problem in error.problems)) from None


@dataclass(frozen=True, eq=False)
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

    def facts(self) -> Facts:
        """Its metrics, verdict and cost; of several runs the means, and the largest peak memory."""
        costs = [run.cost() for run in self.runs]
        cost = dict(costs[0])
        means = ("training_seconds", "seconds", "tokens_per_second", "samples_per_second", "waiting_share", "mfu")
        for key in (*means, "evaluation_rows_per_second"):
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

    def _metrics(self) -> Facts:
        """Of one run with its interval over rows; of several the mean, with Student's t interval over seeds."""
        first, *others = [estimates(run.evaluation["models"]["tuned"], run.primary) for run in self.runs]
        if not others:
            return {key: {**estimate, "over": "rows"} for key, estimate in first.items()}
        metrics: Facts = {}
        for key, estimate in first.items():
            values = [estimate["value"], *(each.get(key, {}).get("value") for each in others)]
            if None in values:
                metrics[key] = {"value": None, "low": None, "high": None, "over": "seeds"}
                continue
            mean, _, interval = statistics.over_seeds(values)
            low, high = interval or (mean, mean)
            # Student's interval of few seeds can be wider than the metric's range.
            bounds = (max(low, -1.0 if key == "mcc" else 0.0), min(high, 1.0)) if low < high else None
            ends = {"min": min(values), "max": max(values)}
            metrics[key] = {**statistics.estimate(mean, bounds), "over": "seeds", **ends}
        return metrics


def estimates(model: Facts, primary: str) -> Facts:
    """The estimates of a model in metrics.json that a table shows, the primary one first."""
    shown = {primary: model[primary]} | {key: model[key] for key in terms.COLUMNS if model.get(key) is not None}
    estimates = {key: value.get("share", value) for key, value in shown.items()}
    return {key: {part: each[part] for part in ("value", "low", "high")} for key, each in estimates.items()}
