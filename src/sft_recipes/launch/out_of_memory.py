"""What to do when a GPU's memory was not enough: what the plan had counted, what was measured, what fits instead."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from sft_recipes.plan import memory
from sft_recipes.plan.job import Job
from sft_recipes.plan.lint.speed import largest_micro_batch
from sft_recipes.plan.plan import components, size


def planned(job: Job) -> dict[str, Any] | None:
    """What run.json keeps of the plan's memory, in bytes; None where the model's config is not known.

    `micro_batches` are the peaks by rows of a micro-batch, for the recipe's and every smaller one with which the
    global batch stays the same, where an evaluation takes at most as many rows at once; `evaluation_rows` is the
    recipe's number of those.
    """
    if job.model is None:
        return None
    model, setup, rows = job.model, largest_micro_batch(job.case), job.recipe["per_device_train_batch_size"]
    whole = job.recipe["global_batch_size"] // job.topology.processes
    sizes = [each for each in range(1, rows + 1) if whole % each == 0]
    peaks = {}
    for each in sizes:
        evaluated = setup.eval_tokens if each == rows else min(setup.eval_tokens, each * setup.eval_length)
        at_once = dataclasses.replace(setup, tokens=each * setup.length, eval_tokens=evaluated)
        peaks[each] = memory.estimate(model, at_once)
    return {
        "components": {name: round(value) for name, value in dataclasses.asdict(peaks[rows]).items()},
        "micro_batches": {str(each): round(peak.process) for each, peak in peaks.items()},
        "evaluation_rows": job.recipe["per_device_eval_batch_size"] if setup.eval_tokens else 0,
    }


def advice(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What is said of a run that failed for want of memory, from its run.json, as (subject, text)."""
    plan, measured = facts.get("memory"), facts["out_of_memory"]
    found = f"{size(measured['allocated'])} of {size(measured['total'])} were allocated" if measured else ""
    if not plan:
        yield "memory", f"{found or 'nothing was measured'}; the plan did not know the model's config (add --fetch)"
        return
    sizes = {int(rows): needed for rows, needed in plan["micro_batches"].items()}
    rows = max(sizes)
    yield "memory", f"the plan counted {size(sizes[rows])} at the peak: {components(plan['components'])}"
    if found:
        yield "", f"{found} by torch when it asked for more; {size(measured['free'])} were free"
    # As much more than planned as was measured; the rest belongs to somebody else or is in pieces.
    off = max(1.0, measured["allocated"] / sizes[rows]) if measured else 1.0
    room = memory.HEADROOM * measured["total"] if measured else 0.0
    smaller = [each for each in sorted(sizes, reverse=True) if each < rows]
    fits = next((each for each in smaller if off * sizes[each] <= room), smaller[-1] if smaller else None)
    if fits is None:
        yield "instead", "a micro-batch has one row already: set a smaller max_length, or gradient_checkpointing=true"
        return
    # Neither changes what is learned, nor what an evaluation finds.
    fewer = f" per_device_eval_batch_size={fits}" if plan.get("evaluation_rows", 0) > fits else ""
    words = f"SET='per_device_train_batch_size={fits}{fewer}'"
    yield "instead", f"train again with {words}: {size(off * sizes[fits])} at the peak, at the same global batch"
