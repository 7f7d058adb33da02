"""Rules about what keeps a device waiting, or fills it with padding."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from sft_recipes.data import packing, survey
from sft_recipes.plan import memory
from sft_recipes.plan.lint import Case, Said, rule
from sft_recipes.terminal import share

# Tokens in a micro-batch below which fixed costs (launches, dequantisation, synchronisation) take a large part of the
# step on an A100.
BUSY = 8192
GIB = 2**30
FMS = "https://github.com/foundation-model-stack/fms-acceleration scripts/benchmarks/refs: fitted cost per micro-batch"


def _train(case: Case) -> dict[str, Any]:
    return ((case.data or {}).get("splits") or {}).get("train") or {}


def _lengths(case: Case, max_length: int | None) -> packing.Lengths:
    """Training rows by length; none where the rows are not known."""
    return survey.kept_lengths(_train(case), max_length) if _train(case) else {}


def largest_micro_batch(case: Case) -> memory.Setup:
    """What the largest micro-batch that the run can meet asks of memory: its longest rows, max_length if unknown."""
    recipe, lengths = case.recipe, _lengths(case, case.recipe["max_length"])
    longest, supervised = recipe["max_length"], 1.0
    if lengths:
        kept = survey.at_length(_train(case), recipe["max_length"])
        supervised = kept["supervised_tokens"] / kept["tokens"]
        if not recipe["packing"]:
            longest = max(lengths)
    if longest is None:
        longest = case.model.text_config.get("max_position_embeddings", 2048) if case.model else 2048
    tokens = recipe["per_device_train_batch_size"] * longest
    return memory.Setup.of(recipe, case.topology, tokens, longest, supervised)


@rule(
    "does-not-fit", "warning", "src/sft_recipes/plan/memory.py; its errors against measurements are in docs/memory.md"
)
def does_not_fit(case: Case) -> Iterator[Said]:
    """The largest micro-batch of the run would need more memory than a GPU has."""
    if case.model is None or case.gpu is None or case.topology.use_cpu:
        return
    needed = memory.estimate(case.model, largest_micro_batch(case)).allocated
    if needed > memory.HEADROOM * case.gpu.memory_bytes:
        yield Said(
            f"the longest rows need about {needed / GIB:.1f} GiB of the {case.gpu.memory_bytes / GIB:.0f} GiB of "
            f"{case.gpu.name}, of which {1 - memory.HEADROOM:.0%} are for what no estimate sees",
            f"make fit RECIPE={case.recipe.name} GPUS={case.topology.processes} "
            f"VRAM={case.gpu.memory_bytes / GIB:.0f} finds what fits at the same global batch",
        )


@rule("micro-batch-tokens", "info", FMS)
def micro_batch_tokens(case: Case) -> Iterator[Said]:
    """A micro-batch holds too few tokens to keep a GPU busy."""
    lengths = _lengths(case, case.recipe["max_length"])
    if not lengths or case.topology.use_cpu:
        return
    size = case.recipe["per_device_train_batch_size"]
    mean = packing.mean(lengths)
    tokens = size * (case.recipe["max_length"] if case.recipe["packing"] else mean)
    accumulated = case.schedule.accumulation if case.schedule else 1
    if tokens < BUSY / 2 and accumulated > 1:
        larger = max(n for n in range(1, accumulated + 1) if accumulated % n == 0 and size * n * mean <= 2 * BUSY)
        if larger > 1:
            yield Said(
                f"a micro-batch holds about {tokens:,.0f} tokens, of {BUSY:,} or more that keep an A100 busy",
                f"per_device_train_batch_size: {size * larger}, if it fits; the global batch stays",
            )


@rule("padding-share", "info", "https://arxiv.org/abs/2407.09105: twice the throughput without padding")
def padding_share(case: Case) -> Iterator[Said]:
    """A large part of what is computed is padding, because short and long rows share batches."""
    if not _train(case) or case.recipe["packing"] or case.recipe["train_sampling_strategy"] != "random":
        return
    size = case.recipe["per_device_train_batch_size"]
    real = survey.real_token_share(_train(case), case.recipe["max_length"], size)
    if real < 0.7:
        yield Said(
            f"{share(real, 1)} of what is computed are real tokens, the rest pads rows to the longest of their batch",
            "train_sampling_strategy: group_by_length",
        )


@rule("packing-fill", "info", "TRL packs by best-fit decreasing; measured on this data")
def packing_fill(case: Case) -> Iterator[Said]:
    """Packed rows leave much of their length empty, because max_length is short for these rows."""
    lengths = _lengths(case, None)
    if lengths and case.recipe["packing"]:
        fill, rows = packing.packed(lengths, case.recipe["max_length"])
        if fill < 0.9:
            longer = case.recipe["max_length"] * 4
            yield Said(
                f"packing at max_length {case.recipe['max_length']} fills {share(fill, 1)}",
                f"max_length: {longer} fills {share(packing.packed(lengths, longer)[0], 1)}",
            )
        per_row = sum(lengths.values()) / rows
        if per_row > 1.5:
            total = case.recipe["global_batch_size"]
            yield Said(
                f"a packed row holds {per_row:.1f} rows: global_batch_size {total} means {total * per_row:.0f} a step",
                "a smaller global_batch_size if the number of steps matters",
            )


@rule(
    "dropout-memory",
    "info",
    "src/sft_recipes/plan/memory.py: dropout keeps its mask and its output for the backward pass",
)
def dropout_memory(case: Case) -> Iterator[Said]:
    """Adapter dropout without activation checkpointing keeps a masked copy of every adapted layer's input."""
    setup = largest_micro_batch(case)
    if case.model is None or case.topology.use_cpu or setup.checkpointing or not setup.use_peft or not setup.dropout:
        return
    with_it, without = (
        memory.estimate(case.model, dataclasses.replace(setup, dropout=dropout)).allocated
        for dropout in (setup.dropout, 0.0)
    )
    yield Said(
        f"lora_dropout {setup.dropout:g} without activation_checkpointing takes {(with_it - without) / GIB:.1f} of "
        f"{with_it / GIB:.1f} GiB at the peak",
        "lora_dropout: 0, or activation_checkpointing: true",
    )
