"""A job: a recipe with everything that decides what its run will be, assembled and judged before a process starts."""

import dataclasses
import importlib.util
import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sft_recipes.data import preparation
from sft_recipes.demo import demo_base
from sft_recipes.errors import InputError
from sft_recipes.evaluate import questions
from sft_recipes.plan import lint, plan
from sft_recipes.plan.lint import Finding
from sft_recipes.recipes import recipe as recipes
from sft_recipes.recipes import topology
from sft_recipes.recipes.recipe import Recipe
from sft_recipes.recipes.topology import Gpu, Topology
from sft_recipes.terminal import counting_rows, say


@dataclasses.dataclass(frozen=True)
class Job:
    """A recipe, checked together with where it runs and what it reads."""

    recipe: Recipe
    """As written, with its base and overrides."""
    resolved: Recipe
    """With everything that follows from topology and data."""
    topology: Topology
    prepared: preparation.Prepared
    gpus: list[Gpu]
    rehearses: dict[str, Any] | None = None
    """What a rehearsal stands for, as run.json holds it; None for a run in earnest."""
    findings: tuple[Finding, ...] = ()

    def decisions(self) -> Iterator[tuple[str, str]]:
        """What was decided before anything was started, as (subject, decision)."""
        idea = self.recipe["description"]
        yield "recipe", f"{self.recipe.name}: {idea}" if idea else self.recipe.name
        facts = {key: item for key, item in self.recipe.values.items() if item.origin.startswith(f"{recipes.MODELS}/")}
        if facts:
            yield "model", ", ".join(f"{key}: {recipes.schema.as_yaml(item.value)}" for key, item in facts.items())
        for key, item in self.recipe.values.items():
            if item.origin == "SET":
                yield "override", f"{key}: {recipes.schema.as_yaml(item.value)}"
        yield "topology", self.topology.describe()
        for note in self.prepared.notes:
            yield "data", note


def check(name: str, *, accel: str | None = None, processes: int | None = None, overrides: Sequence[str] = ()) -> Job:
    """Everything that can be wrong before a process is started.

    Raises:
        InputError: With all of it at once.
    """
    recipe = recipes.load(name, recipes.parse_overrides(overrides))
    gpus = topology.visible_gpus()
    chosen = topology.choose(recipe, accel, processes, gpus)
    problems = topology.missing_gpus(recipe, chosen, gpus) + missing_tools(recipe, chosen) + missing_model(recipe)
    resolved, prepared = resolved_and_prepared(recipe, chosen, problems)
    return Job(recipe, with_data(resolved, prepared), chosen, prepared, gpus)


def resolved_and_prepared(
    recipe: Recipe, chosen: Topology, problems: Sequence[str]
) -> tuple[Recipe, preparation.Prepared]:
    """The recipe as it resolves on a topology, and its rows.

    Raises:
        InputError: With the problems given and those of both.
    """
    found = list(problems)
    try:
        resolved = topology.resolve(recipe, chosen)
    except InputError as error:
        found += error.problems
    try:
        prepared = preparation.prepare(**preparation.source_of(recipe), cache=preparation.CACHE)
        questions.check(recipe, prepared)
    except InputError as error:
        found += error.problems
    if found:
        raise InputError(*found)
    return resolved, prepared


def judged(job: Job) -> Job:
    """The job with what the rules find in it; warnings are said.

    Raises:
        InputError: A finding is blocking, and the recipe does not silence it.
    """
    with counting_rows() as on_progress:
        case = plan.case_of(job.recipe, job.topology, job.gpus, job.prepared, on_progress)
    found = lint.findings(case)
    if stops := [each for each in found if each.stops]:
        raise InputError(*(f"{each.rule}: {each.message}. Instead: {each.instead}" for each in stops))
    for each in found:
        if each.severity == "warning" and each.silenced is None:
            say("warning", f"{each.rule}: {each.message}\ninstead: {each.instead}")
    rest = sum(each.severity == "info" and each.silenced is None for each in found)
    if rest:
        say("findings", f"{rest} more for information: make plan RECIPE={job.recipe.name}")
    return dataclasses.replace(job, findings=tuple(found))


def with_data(resolved: Recipe, prepared: preparation.Prepared) -> Recipe:
    """The recipe that reads the prepared directory and computes its loss on answers, if that is what it asks for."""
    derived: dict[str, tuple[Any, str]] = {
        "dataset_name": (str(prepared.directory), f"{prepared.format} rows, prepared"),
        "dataset_train_split": ("train", "prepared"),
        "dataset_test_split": ("validation", "prepared"),
    }
    if "dataset_config" in resolved.values:
        derived["dataset_config"] = (None, "prepared")
    if prepared.kind == "messages" and resolved["completion_only_loss"] is not False:
        # TRL computes the loss of `messages` rows on every token unless it is told the assistant's, and its
        # completion_only_loss says nothing about them.
        derived["assistant_only_loss"] = (True, "answers of several turns; completion_only_loss is true")
        derived["completion_only_loss"] = (None, "several turns a row; assistant_only_loss says it")
    return resolved.derive(**derived)


def missing_tools(recipe: Recipe, chosen: Topology) -> list[str]:
    """Trackers that are asked for and not installed, and the compilers that DeepSpeed and Triton need."""
    pip = Path(os.path.relpath(sys.prefix)) / "bin" / "pip"
    trackers = recipe["report_to"] if isinstance(recipe["report_to"], list) else [recipe["report_to"]]
    problems = [
        f"report_to: {tracker} is not installed; run {pip} install '.[{tracker}]', or set report_to: none"
        for tracker in trackers
        if tracker not in (None, "none") and importlib.util.find_spec(tracker) is None
    ]
    if chosen.backend == "deepspeed" and importlib.util.find_spec("deepspeed") is None:
        problems.append(f"{chosen.name}: DeepSpeed is not installed, it is for Linux alone; choose ACCEL=single_gpu")
    if (
        chosen.backend == "deepspeed"
        and topology.uses_cpu(chosen.config)
        and not shutil.which(os.environ.get("CXX", "c++"))
    ):
        problems.append(
            f"{chosen.name}: DeepSpeed builds its CPU operations on first use and finds no C++ compiler; install one "
            "(apt-get install g++), or choose ACCEL=ddp"
        )
    if not chosen.use_cpu and importlib.util.find_spec("triton") is not None:
        problems += [f"{chosen.name}: {each}" for each in missing_for_triton()]
    return problems


def missing_for_triton() -> list[str]:
    """What Triton needs to load any kernel on a GPU, such as those of TRL's loss, and says only in the first step."""
    problems = []
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        problems.append("TRL's loss runs in Triton, which finds no C compiler; install one (apt-get install gcc)")
    headers = Path(sysconfig.get_path("include", "posix_prefix"))
    if not (headers / "Python.h").is_file():
        problems.append(
            f"TRL's loss runs in Triton, which needs Python's headers, and {headers} has no Python.h; install them "
            f"(apt-get install python{sys.version_info.major}.{sys.version_info.minor}-dev)"
        )
    return problems


def missing_model(recipe: Recipe) -> list[str]:
    """A local base model that is not there; a Hub id is asked for by the training process."""
    name = recipe["model_name_or_path"]
    path = Path(name).expanduser()
    local = name.startswith((".", "/", "~")) or name.count("/") > 1
    if path == demo_base.DIRECTORY or not local or (path / "config.json").is_file():
        return []
    origin = recipe.values["model_name_or_path"].origin
    return [
        f"{origin}: model_name_or_path {name} has no config.json; name a saved model's directory, or a Hub id ORG/NAME"
    ]
