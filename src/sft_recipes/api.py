"""The commands as functions, for notebooks and programs: objects instead of lines, exceptions instead of exit codes.

Wherever a recipe, an accelerate config or a run is named, the path of its file or directory does as well: a `Path`, or
a text that ends in `.yaml` or, for a run, has a slash. docs/api.md has examples.
"""

import html
from collections.abc import Iterable, Mapping, Sequence
from itertools import starmap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_recipes.errors import EvaluationFailed, InputError, Interrupted, TrainingFailed, refuse
from sft_recipes.recipes import recipe as recipes
from sft_recipes.recipes.recipe import Recipe
from sft_recipes.runs import outcome
from sft_recipes.terminal import count, plain, visible

if TYPE_CHECKING:
    import pandas as pd

Overrides = Mapping[str, Any]
Lines = Iterable[tuple[str, str]]


class Facts:
    """Facts by name, as attributes and as keys; printed as the command prints them."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self.facts = facts

    def __getattr__(self, name: str) -> Any:
        if name == "facts" or name not in self.facts:
            raise AttributeError(f"{type(self).__name__} has no {name}")
        return self.facts[name]

    def __getitem__(self, name: str) -> Any:
        return self.facts[name]

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.facts]

    def lines(self) -> Lines:
        """What the command says, as (subject, text)."""
        raise NotImplementedError

    def __str__(self) -> str:
        return "\n".join(starmap(plain, self.lines()))

    def _repr_html_(self) -> str:
        return as_table(self.lines())


class Plan(Facts):
    """What a recipe will do: the keys of docs/plan.md, such as `schedule`, `memory`, `time` and `findings`."""

    def lines(self) -> Lines:
        from sft_recipes.plan import plan as plans

        return plans.render(self.facts)

    def __repr__(self) -> str:
        steps = count(self.schedule["steps"], "step") if self.schedule else "steps not known"
        found = f"{self.blocking} of {count(len(self.findings), 'finding')} blocking"
        return f"<Plan of {self.recipe['name']} on {self.topology['name']}: {steps}, {found}>"


class Comparison(Facts):
    """Runs beside each other: `entries`, `differences`, `pairs` with their tests, and what `compare --json` says."""

    def lines(self) -> Lines:
        from sft_recipes.report import tables

        return tables.render(self.facts)

    def __repr__(self) -> str:
        return f"<Comparison of {', '.join(each['name'] for each in self.entries)}>"


class RunResult:
    """A run as it lies on the disk: read when asked, and never changed."""

    def __init__(self, directory: Path) -> None:
        from sft_recipes.runs.run import Run

        self._run = Run(directory)
        self.directory = directory
        self.name = directory.name
        self.adapter = self._run.adapter

    @property
    def facts(self) -> dict[str, Any]:
        """run.json (docs/run_directory.md)."""
        return self._run.facts()

    @property
    def status(self) -> str:
        """`running`, `finished`, `interrupted` or `failed`."""
        return self.facts["status"]

    @property
    def recipe(self) -> dict[str, Any]:
        """The resolved recipe, our own keys among them."""
        return self._run.values() | self.facts["own"]

    @property
    def split(self) -> str | None:
        """Which rows it was evaluated on: `test`, otherwise `validation`; None before an evaluation."""
        return self._run.evaluated()

    @property
    def metrics(self) -> dict[str, Any] | None:
        """metrics.json (docs/evaluation.md); None before an evaluation."""
        return self._run.evaluation(self.split) if self.split else None

    @property
    def log(self) -> "pd.DataFrame":
        """log.jsonl: a row for each logging step and each evaluation."""
        import pandas as pd

        return pd.DataFrame(self._run.log_entries())

    @property
    def predictions(self) -> "pd.DataFrame | None":
        """predictions.jsonl, with columns such as `tuned.prediction`; None before an evaluation."""
        import pandas as pd

        if self.split is None:
            return None
        return pd.json_normalize(self._run.predicted(self.split), max_level=1)

    def lines(self) -> Lines:
        """What there is to say of it in a few lines, as (subject, text)."""
        facts = self.facts
        yield "run", f"{self.directory}, {facts['status']}"
        yield "recipe", facts["recipe"]
        if facts.get("error"):
            yield "error", facts["error"]
        measured = facts.get("measured") or {}
        if measured:
            yield "trained", count(measured["step"], "step")
            for sentence in outcome.held_out(measured):
                yield "eval loss", sentence
        if metrics := self.metrics:
            yield "verdict", outcome.verdict(metrics["verdict"])
        if self._run.report.is_file():
            yield "report", str(self._run.report)

    def __repr__(self) -> str:
        return f"<Run {self.directory}: {self.facts['recipe']}, {self.status}>"

    def _repr_html_(self) -> str:
        return as_table(self.lines())


def list_recipes() -> dict[str, str]:
    """The recipes by name, each with its idea."""
    return {name: recipes.load(name)["description"] for name in recipes.names()}


def load_recipe(
    recipe: str | Path, overrides: Overrides | None = None, *, model: str | None = None, data: str | Path | None = None
) -> Recipe:
    """A checked recipe: `recipe["lora_r"]` is a value, `recipe.values["lora_r"].origin` where it was written.

    Raises:
        InputError: With all its problems at once.
    """
    return recipes.load(recipe, _overrides(overrides, model, data))


def plan(
    recipe: str | Path,
    overrides: Overrides | None = None,
    *,
    model: str | None = None,
    data: str | Path | None = None,
    accel: str | Path | None = None,
    processes: int | None = None,
    gpu: str | None = None,
    trace: bool = False,
) -> Plan:
    """What a recipe will do: steps, memory, time, and everything that would refuse or spoil its training.

    Args:
        recipe: A name or a file.
        overrides: Keys of the recipe with other values.
        model: A model of models/.
        data: Your rows, instead of all of the recipe's; a share of them is held out.
        accel: An accelerate config; without it the recipe's, or what the visible hardware decides.
        processes: Another number of processes than the accelerate config's.
        gpu: A GPU to plan for, such as a100-80gb; without it the visible one.
        trace: Also run the real modules on tensors without data, which takes some seconds.

    Raises:
        InputError: The recipe, its data or a name is wrong.
    """
    from sft_recipes.plan import plan as plans

    where = _where(overrides, model, data, accel, processes)
    return Plan(plans.plan(recipe, gpu=gpu, traced=trace, **where))


def train(
    recipe: str | Path,
    overrides: Overrides | None = None,
    *,
    model: str | None = None,
    data: str | Path | None = None,
    accel: str | Path | None = None,
    processes: int | None = None,
    name: str | None = None,
    resume: bool = False,
) -> RunResult:
    """Train a recipe into runs/NAME in processes of its own, and evaluate it if it names a task.

    Args:
        recipe: A name or a file, like `overrides`, `model`, `data`, `accel` and `processes` as in `plan`.
        name: The run's; without it the recipe's name and the time.
        resume: Continue the run of that name, which must be of the same recipe.

    Raises:
        InputError: With everything that was wrong before a process started; nothing is left behind.
        TrainingFailed: The training failed while it ran.
        EvaluationFailed: The training ended well, and its evaluation did not.
        Interrupted: It was stopped, and `train(..., name=..., resume=True)` goes on.
    """
    from sft_recipes.launch import launch

    where = _where(overrides, model, data, accel, processes)
    code, run = launch.train(recipe, run_name=name, resume=resume, **where)
    return _ended(code, RunResult(run.directory))


def evaluate(
    run: "str | Path | RunResult",
    overrides: Overrides | None = None,
    *,
    data: str | Path | None = None,
    split: str | None = None,
    base: bool = False,
) -> RunResult:
    """Score a finished run on rows it has not seen; `metrics` and `predictions` of what is given hold the result.

    Args:
        run: A run, its name or its directory.
        overrides: Keys of the task, where the run's recipe says nothing or another thing.
        data: Rows to evaluate on, instead of the recipe's test_file.
        split: `test` or `validation`.
        base: Score the base model on the same rows too.

    Raises:
        InputError: There is nothing to evaluate, or not as asked.
        EvaluationFailed: It failed; what was scored is kept.
        Interrupted: It was stopped; the same call goes on.
    """
    from sft_recipes.evaluate import evaluate as evaluation
    from sft_recipes.report import pages

    rows = {} if data is None else {"test_file": data}
    found = load_run(run)
    words = recipes.as_words({**(overrides or {}), **rows})
    code, path = evaluation.evaluate(str(found.directory), split=split, base=base, overrides=words)
    if path:
        pages.write(found._run)
    return _ended(code, found)


def load_run(run: "str | Path | RunResult") -> RunResult:
    """A run by its name, or its directory: `facts`, `metrics`, `log` and `predictions`.

    Raises:
        InputError: There is none.
    """
    from sft_recipes.runs.run import Run

    return run if isinstance(run, RunResult) else RunResult(Run.open(run).directory)


def load_model(run: "str | Path | RunResult") -> tuple[Any, Any]:
    """The model that a run trained, on the GPU if there is one, and its tokenizer.

    Raises:
        InputError: There is none, or its files are not what was trained.
    """
    from sft_recipes.environment import quiet
    from sft_recipes.recipes import topology
    from sft_recipes.runs import identity
    from sft_recipes.runs.run import adapter_damage

    found = load_run(run)
    refuse([adapter_damage(found._run)])
    identity.check(found._run)
    on_cpu = topology.no_gpu()
    quiet()
    from sft_recipes.evaluate import scoring

    return scoring.load(found._run.values(), found.adapter, on_cpu=on_cpu)


def compare(runs: "Sequence[str | Path | RunResult]", *, split: str = "test") -> Comparison:
    """What runs changed, what came of it, and which differences are real.

    Raises:
        InputError: With everything that forbids the comparison.
    """
    from sft_recipes.report import compare as comparison

    found = [load_run(run).directory for run in runs]
    folders = {directory.parent for directory in found}
    if len(folders) > 1:
        raise InputError(f"runs of one folder are compared, and these are of {', '.join(map(str, sorted(folders)))}")
    return Comparison(comparison.compare([each.name for each in found], split, *folders))


def as_table(lines: Lines) -> str:
    """Lines as a small table of HTML, every text escaped."""

    def cell(text: str) -> str:
        return "<br>".join(html.escape(visible(line)) for line in text.split("\n"))

    rows = "".join(
        f'<tr><th style="text-align:left;vertical-align:top">{cell(subject)}</th>'
        f'<td style="text-align:left">{cell(text)}</td></tr>'
        for subject, text in lines
    )
    return f"<table>{rows}</table>"


def _where(
    overrides: Overrides | None,
    model: str | None,
    data: str | Path | None,
    accel: str | Path | None,
    processes: int | None,
) -> Any:
    return {
        "overrides": _overrides(overrides, model, data),
        "accel": accel and str(accel),
        "processes": processes,
    }


def _overrides(overrides: Overrides | None, model: str | None, data: str | Path | None) -> Overrides:
    found = dict(overrides or {})
    if model is not None:
        found["model"] = model
    if data is not None:
        found["data"] = data
    return found


def _ended(code: int, run: RunResult) -> RunResult:
    if code == 0:
        return run
    name, facts = run.name, run.facts
    if code == 3:
        in_training = facts["status"] == "interrupted"
        again = f"train(..., name={name!r}, resume=True)" if in_training else f"evaluate({name!r})"
        raise Interrupted(f"{run.directory} was stopped; {again} goes on", run)
    if facts["status"] == "finished":
        raise EvaluationFailed(f"the evaluation of {run.directory} failed; what was scored is kept", run)
    raise TrainingFailed(f"{run.directory} failed: {facts.get('error')}", run)
