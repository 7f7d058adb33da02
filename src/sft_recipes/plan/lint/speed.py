"""Rules about memory, and about what keeps a device waiting or fills it with padding."""

import dataclasses

from sft_recipes.data import packing, survey
from sft_recipes.plan import execution, memory
from sft_recipes.plan.lint import Case, Found
from sft_recipes.plan.lint.adapters import MANY_ROWS
from sft_recipes.plan.lint.run import largest_batch
from sft_recipes.terminal import GIB, share

# Tokens in a micro-batch below which fixed costs (launches, dequantisation, synchronisation) take a large part of the
# step on an A100.
BUSY = 8192
# Share of real tokens in random batches below which grouping rows by length is worth it.
PADDED = 0.7
# A packed length that is filled so far leaves nothing to gain by another.
FILLED = 0.9


def _lengths(case: Case, max_length: int | None) -> packing.Lengths:
    """Training rows by length; none where the rows are not known."""
    return survey.kept_lengths(case.data["splits"]["train"], max_length) if case.data else {}


def largest_micro_batch(case: Case) -> memory.Setup:
    """What the largest micro-batch that the run can meet asks of memory: its longest rows, max_length if unknown."""
    recipe, lengths = case.recipe, _lengths(case, case.recipe["max_length"])
    longest, supervised = recipe["max_length"], 1.0
    if lengths and case.data:
        kept = survey.at_length(case.data["splits"]["train"], recipe["max_length"])
        supervised = kept["supervised_tokens"] / kept["tokens"]
        if not recipe["packing"]:
            longest = max(lengths)
    if longest is None:
        longest = (case.model.positions[0] if case.model else None) or 2048
    evaluated = longest
    if case.data and not recipe["packing"] and (held_out := case.data["splits"].get("validation")):
        evaluated = max(survey.kept_lengths(held_out, recipe["max_length"]), default=longest)
    tokens = recipe["per_device_train_batch_size"] * longest
    return memory.Setup.of(recipe, case.topology, tokens, longest, supervised, evaluated)


def does_not_fit(case: Case) -> Found:
    if case.model is None or case.gpu is None or case.topology.use_cpu:
        return
    needed, vram = memory.estimate(case.model, largest_micro_batch(case)).allocated, case.gpu.memory_bytes
    if needed > memory.HEADROOM * vram:
        yield {"needed": needed / GIB, "vram": vram / GIB, "kept": 1 - memory.HEADROOM}


def micro_batch_tokens(case: Case) -> Found:
    lengths = _lengths(case, case.recipe["max_length"])
    if not lengths or case.topology.use_cpu:
        return
    size, mean = case.recipe["per_device_train_batch_size"], packing.mean(lengths)
    tokens = size * (case.recipe["max_length"] if case.recipe["packing"] else mean)
    accumulated = case.schedule.accumulation if case.schedule else 1
    if tokens < BUSY / 2 and accumulated > 1:
        larger = max(n for n in range(1, accumulated + 1) if accumulated % n == 0 and size * n * mean <= 2 * BUSY)
        if larger > 1:
            yield {"tokens": tokens, "busy": BUSY, "larger": size * larger}


def padding_share(case: Case) -> Found:
    recipe = case.recipe
    if case.data and not recipe["packing"] and recipe["train_sampling_strategy"] == "random":
        train, size = case.data["splits"]["train"], recipe["per_device_train_batch_size"]
        by_length = survey.real_token_share(train, recipe["max_length"], size, recipe["global_batch_size"])
        asked = recipe["sort_within_batch"]
        real = by_length if asked else survey.real_token_share(train, recipe["max_length"], size)
        if real < PADDED:
            remedy = "train_sampling_strategy: group_by_length, which puts other rows into a step"
            if asked:
                remedy += ", and sort_within_batch: false"
            elif by_length >= PADDED:
                remedy = f"sort_within_batch: true, which leaves each step its rows; or {remedy}"
            yield {"real": share(real, 1), "remedy": remedy}


def packing_fill(case: Case) -> Found:
    lengths, limit = _lengths(case, None), case.recipe["max_length"]
    if not lengths or not case.recipe["packing"]:
        return
    fill, rows = packing.packed(lengths, limit)
    positions = case.model.positions[0] if case.model else None
    for longer in range(2 * limit, min(4 * limit, positions or 4 * limit) + 1, limit):
        better, fewer = packing.packed(lengths, longer)
        if fill < FILLED <= better:
            batch = _batch(case, sum(lengths.values()) / fewer)
            remedy = f"max_length: {longer}{f' and {batch}' if batch else ''} fills {share(better, 1)}"
            yield {"what": f"packing at max_length {limit} fills {share(fill, 1)}", "remedy": remedy}
            return
    per_row = sum(lengths.values()) / rows
    if batch := _batch(case, per_row):
        total = case.recipe["global_batch_size"]
        means = f"global_batch_size {total} means {total * per_row:.0f} a step"
        yield {"what": f"a packed row holds {per_row:.1f} rows: {means}", "remedy": batch}


def joined_rows(case: Case) -> Found:
    recipe, kind = case.recipe, execution.kind_of(case.model) if case.model else ""
    attention, key = recipe["attn_implementation"] or "sdpa", "packing" if recipe["packing"] else "padding_free"
    if recipe[key] and kind in execution.MIXED and attention in execution.MASKED:
        yield {"attention": attention, "kind": kind, "key": key}


def _batch(case: Case, per_row: float) -> str:
    """The global batch that takes as many rows a step as are tried, when a packed row holds so many."""
    fitting = int(MANY_ROWS / per_row)
    enough = case.recipe["global_batch_size"] * per_row <= MANY_ROWS
    if enough or not case.recipe["use_peft"] or fitting < case.topology.processes:
        return ""
    if smaller := largest_batch(case, fitting):
        return f"global_batch_size: {smaller}"
    smaller = fitting - fitting % case.topology.processes
    return f"per_device_train_batch_size: 1 and global_batch_size: {smaller}"


def dropout_memory(case: Case) -> Found:
    setup = largest_micro_batch(case)
    if case.model is None or case.topology.use_cpu or setup.checkpointing or not setup.use_peft or not setup.dropout:
        return
    peak, without = (
        memory.estimate(case.model, dataclasses.replace(setup, dropout=dropout)).allocated
        for dropout in (setup.dropout, 0.0)
    )
    yield {"more": (peak - without) / GIB, "peak": peak / GIB}
