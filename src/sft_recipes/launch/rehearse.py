"""A rehearsal: the recipe on its own data, through the same launch, processes and code, with a tiny random model.

What would break in the first hour of a run on rented GPUs breaks here, on a CPU in a minute: the libraries' versions,
the data, the template, the quantisation, the adapters, the distribution, an evaluation, a checkpoint and the adapter's
file. Memory, speed and what is learned are not rehearsed.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sft_recipes.data import preparation
from sft_recipes.demo import demo_base, tiny
from sft_recipes.errors import InputError
from sft_recipes.launch import launch
from sft_recipes.models import base_model
from sft_recipes.plan import job as jobs
from sft_recipes.plan.job import Job
from sft_recipes.recipes import recipe as recipes
from sft_recipes.recipes import topology
from sft_recipes.recipes.recipe import Recipe
from sft_recipes.recipes.topology import Topology
from sft_recipes.runs.run import Run
from sft_recipes.terminal import count, say

STEPS = 3
ROWS = {"train": 64, "validation": 16}
PROCESSES = 2
WHY = "the rehearsal"


def rehearse(
    name: str,
    *,
    accel: str | None = None,
    processes: int | None = None,
    overrides: Sequence[str] = (),
    run_name: str | None = None,
) -> tuple[int, Run]:
    """Rehearse a recipe into a run directory of its own, `rehearsal-RECIPE-TIME` without a name.

    Returns:
        The exit code (0 nothing broke, 1 something did, 3 stopped) and the run, whose facts say `rehearsal: true`.

    Raises:
        InputError: With everything that training would refuse, or that a CPU cannot rehearse; nothing is left behind.
    """
    if run_name is not None:
        Run.directory_of(run_name)
    recipe = recipes.load(name, recipes.parse_overrides(overrides))
    real = topology.choose(recipe, accel, processes, topology.visible_gpus())
    small = on_cpu(real)
    problems = impossible(recipe, real) + jobs.missing_tools(recipe, small) + jobs.missing_model(recipe)
    _, prepared = jobs.resolved_and_prepared(recipe, real, problems)
    demo_base.build_if_needed(recipe)
    base = tiny.find(recipe["model_name_or_path"], recipe["model_revision"])
    if base.config.get("quantization_config") and not base_model.dequantised(recipe.upstream()):
        raise InputError(
            f"{base.name} is already quantised, and a rehearsal has no such weights to load; rehearse with its "
            "unquantised checkpoint: SET=model_name_or_path=..."
        )
    job = job_of(recipe, real, small, prepared, base)
    for label, text in job.decisions():
        say(label, text)
    say("rehearsal", description(job, real, base))
    run = launch.create(job, run_name)
    say("run", str(run.directory))
    try:
        with run.locked() as lock:
            return launch.launch(run, lock), run
    except InputError as error:
        raise InputError(*(text.replace(str(base.directory), base.name) for text in error.problems)) from None


def on_cpu(real: Topology) -> Topology:
    """The topology on this machine's CPU: the same backend and ZeRO stage, on two processes if it has several."""
    config: dict[str, Any] = real.config | {"use_cpu": True, "num_processes": min(PROCESSES, real.processes)}
    if real.backend == "deepspeed":
        # On a CPU there is no other memory to move anything to.
        nowhere = {"offload_optimizer_device": "none", "offload_param_device": "none"}
        config["deepspeed_config"] = real.config["deepspeed_config"] | nowhere
    return Topology(real.name, config, f"rehearses {count(real.processes, 'process')}; {real.origin}")


def impossible(recipe: Recipe, real: Topology) -> list[str]:
    """What only a GPU can do, so that nothing can be said about it here."""
    problems = []
    if real.backend == "fsdp":
        problems.append(
            f"{real.name}: accelerate turns FSDP on a CPU into DDP, so FSDP2 cannot be rehearsed; ACCEL=ddp rehearses "
            "everything else of the recipe"
        )
    problems += [
        f"{key}: true needs a GPU, so it cannot be rehearsed; SET='{key}=false' rehearses the rest"
        for key in ("fp16", "tf32")
        if recipe[key]
    ]
    if recipe["attn_implementation"] not in (None, "sdpa", "eager"):
        problems.append(
            f"attn_implementation: {recipe['attn_implementation']} needs a GPU, so it cannot be rehearsed; "
            "SET='attn_implementation=sdpa' rehearses the rest"
        )
    return problems


def job_of(recipe: Recipe, real: Topology, small: Topology, prepared: preparation.Prepared, base: tiny.Base) -> Job:
    """The job that stands for the real one: the same accumulation, a few steps, an evaluation and a save at the end.

    Raises:
        InputError: transformers cannot build the tiny model.
    """
    rows = topology.accumulation(recipe, real) * recipe["per_device_train_batch_size"] * small.processes
    changes: dict[str, Any] = {
        "model_name_or_path": str(tiny.make(base)),
        "global_batch_size": rows,
        "max_steps": STEPS,
        "logging_strategy": "steps",
        "logging_steps": 1,
        "warmup_steps": min(1, recipe["warmup_steps"]),
        # One shows that rows reach the trainer through a process; more of them would only wait for this CPU.
        "dataloader_num_workers": min(1, recipe["dataloader_num_workers"]),
        # Nobody should find a rehearsal among the runs of a tracker.
        "report_to": "tensorboard" if "tensorboard" in (recipe["report_to"] or ()) else "none",
    }
    if base.tokenizer is None:
        # The demo's tokenizer stands in, and has neither the tokens of the model's template nor its end of a turn.
        changes |= {key: None for key in ("chat_template_path", "eos_token") if recipe[key]}
    if base_model.dequantised(recipe.upstream()):
        # The tiny model's weights never were quantised.
        kept = {key: value for key, value in recipe["model_init_kwargs"].items() if key != "quantization_config"}
        changes["model_init_kwargs"] = kept
    for what in ("eval", "save"):
        if recipe[f"{what}_strategy"] in ("epoch", "steps"):
            changes |= {f"{what}_strategy": "steps", f"{what}_steps": STEPS}
    small_recipe = recipe.derive(**{key: (value, WHY) for key, value in changes.items()})
    few = excerpt(prepared)
    resolved = jobs.with_data(topology.resolve(small_recipe, small), few)
    rehearses = {
        "model": base.name,
        "tokenizer": "its own" if base.tokenizer else "the demo's",
        "topology": real.facts(),
        "global_batch_size": recipe["global_batch_size"],
        "rows": {split: facts["prepared_rows"] for split, facts in prepared.splits.items()},
    }
    return Job(small_recipe, resolved, small, few, topology.visible_gpus(), rehearses)


def excerpt(prepared: preparation.Prepared) -> preparation.Prepared:
    """The first rows of each split that training reads, in a directory of their own."""
    key = hashlib.sha256(f"{prepared.fingerprint} {ROWS}".encode()).hexdigest()[:16]
    directory = tiny.CACHE / f"rows-{key}"
    directory.mkdir(parents=True, exist_ok=True)
    splits = {}
    for split in [split for split in ROWS if split in prepared.splits]:
        facts = prepared.splits[split]
        path = prepared.directory / f"{split}.jsonl"
        with path.open(encoding="utf-8", newline="\n") as lines:
            first = list(itertools.islice(lines, ROWS[split]))
        Path(directory / path.name).write_text("".join(first), encoding="utf-8", newline="\n")
        splits[split] = facts | {"prepared_rows": len(first)}
    return dataclasses.replace(prepared, directory=directory, splits=splits)


def description(job: Job, real: Topology, base: tiny.Base) -> str:
    """What is rehearsed with what, and what it does not show."""
    rows = " and ".join(
        f"{count(facts['prepared_rows'], f'{split} row')}" for split, facts in job.prepared.splits.items()
    )
    text = f"{count(STEPS, 'step')} on the first {rows}, with a tiny random model of the kind of {base.name}"
    if base.tokenizer is None:
        text += (
            "\nits tokenizer is not on this machine; the demo's takes its place, lengths and template differ"
            f"\nfetch its own with: {tiny.fetch(base.name, job.recipe['model_revision'])}"
        )
    if base.config.get("quantization_config"):
        text += "\ndequantising is not rehearsed: the tiny model's weights are whole"
    if real.config.get("deepspeed_config", {}) != job.topology.config.get("deepspeed_config", {}):
        text += "\noffloading is not rehearsed: everything is in host memory here"
    return text + "\nmemory, speed and what is learned are not rehearsed"
