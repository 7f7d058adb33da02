"""A rehearsal: the recipe on its own data, through the same launch, processes and code, with a tiny random model.

What would break in the first hour of a run on rented GPUs breaks here, on a CPU in a minute: the libraries' versions,
the data, the template, the quantisation, the adapters, the distribution, an evaluation, a checkpoint and the adapter's
file. Memory, speed and what is learned are not rehearsed.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Unpack

from sft_recipes.data import preparation
from sft_recipes.demo import bases, tiny
from sft_recipes.errors import InputError
from sft_recipes.launch import launch
from sft_recipes.models import base_model
from sft_recipes.plan import job as jobs
from sft_recipes.plan.job import Job, Where
from sft_recipes.plan.lint.refusals import refused
from sft_recipes.recipes import conflicts, topology
from sft_recipes.recipes.conflicts import Conflict
from sft_recipes.recipes.topology import Topology
from sft_recipes.runs.run import Run
from sft_recipes.terminal import count, print_lines, say

STEPS = 3
ROWS = {"train": 64, "validation": 16}
PROCESSES = 2


def rehearse(name: str | Path, *, run_name: str | None = None, **where: Unpack[Where]) -> tuple[int, Run]:
    """Rehearse a recipe into a run directory of its own, `rehearsal-RECIPE-TIME` without a name.

    Returns:
        The exit code (0 nothing broke, 1 something did, 3 stopped) and the run, whose facts say `rehearsal: true`.

    Raises:
        InputError: With everything that training would refuse, or that a CPU cannot rehearse; nothing is left behind.
    """
    if run_name is not None:
        Run.directory_of(run_name)
    real = jobs.resolve(name, **where)
    jobs.raise_all(real, refusals(real))
    bases.build_if_needed(real.recipe)
    base = tiny.find(real.recipe["model_name_or_path"], real.recipe["model_revision"])
    if base.config.get("quantization_config") and not base_model.dequantised(real.recipe.upstream()):
        raise InputError(
            f"{base.name} is already quantised, and a rehearsal has no such weights to load; rehearse with its "
            "unquantised checkpoint: SET=model_name_or_path=..."
        )
    job = rehearsal_of(real, base)
    print_lines(job.decisions())
    say("rehearsal", description(job, real.topology, base))
    try:
        return launch.start(job, run_name)
    except InputError as error:
        raise InputError(*(text.replace(str(base.directory), base.name) for text in error.problems)) from None


def refusals(real: Job) -> Iterator[Conflict]:
    """What training would refuse wherever it ran, what this machine lacks for a rehearsal, and what needs a GPU."""
    yield from conflicts.of_rehearsal(real.recipe, real.topology)
    yield from conflicts.of_topology(real.recipe, real.topology)
    here = refused(real.recipe, on_cpu(real.topology), real.gpus)
    yield from (each for each in here if each.phase == "machine")


def on_cpu(real: Topology) -> Topology:
    """The topology on this machine's CPU: the same backend and ZeRO stage, on two processes if it has several."""
    config: dict[str, Any] = real.config | {"use_cpu": True, "num_processes": min(PROCESSES, real.processes)}
    if real.backend == "deepspeed":
        # On a CPU there is no other memory to move anything to.
        nowhere = {"offload_optimizer_device": "none", "offload_param_device": "none"}
        config["deepspeed_config"] = real.config["deepspeed_config"] | nowhere
    return Topology(real.name, config, f"rehearses {count(real.processes, 'process')}; {real.origin}")


def rehearsal_of(real: Job, base: tiny.Base) -> Job:
    """The job that stands for the real one: the same accumulation, a few steps, an evaluation and a save at the end.

    Raises:
        InputError: transformers cannot build the tiny model.
    """
    recipe, small = real.recipe, on_cpu(real.topology)
    rows = topology.accumulation(recipe, real.topology) * recipe["per_device_train_batch_size"] * small.processes
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
    if recipe["adapter_name_or_path"]:
        # Its weights are for the real base; one of the same shape begins anew.
        changes["adapter_name_or_path"] = None
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
    rehearses = {
        "model": base.name,
        "tokenizer": "its own" if base.tokenizer else "the demo's",
        "topology": real.topology.facts(),
        "global_batch_size": recipe["global_batch_size"],
        "rows": {split: facts["prepared_rows"] for split, facts in real.prepared.splits.items()},
    }
    changed = recipe.derive(**{key: (value, "the rehearsal") for key, value in changes.items()})
    return Job(changed, small, real.gpus, given=excerpt(real.prepared), rehearses=rehearses)


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
    if "adapter_name_or_path" in job.recipe.values:
        text += "\nthe earlier adapter is not rehearsed: one of its shape begins anew"
    if real.config.get("deepspeed_config", {}) != job.topology.config.get("deepspeed_config", {}):
        text += "\noffloading is not rehearsed: everything is in host memory here"
    return text + "\nmemory, speed and what is learned are not rehearsed"
