"""A job: a recipe with everything that decides what its run will be, assembled once and judged before it starts.

`resolve` assembles it for plan, train, rehearsal, sweep, seeds, preview, diff and fit; `check` and `lint_or_raise` say
what would refuse it.
"""

import dataclasses
import functools
import glob
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypedDict, Unpack

from sft_recipes.data import packing, preparation, survey, tokens
from sft_recipes.data.preparation import Prepared
from sft_recipes.data.survey import Survey
from sft_recipes.demo import bases
from sft_recipes.errors import InputError, listed, refuse
from sft_recipes.evaluate import questions
from sft_recipes.models import base_model
from sft_recipes.models.base_model import Model
from sft_recipes.plan import execution, lint
from sft_recipes.plan import gpus as specs
from sft_recipes.plan.execution import Execution
from sft_recipes.plan.gpus import Spec
from sft_recipes.plan.lint import Case, Finding
from sft_recipes.plan.lint.refusals import refused
from sft_recipes.plan.schedule import Schedule, schedule
from sft_recipes.recipes import conflicts, sources, topology
from sft_recipes.recipes import recipe as recipes
from sft_recipes.recipes.conflicts import Conflict
from sft_recipes.recipes.recipe import Overrides, Recipe, Value
from sft_recipes.recipes.topology import Gpu, Topology
from sft_recipes.runs import earlier
from sft_recipes.terminal import counting_rows, say

# What the shipped accelerate configs are written for.
PLANNED_GPU = "a100-80gb"
PACKED_LENGTHS = (512, 1024, 2048, 4096)


class Where(TypedDict, total=False):
    """What a command says beside the recipe's name."""

    overrides: Overrides
    accel: str | None  # an accelerate config; without it the recipe's, or what the visible hardware decides
    processes: int | None  # another number of processes than the accelerate config's
    gpu: str | None  # a name of gpus.json to plan for; without it the visible GPU, or an A100-80GB
    keeps: Mapping[str, Value] | None  # what was chosen for the run that goes on


@dataclasses.dataclass(eq=False)
class Job:
    """A recipe with where it runs and what it reads; what takes time is found out when it is first asked for.

    Whatever needs the rows or the model's config raises an `InputError` with all that is wrong with them.
    """

    written: Recipe  # the recipe with its base and overrides
    topology: Topology
    gpus: list[Gpu]  # the GPUs that are visible here
    gpu: Spec | None = None
    """The kind of GPU that it is planned for; None on a CPU, and where nothing is known of the visible one."""
    planned: bool = False
    """Whether rows that are not on this machine are left out, rather than fetched or refused."""
    given: Prepared | None = None  # rows that have been prepared already
    rehearses: dict[str, Any] | None = None
    """What a rehearsal stands for, as run.json holds it; None for a run in earnest."""
    findings: tuple[Finding, ...] = ()  # what the rules have found, once they were asked
    keeps: Mapping[str, Value] | None = None
    """What was chosen for the run that goes on, and is not chosen again; None for a new one."""

    @functools.cached_property
    def recipe(self) -> Recipe:
        """As written, and with what was chosen where it says `execution: auto`."""
        # A rehearsal stands for a job that has chosen.
        if self.written["execution"] != "auto" or self.rehearses is not None:
            return self.written
        if self.keeps is None:
            return self.execution.applied(self.written)
        free = self.keeps.keys() - execution.pinned(self.written)
        kept = {key: item for key, item in self.keeps.items() if key in free}
        return dataclasses.replace(self.written, values=self.written.values | kept)

    @functools.cached_property
    def execution(self) -> Execution:
        """What `execution: auto` takes in place of what is written; for a recipe without it, what it would take."""
        return execution.choose(self.case_as_written, asked=self.written["execution"] == "auto")

    @functools.cached_property
    def absent(self) -> str | None:
        """Why there are no rows to plan with: a recipe can be planned before its data exist."""
        if not self.planned or self.given:
            return None
        named = [sources.Entry(dataset=self.written["dataset_name"])] if self.written["dataset_name"] else []
        named += sources.entries("train_file", self.written["train_file"])
        if away := [each.dataset for each in named if each.dataset and not Path(each.dataset).is_dir()]:
            return f"{away[0]} is not downloaded to plan with; DATA=FILE names a local file"
        if "train_file" not in self.written.values or self.written.values["train_file"].origin in recipes.GIVEN:
            return None
        files = (each.file for each in named if each.file)
        missing = [each for each in files if not Path(each).exists() and not any(glob.iglob(each, recursive=True))]  # noqa: PTH207
        if not missing:
            return None
        return f"{missing[0]} is not here, so nothing is said about rows, steps and time; DATA=FILE names another"

    @functools.cached_property
    def prepared(self) -> Prepared:
        """The rows, checked and converted."""
        if self.given:
            return self.given
        with counting_rows() as on_progress:
            source = preparation.source_of(self.written)
            found = preparation.prepare(**source, cache=preparation.CACHE, on_rows=on_progress)
        if found.masked and not self.written.loss_on_answers:
            raise InputError(
                f"{found.splits['train']['source']} marks turns that are not to be learnt, and completion_only_loss: "
                "false computes the loss on all; drop that key, or the marks"
            )
        return found

    @property
    def notes(self) -> list[str]:
        """What was decided about the rows, in sentences."""
        replaced = self.written.replaced
        said = f"{self.written['train_file']} takes the place of the recipe's {', '.join(replaced)}"
        return [*([said] if replaced else []), *self.prepared.notes]

    @functools.cached_property
    def evaluation(self) -> questions.Asked | None:
        """What the run will be asked when it has been trained."""
        return None if self.absent else questions.check(self.written, self.prepared)

    @functools.cached_property
    def resolved(self) -> Recipe:
        """The recipe with everything that follows from topology and data."""
        return with_data(topology.resolve(self.recipe, self.topology), self.prepared)

    @functools.cached_property
    def model(self) -> Model | None:
        """What is known of the base model without its weights; None where its config is not at hand."""
        found = base_model.find(self.written["model_name_or_path"], str(self.written["model_revision"]))
        if found:
            base_model.check_arguments(self.written, found.config)
            earlier.check_targets(self.written.own(), self.written["lora_target_modules"], found)
        return found

    @functools.cached_property
    def data(self) -> Survey | None:
        """What `survey.survey` counts in the rows; None where they are not here."""
        if self.absent:
            return None
        with counting_rows() as on_progress:
            return survey.survey(self.prepared, tokens.find_tokenizer(self.written), on_progress=on_progress)

    @functools.cached_property
    def rows(self) -> dict[str, Any]:
        """What the trainer keeps of each split at the recipe's max_length, and how long its rows are."""
        return rows_kept(self.recipe, self.data) if self.data else {}

    @functools.cached_property
    def schedule(self) -> Schedule | None:
        """The steps; None without rows, and where the batch cannot be reached on this topology, which a rule says."""
        # Rows that lose their whole answer are left out, and packed rows are fewer.
        number = self.rows["train"].get("steps_rows", 0) if self.rows else 0
        if not number or any(conflicts.unreachable(self.recipe, self.topology.processes)):
            return None
        return schedule(self.recipe, self.topology, number)

    @property
    def case(self) -> Case:
        """Everything that the rules look at."""
        return dataclasses.replace(self._case(self.recipe), schedule=self.schedule)

    @property
    def case_as_written(self) -> Case:
        """The same of the recipe before anything is chosen."""
        return self._case(self.written)

    def _case(self, recipe: Recipe) -> Case:
        return Case(recipe, self.topology, tuple(self.gpus), self.gpu, self.model, self.data)

    def conflicts(self) -> Iterator[Conflict]:
        """What cannot run together, and what this machine lacks for it, as a plan says it too."""
        try:
            recipe, without = self.recipe, ""
        except InputError:
            # Of its rows, which `raise_all` says; without them no micro-batch is chosen.
            recipe, without = self.written, "batch-unreachable"
        return (each for each in refused(recipe, self.topology, self.gpus) if each.rule != without)

    def with_recipe(self, recipe: Recipe) -> "Job":
        """The same job with other values of keys that decide nothing about its rows."""
        return Job(recipe, self.topology, self.gpus, self.gpu, self.planned, given=self.prepared)

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
        if chain := earlier.chain(self.recipe.own()):
            yield "continues", f"{chain['adapter']}, SHA-256 {chain['sha256'][:16]}, on {chain['base']}"
        yield "topology", self.topology.describe()
        if self.written["execution"] == "auto" and self.keeps is None and self.rehearses is None:
            yield "execution", "\n".join(self.execution.lines())
        for note in self.notes:
            yield "data", note
        if self.recipe.replaced and self.evaluation and (labels := self.evaluation.task.labels):
            yield "task", f"classification of {len(labels)} classes, as the rows name them: {listed(labels)}"


def resolve(
    name: str | Path,
    *,
    overrides: Overrides = (),
    accel: str | None = None,
    processes: int | None = None,
    gpu: str | None = None,
    planned: bool = False,
    keeps: Mapping[str, Value] | None = None,
) -> Job:
    """A recipe assembled with where it runs; its rows are not read yet, and nothing of it is judged.

    Args:
        name: The recipe's name, or its file's path.
        overrides: As `Where` says, like `accel`, `processes` and `gpu`.
        planned: Whether rows that are not on this machine are left out.
        keeps: As `Job` has it.

    Raises:
        InputError: The recipe, the accelerate config or the GPU is none, or values contradict each other.
    """
    recipe = recipes.load(name, overrides)
    earlier.check(recipe.own())
    visible = topology.visible_gpus()
    chosen = topology.choose(recipe, accel, processes, visible)
    if chosen.use_cpu and gpu is not None:
        raise InputError(
            f"GPU={gpu} says nothing of {chosen.name}, which runs on the CPU; drop it, or choose ACCEL=ddp"
        )
    card = None
    if not chosen.use_cpu:
        # Of a visible GPU that is not known nothing is said, rather than what another would do.
        card = specs.of(visible[0]) if visible and gpu is None else specs.find(gpu or PLANNED_GPU)
    return Job(recipe, chosen, visible, card, planned, keeps=keeps)


def check(name: str | Path, **where: Unpack[Where]) -> Job:
    """The job of a run that is to start here, with its rows prepared.

    Raises:
        InputError: With all that can be wrong before a process is started, at once.
    """
    job = resolve(name, **where)
    if job.written["execution"] == "auto":
        # Its config says what fits.
        bases.build_if_needed(job.written)
    raise_all(job, job.conflicts())
    return job


def raise_all(job: Job, found: Iterator[Conflict]) -> None:
    """Raise an `InputError` with the conflicts found and whatever is wrong with the rows, if anything is."""
    problems = [str(each) for each in found]
    try:
        _ = job.prepared, job.evaluation
    except InputError as error:
        problems += error.problems
    refuse(problems)


def lint_or_raise(job: Job) -> Job:
    """Ask the rules about a job, which then holds what they found; warnings are said.

    Raises:
        InputError: A finding is blocking, and the recipe does not silence it.
    """
    job.findings = tuple(lint.findings(job.case))
    refuse(each for each in job.findings if each.stops)
    for each in job.findings:
        if each.severity == "warning" and each.silenced is None:
            say("warning", f"{each.rule}: {each.message}\ninstead: {each.instead}")
    rest = sum(each.severity == "info" and each.silenced is None for each in job.findings)
    if rest:
        say("findings", f"{rest} more for information: make plan RECIPE={job.recipe.name}")
    return job


def rows_kept(recipe: Recipe, data: Survey) -> dict[str, Any]:
    """What the trainer keeps of each surveyed split at the recipe's max_length, and how long its rows are."""
    found: dict[str, Any] = {}
    limit = recipe["max_length"]
    for name, split in data["splits"].items():
        lengths = survey.kept_lengths(split, limit)
        kept = survey.at_length(split, limit)
        figures = kept | {"source": split["source"], "rows_read": split["rows"], "tokens_are": data["tokens_are"]}
        if "sources" in split:
            figures["sources"] = [
                {
                    "source": each["source"],
                    "rows_read": each["rows"],
                    "tokens_are": data["tokens_are"],
                    **survey.at_length(each, limit),
                }
                for each in split["sources"]
            ]
        if lengths:
            figures |= {f"p{p}": packing.percentile(lengths, p / 100) for p in (50, 95, 99)}
            figures["steps_rows"] = kept["rows"]
            if name == "train":
                size = recipe["per_device_train_batch_size"]
                within = recipe["global_batch_size"] if recipe["sort_within_batch"] else None
                figures["real_token_share"] = survey.real_token_share(split, limit, size, within)
                whole = survey.kept_lengths(split, None)
                figures["packed"] = {str(length): packing.packed(whole, length)[0] for length in PACKED_LENGTHS}
                if recipe["packing"]:
                    fill, packed = packing.packed(whole, limit)
                    figures |= {"real_token_share": fill, "steps_rows": packed}
        found[name] = figures
    return found


def with_data(resolved: Recipe, prepared: Prepared) -> Recipe:
    """The recipe that reads the prepared directory and computes its loss on answers, if that is what it asks for."""
    derived: dict[str, tuple[Any, str]] = {
        "dataset_name": (str(prepared.directory), f"{prepared.format} rows, prepared"),
        "dataset_train_split": ("train", "prepared"),
        "dataset_test_split": ("validation", "prepared"),
    }
    if "dataset_config" in resolved.values:
        derived["dataset_config"] = (None, "prepared")
    if prepared.kind == "messages" and resolved.loss_on_answers:
        # TRL computes the loss of `messages` rows on every token unless it is told the assistant's, and its
        # completion_only_loss says nothing about them.
        derived["assistant_only_loss"] = (True, "answers of several turns; the loss is on answers")
        derived["completion_only_loss"] = (None, "several turns a row; assistant_only_loss says it")
    elif resolved["assistant_only_loss"]:
        # The one answer of a row is its completion, for which TRL needs no marks in the chat template.
        derived["assistant_only_loss"] = (False, "one answer a row; completion_only_loss says it")
        derived["completion_only_loss"] = (True, "one answer a row; assistant_only_loss is true")
    return resolved.derive(**derived)
