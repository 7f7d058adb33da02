"""The micro-batch, checkpointing and backend with which a recipe fits given GPUs, at the same global batch size."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from sft_recipes.data import packing
from sft_recipes.data.packing import Lengths
from sft_recipes.errors import InputError
from sft_recipes.models.base_model import Model
from sft_recipes.plan import gpus, memory, speed
from sft_recipes.plan.memory import HEADROOM, Setup
from sft_recipes.recipes import conflicts
from sft_recipes.recipes import topology as topologies
from sft_recipes.recipes.recipe import Recipe
from sft_recipes.recipes.topology import Topology
from sft_recipes.terminal import GIB, count, gib

# Tokens in a micro-batch after which more of them save little: the fixed cost of one is then 4 % of its time on an
# A100 (docs/speed.md: 0.17 s with 4-bit weights, against 0.25 ms a token).
ENOUGH = 16384


@dataclasses.dataclass(frozen=True)
class Way:
    """How micro-batches of some size are computed."""

    checkpointing: bool
    selective: bool = False  # with checkpointing: all but the attention is recomputed
    padding_free: bool = False
    sorted: bool = False  # the rows of a step by length, before they are divided into micro-batches


@dataclasses.dataclass(frozen=True)
class Option:
    """One way to run the recipe."""

    topology: Topology
    way: Way
    rows: int  # of one micro-batch
    tokens: float  # of its usual micro-batch, padding included
    needs: float  # bytes at the peak of its largest micro-batch
    seconds: float  # for a step on an A100: ways are compared by it, other GPUs differ alike

    @property
    def checkpointing(self) -> bool:
        return self.way.checkpointing

    @property
    def line(self) -> str:
        """As make takes it: `SET="per_device_train_batch_size=8 activation_checkpointing=false" ACCEL=ddp GPUS=4`."""
        values = f"per_device_train_batch_size={self.rows} activation_checkpointing={str(self.checkpointing).lower()}"
        return f'SET="{values}" ACCEL={self.topology.name} GPUS={self.topology.processes}'


@dataclasses.dataclass(frozen=True)
class Fit:
    """What fits, or what is missing."""

    best: Option | None
    reason: str  # why this one; or by how much the nearest way misses
    tried: tuple[str, ...]  # what else was looked at, and why not
    instead: tuple[str, ...]
    """When nothing fits, or only by offloading: what would help without it, what helps most first."""
    not_counted: str | None


def fit(recipe: Recipe, model: Model, lengths: Lengths, supervised_share: float, number: int, vram_gib: float) -> Fit:
    """How to run a recipe on `number` GPUs of `vram_gib` each.

    The first backend of single GPU or DDP, ZeRO-2 (for full fine-tuning), ZeRO-3, ZeRO-3 with offload in which
    anything fits; within it, what is fastest by `speed.per_micro_batch`.

    `lengths` are training rows by tokens; without any, every row is taken to be `max_length`. `supervised_share` is
    the share of the tokens that the loss is computed on.

    Raises:
        InputError: The global batch cannot be shared out evenly among so many GPUs.
    """
    total = recipe["global_batch_size"]
    if total % number:
        works = ", ".join(str(each) for each in range(1, number + 1) if total % each == 0)
        raise InputError(
            f"global_batch_size {total} cannot be shared out evenly among {number} GPUs; works: GPUS {works}"
        )
    longest, mean = row_lengths(recipe, lengths)
    whole, share = total // number, vram_gib * GIB * HEADROOM
    tried: list[str] = []
    smallest: list[Option] = []
    for name in backends(recipe, number):
        chosen = topologies.read(name, "fit", number)
        if problem := next(conflicts.of_topology(recipe, chosen), None):
            tried.append(f"{name}: {problem}")
            continue
        options = ways(recipe, chosen, model, lengths, supervised_share)
        if best := fastest(options, share):
            asked = Setup.of(recipe, chosen, 0, 0)
            away = asked.offload_parameters and smallest
            instead = remedies(recipe, model, smallest[0], longest, share) if away else ()
            tried += passed_over(best, options, share)
            reason = why(best, longest, mean, share, whole)
            return Fit(best, reason, tuple(tried), instead, memory.not_counted(model, asked))
        least = min(options, key=lambda each: each.needs)
        tried.append(f"{name} needs {gib(least.needs)} of {gib(share)} with {count(least.rows, 'row')}")
        smallest.append(least)
    if not smallest:
        return Fit(None, "no backend can run this recipe on GPUs", tuple(tried), (), None)
    nearest = min(smallest, key=lambda each: each.needs)
    reason = (
        f"nothing fits {count(number, 'GPU')} of {vram_gib:g} GiB: the smallest, {nearest.line}, needs "
        f"{gib(nearest.needs)}, {gib(nearest.needs - share)} more than the {gib(share)} allowed"
    )
    return Fit(None, reason, tuple(tried), remedies(recipe, model, smallest[0], longest, share), None)


def ways(
    recipe: Recipe,
    chosen: Topology,
    model: Model,
    lengths: Lengths,
    supervised_share: float,
    of: tuple[Way, ...] = (Way(checkpointing=False), Way(checkpointing=True)),
    sizes: list[int] | None = None,
) -> list[Option]:
    """Every way to compute the recipe's global batch on a topology, with what it needs and takes.

    `lengths` and `supervised_share` as `fit` takes them; `sizes` are the micro-batches that are looked at, without
    which they are those that share out the batch evenly and have no more than enough tokens.
    """
    _, mean = row_lengths(recipe, lengths)
    if sizes is None:
        whole = recipe["global_batch_size"] // chosen.processes
        sizes = useful_sizes([size for size in range(1, whole + 1) if whole % size == 0], mean)
    return [option(recipe, chosen, model, way, size, lengths, supervised_share) for way in of for size in sizes]


def fastest(options: list[Option], share: float) -> Option | None:
    """The fastest of those that fit into so many bytes, of equals the one with the most rows; None if none fits."""
    fitting = [each for each in options if each.needs <= share]
    return min(fitting, key=lambda each: (round(each.seconds, 3), -each.rows), default=None)


def row_lengths(recipe: Recipe, lengths: Lengths) -> tuple[int, float]:
    """The longest row and the mean one, as they are trained on: cut at `max_length`, or packed to it."""
    limit = recipe["max_length"]
    if recipe["packing"] or not lengths:
        if limit is None:
            raise InputError("max_length is null and no rows are known; set max_length to know what a batch needs")
        return limit, float(limit)
    return max(lengths), packing.mean(lengths)


def useful_sizes(sizes: list[int], mean: float) -> list[int]:
    """Micro-batches up to the first that has enough tokens."""
    enough = next((index for index, size in enumerate(sizes) if size * mean >= ENOUGH), len(sizes) - 1)
    return sizes[: enough + 1]


def backends(recipe: Recipe, number: int) -> list[str]:
    """Accelerate configs to try, the simplest first: what is not needed only costs."""
    if number == 1:
        return ["single_gpu", "zero3_offload"]
    return ["ddp", *([] if recipe["use_peft"] else ["zero2"]), "zero3", "zero3_offload"]


def option(
    recipe: Recipe, chosen: Topology, model: Model, way: Way, rows: int, lengths: Lengths, supervised_share: float
) -> Option:
    """One way, with the memory of its largest micro-batch and the time of its usual one."""
    longest, mean = row_lengths(recipe, lengths)
    free = way.padding_free or recipe["padding_free"]
    # Where a mask keeps the rows apart that are one without padding, its square is that of them all.
    masked = free and not recipe["packing"] and recipe["attn_implementation"] in (None, "sdpa", "eager")
    asked = Setup.of(recipe, chosen, rows * longest, rows * longest if masked else longest, supervised_share)
    largest = dataclasses.replace(asked, checkpointing=way.checkpointing, selective=way.selective)
    tokens = rows * mean
    if not (free or recipe["packing"]) and recipe["train_sampling_strategy"] == "random" and lengths:
        within = recipe["global_batch_size"] if way.sorted or recipe["sort_within_batch"] else None
        tokens /= packing.real_token_share(lengths, rows, within)
    usual = dataclasses.replace(largest, tokens=round(tokens), length=round(tokens if masked else tokens / rows))
    micro_batches = recipe["global_batch_size"] / (rows * chosen.processes)
    _, slow = speed.per_micro_batch(model, usual, gpus.find("a100-80gb"))
    return Option(chosen, way, rows, tokens, memory.estimate(model, largest).process, micro_batches * slow)


def passed_over(best: Option, options: list[Option], share: float) -> list[str]:
    """Why not with checkpointing, or without; and why not a larger micro-batch."""
    other = [each for each in options if each.checkpointing != best.checkpointing]
    fitting = [each for each in other if each.needs <= share]
    least = min(other, key=lambda each: each.needs)
    word = "without" if best.checkpointing else "with"
    if fitting:
        fastest = min(fitting, key=lambda each: each.seconds)
        slower = fastest.seconds / best.seconds - 1
        fits = "fits" if fastest.rows == 1 else "fit"
        sentences = [f"{word} checkpointing {count(fastest.rows, 'row')} {fits}, and a step takes {slower:.0%} longer"]
    else:
        sentences = [f"{word} checkpointing {count(least.rows, 'row')} already needs {gib(least.needs)}"]
    larger = [each for each in options if each.checkpointing == best.checkpointing and each.rows > best.rows]
    if larger:
        more = min(larger, key=lambda each: each.rows)
        verdict = "is not faster" if more.needs <= share else f"needs {gib(more.needs)}"
        sentences.append(f"a micro-batch of {count(more.rows, 'row')} {verdict}")
    return sentences


def why(best: Option, longest: int, mean: float, share: float, whole: int) -> str:
    """The reason for the best option in one sentence."""
    rows = f"{count(best.rows, 'row')} of up to {longest:,} tokens"
    needs = f"{'needs' if best.rows == 1 else 'need'} {gib(best.needs)} of the {gib(share)} allowed"
    if best.rows == whole:
        return f"{rows} {needs}, and are a process's whole share of the global batch"
    if best.rows * mean >= ENOUGH:
        return f"{rows} {needs}; more tokens in a micro-batch would save little"
    return f"{rows} {needs}; that is the fastest way that fits"


def remedies(recipe: Recipe, model: Model, least: Option, longest: int, share: float) -> tuple[str, ...]:
    """What would help the way that needs least on the simplest backend, and what it then needs; the best first."""
    asked = Setup.of(recipe, least.topology, least.rows * longest, longest)
    asked = dataclasses.replace(asked, checkpointing=True)
    changes: dict[str, dict[str, Any]] = {}
    if not recipe["use_peft"]:
        adapters = {"use_peft": True, "rank": recipe["lora_r"], "targets": ("all-linear",)}
        changes["adapters instead of all weights: SET=use_peft=true"] = adapters
    elif not asked.four_bit:
        quantised = {"four_bit": True, "eight_bit": False, "double_quant": recipe["use_bnb_nested_quant"]}
        changes["4-bit weights: SET=load_in_4bit=true"] = quantised
    if longest > 128:
        half = longest // 2
        evaluated = {"eval_tokens": asked.eval_tokens // 2, "eval_length": min(half, asked.eval_length)}
        shorter = {"tokens": least.rows * half, "length": half, **evaluated}
        changes[f"shorter rows, cut at half: SET=max_length={half}"] = shorter
    if asked.eval_tokens > asked.eval_length:
        one = {"eval_tokens": asked.eval_length}
        changes["an evaluation of one row at a time: SET=per_device_eval_batch_size=1"] = one
    if asked.attention == "eager":
        changes["attention that does not hold its matrix: SET=attn_implementation=sdpa"] = {"attention": "sdpa"}
    twice = {"processes": 2 * asked.processes}
    if memory.shards_weights(asked):
        changes["twice the GPUs"] = twice
    else:
        changes["twice the GPUs with sharded weights: ACCEL=zero3"] = {"zero_stage": 3, **twice}
    needs = {
        text: memory.estimate(model, dataclasses.replace(asked, **change)).allocated
        for text, change in changes.items()
    }
    return tuple(
        f"{text}, which needs {gib(need)}{'' if need <= share else ', still too much'}"
        for text, need in sorted(needs.items(), key=lambda each: each[1])
        if need < least.needs
    )


def facts(found: Fit) -> dict[str, Any]:
    """What was found, for `--json`."""
    best = found.best and {
        "line": found.best.line,
        "per_device_train_batch_size": found.best.rows,
        "activation_checkpointing": found.best.checkpointing,
        "accelerate_config": found.best.topology.name,
        "allocated": round(found.best.needs),
    }
    return {field.name: getattr(found, field.name) for field in dataclasses.fields(found)} | {"best": best}


def render(figures: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The same, as (subject, text) for `terminal.say`."""
    yield "fit", figures["best"]["line"] if figures["best"] else "nothing"
    yield "because", figures["reason"]
    for each in figures["tried"]:
        yield "not", each
    for each in figures["instead"]:
        yield "instead", each
    if figures["not_counted"]:
        yield "note", figures["not_counted"]
