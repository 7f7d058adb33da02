"""How a recipe is executed where it says `execution: auto`: chosen from model, hardware and lengths of the rows.

What is learned stays the recipe's: which rows a step has, and their loss. What is chosen computes the same more
cheaply, to the rounding of a float and other draws of dropout (docs/execution.md says how that was shown).
"""

import dataclasses
import importlib.util
from collections.abc import Iterator
from typing import Any

from sft_recipes.errors import listed
from sft_recipes.models.base_model import Model
from sft_recipes.plan import fit, memory, tuning
from sft_recipes.plan.fit import Option, Way
from sft_recipes.plan.lint import Case
from sft_recipes.recipes import arguments, conflicts
from sft_recipes.recipes import recipe as recipes
from sft_recipes.recipes.recipe import Recipe, Value
from sft_recipes.recipes.schema import as_yaml
from sft_recipes.terminal import count, share

AUTO = "execution: auto"
"""How the origin of a value that was chosen begins; its reason follows in brackets."""
# What may be chosen: nothing of it says what is learned.
KEYS = (
    *("per_device_train_batch_size", "activation_checkpointing", "activation_checkpointing_kwargs", "padding_free"),
    *("sort_within_batch", "max_length", "optim", "dataloader_num_workers", "attn_implementation"),
)
# Architectures whose masks keep rows apart that are joined without padding, with torch's attention and with eager: the
# same losses and gradients as of padded rows (tests/train/test_executions.py). And those in which rows see each other.
APART = frozenset(
    (
        *("gemma3", "gemma3_text", "gpt2", "gpt_neox", "granite", "llama", "mistral", "olmo2", "olmo3", "phi", "phi3"),
        *("qwen2", "qwen3", "qwen3_moe", "smollm3"),
    )
)
MIXED = frozenset(["bloom", "falcon", "gpt_oss", "mpt", "opt"])
MASKED = ("sdpa", "eager")
# Tokens that the fixed cost of a micro-batch is worth on a CPU: one number for models of all widths, within what
# scripts/measure_micro_batches.py finds of them.
FIXED_ON_CPU = 64
# A step has to take this much less to be worth another way than what is written, and to join rows: the masks of joined
# rows are computed in ways that the estimate does not tell apart.
WORTH, WORTH_JOINING = 0.03, 0.1


@dataclasses.dataclass(frozen=True)
class Choice:
    """One value that takes the place of what is written."""

    key: str
    value: Any
    before: Any
    reason: str

    def __str__(self) -> str:
        return f"{self.key} {as_yaml(self.before)} -> {as_yaml(self.value)}: {self.reason}"


@dataclasses.dataclass(frozen=True)
class Execution:
    """How a recipe is executed."""

    choices: tuple[Choice, ...]
    kept: tuple[str, ...]
    """What was left as it is written though it might have been chosen, with the reason."""
    worth: str | None
    """What the choices save, as far as it can be estimated."""
    guessed: str | None = None
    """What was taken for granted of the rows."""

    def applied(self, recipe: Recipe) -> Recipe:
        """The recipe with what was chosen."""
        chosen = {each.key: Value(each.value, f"{AUTO} ({each.reason})") for each in self.choices}
        return dataclasses.replace(recipe, values=recipe.values | chosen)

    def lines(self) -> Iterator[str]:
        """The same in sentences."""
        yield from map(str, self.choices)
        if not self.choices:
            yield "nothing is executed otherwise than it is written"
        if self.worth:
            yield f"worth: {self.worth}"
        yield from (f"as written: {each}" for each in self.kept)
        if self.guessed:
            yield f"lengths: {self.guessed}"


def pinned(recipe: Recipe, *, asked: bool = True) -> set[str]:
    """The keys that are not free to be chosen: those of a model's file, and those said where auto is, or nearer.

    Args:
        recipe: As written, with the origin of each value.
        asked: Whether it says `execution: auto`; otherwise as if SET= did.
    """
    said = _nearness(recipe, "execution") if asked else _SET
    return {key for key in KEYS if key in recipe.values and _nearness(recipe, key) >= said}


_SET = 2


def _nearness(recipe: Recipe, key: str) -> int:
    """How near to the user a value was said: 0 in the recipe that is extended, 1 in its own file, 2 beside it."""
    item = recipe.values[key]
    if item.origin.startswith(f"{recipes.MODELS}/"):
        return _SET + 1
    if recipe.base is not None and recipe.base.values.get(key) == item:
        return 0
    return 1 if item.origin.rpartition(":")[2].isdigit() else _SET


def chosen_before(origins: dict[str, str], values: dict[str, Any]) -> dict[str, Value]:
    """What was chosen for a run, from the origins in its run.json and all its values, upstream's and ours."""
    return {key: Value(values.get(key), origin) for key, origin in origins.items() if origin.startswith(f"{AUTO} (")}


def choose(case: Case, *, asked: bool = True) -> Execution:
    """What takes the place of what is written.

    Args:
        case: With the recipe as it is written.
        asked: As `pinned` takes it.
    """
    recipe = case.recipe
    free = set(KEYS) - pinned(recipe, asked=asked)
    if (tuned := tuning.remembered(case, KEYS)) and (choices := _tuned(recipe, tuned, free)) is not None:
        worth = f"{tuned['gain']:.2f} times the tokens a second of what was written when make tune measured"
        return Execution(tuple(choices), (), worth if choices else None)
    return _estimated(case, free)


def _estimated(case: Case, free: set[str]) -> Execution:
    """What is chosen where nothing was measured."""
    recipe, on_cpu = case.recipe, case.topology.use_cpu
    kept: list[str] = []
    choices: list[Choice] = []
    if case.model is None:
        kept.append("micro-batch and checkpointing, since the config of the base is not here to say what fits")
    elif case.data is None and recipe["max_length"] is None:
        kept.append("micro-batch and checkpointing, since neither the rows nor max_length say how long a row is")
    elif recipe["global_batch_size"] % case.topology.processes:
        kept.append("micro-batch and checkpointing, since the processes cannot share out the global batch evenly")
    else:
        choices += _batch(case, case.model, free, kept)
    if "optim" in free and recipe["optim"] == "adamw_torch" and not _shares_memory(case):
        reason = "the same update in one kernel instead of one for each operation"
        choices.append(Choice("optim", "adamw_torch_fused", "adamw_torch", reason))
    workers, needed = recipe["dataloader_num_workers"], ("dataloader_prefetch_factor", "dataloader_persistent_workers")
    if "dataloader_num_workers" in free and on_cpu and workers and not any(recipe[key] for key in needed):
        choices.append(Choice("dataloader_num_workers", 0, workers, "rows are read faster than a CPU computes"))
    guessed = tuning.lengths_of(case)[2] if case.model and "per_device_train_batch_size" in free else None
    return Execution(tuple(choices), tuple(kept), _worth(case, choices), guessed)


def _tuned(recipe: Recipe, tuned: dict[str, Any], free: set[str]) -> list[Choice] | None:
    """What was measured to be fastest; None where a part of it is said otherwise, so that the rest need not be it."""
    changed = {key: value for key, value in tuned["values"].items() if recipe[key] != value}
    if changed.keys() - free:
        return None
    reason = f"make tune measured {tuned['tokens_per_second']:,.0f} tokens/s on {tuned['measured']}"
    return [Choice(key, value, recipe[key], reason) for key, value in changed.items()]


def candidates(case: Case) -> dict[str, dict[str, Any]]:
    """What is worth measuring, by name, as the values that differ from what is written, which comes first.

    What `choose` would take without a measurement, half and twice its micro-batch, joined rows where they were left
    out for their cost alone, and FlashAttention where it is installed.
    """
    free, written = set(KEYS) - pinned(case.recipe), case.recipe["per_device_train_batch_size"]
    found: dict[str, dict[str, Any]] = {"as written": {}}
    best = {each.key: each.value for each in _estimated(case, free).choices}
    found["by estimate"] = best
    rows, whole = best.get("per_device_train_batch_size", written), case.recipe["global_batch_size"]
    unsorted = {key: value for key, value in best.items() if key != "sort_within_batch"}
    space = room(case)[0] or 0.0
    for size in (rows // 2, 2 * rows) if case.model and _sizes(case, case.model, free, []) is None else ():
        after = unsorted | {"per_device_train_batch_size": size}
        if size and whole % size == 0 and case.model and _fits(case, case.model, after, space):
            by_length = size < whole and not case.recipe["sort_within_batch"] and _sorts(case.recipe, case.model, free)
            found[f"micro-batch of {size}"] = after | ({"sort_within_batch": True} if by_length else {})
    if "padding_free" not in best and case.model and _padded(case, case.model, free, costly=True) is None:
        found["joined rows"] = unsorted | {"padding_free": True, "max_length": None}
    flash = not case.topology.use_cpu and importlib.util.find_spec("flash_attn") is not None
    if flash and "attn_implementation" in free and (case.recipe["bf16"] or case.recipe["fp16"]):
        found["FlashAttention"] = {**best, "attn_implementation": "flash_attention_2"}
    found = {
        name: {key: value for key, value in values.items() if value != case.recipe[key]}
        for name, values in found.items()
    }
    return {name: values for at, (name, values) in enumerate(found.items()) if values not in [*found.values()][:at]}


def _fits(case: Case, model: Model, values: dict[str, Any], space: float) -> bool:
    after = {key: Value(value, "") for key, value in values.items()}
    recipe = dataclasses.replace(case.recipe, values=case.recipe.values | after)
    return _option(recipe, case, model).needs <= space


def _shares_memory(case: Case) -> bool:
    """Whether its GPU is no NVIDIA one, of which nothing was tried here."""
    return not case.topology.use_cpu and any(gpu.memory_mib == 0 for gpu in case.gpus)


def room(case: Case) -> tuple[float | None, str]:
    """Bytes that one process may need where it trains, None if nothing is known of it; and what has them."""
    if case.topology.use_cpu:
        import psutil

        return memory.HEADROOM * psutil.virtual_memory().total / case.topology.processes, "this machine's memory"
    if case.gpu is not None:
        return memory.HEADROOM * case.gpu.memory_bytes, case.gpu.name
    size = case.gpus[0].memory_mib * 2**20 if case.gpus else 0
    return (memory.HEADROOM * size or None), "this machine's GPU"


def _batch(case: Case, model: Model, free: set[str], kept: list[str]) -> Iterator[Choice]:
    """Micro-batch, checkpointing and padding: the fastest that fits."""
    recipe, (lengths, supervised, _), (space, where) = case.recipe, tuning.lengths_of(case), room(case)
    if space is None:
        kept.append(f"micro-batch and checkpointing, since nothing is known of the memory of {where}")
        return
    before, written = _option(recipe, case, model), way_of(recipe)
    ways, sizes = (*_ways(case, model, free, kept),), _sizes(case, model, free, kept)
    options = fit.ways(recipe, case.topology, model, lengths, supervised, ways, sizes)
    best = _on_cpu(options, space) if case.topology.use_cpu else _on_gpu(options, space)
    if best is None:
        least = min((each.needs for each in options), default=0.0)
        kept.append(f"micro-batch and checkpointing, since nothing fits {where}: the least needs {fit.gib(least)}")
        return
    if before.needs <= space and best.seconds > (1 - WORTH) * before.seconds and not case.topology.use_cpu:
        return
    needs = f"{fit.gib(best.needs)} of the {fit.gib(space)} allowed on {where}"
    if best.rows != before.rows:
        reason = f"{count(best.rows, 'row')} at once {'needs' if best.rows == 1 else 'need'} {needs}"
        yield Choice("per_device_train_batch_size", best.rows, before.rows, reason)
    if best.way.checkpointing != written.checkpointing:
        reason = f"with it {needs}" if best.way.checkpointing else f"nothing is computed twice, and it fits: {needs}"
        yield Choice("activation_checkpointing", best.way.checkpointing, written.checkpointing, reason)
    if best.way.selective and not written.selective:
        kwargs = {"selective": True, "use_reentrant": False}
        reason = "the attention is not computed twice, and its output fits"
        yield Choice("activation_checkpointing_kwargs", kwargs, recipe["activation_checkpointing_kwargs"], reason)
    if best.way.sorted and not written.sorted and best.rows * case.topology.processes < recipe["global_batch_size"]:
        reason = "rows of like length are padded together, and a step has the same rows"
        yield Choice("sort_within_batch", True, False, reason)
    if best.way.padding_free and not written.padding_free:
        reason = f"the masks of {kind_of(model)} keep the rows apart, and padding would cost more than they do"
        yield Choice("padding_free", True, False, reason)
        cut = f"padding_free cuts nothing, and no row has more than {recipe['max_length']} tokens"
        yield Choice("max_length", None, recipe["max_length"], cut)


def _sizes(case: Case, model: Model, free: set[str], kept: list[str]) -> list[int] | None:
    """The micro-batches that may be taken: the one that is written where another would change what is learned."""
    recipe, written = case.recipe, [case.recipe["per_device_train_batch_size"]]
    if "per_device_train_batch_size" not in free:
        return written
    if found := _learned_by_micro_batch(recipe, model):
        kept.append(f"the micro-batch, since {listed(found)}")
        return written
    return None


def _learned_by_micro_batch(recipe: Recipe, model: Model) -> list[str]:
    """Why it matters to what is learned which rows are computed together, and how many."""
    experts = memory.Shape.of(model).experts
    reasons = {
        "dataloader_drop_last leaves out other rows with another": recipe["dataloader_drop_last"],
        "batch_rebalance shares rows out by it": recipe["train_sampling_strategy"] == "batch_rebalance",
        "neftune_noise_alpha is noise by the length of a padded row": recipe["neftune_noise_alpha"],
        "label_smoothing_factor is averaged within it": recipe["label_smoothing_factor"],
        "the loss that balances experts is one of it": experts and recipe["router_aux_loss_coef"] != 0,
        "the optimizer steps after each": recipe["optim"].endswith("layerwise"),
    }
    return [reason for reason, holds in reasons.items() if holds]


def way_of(recipe: Recipe) -> Way:
    """How a recipe computes its micro-batches."""
    selective = bool((recipe["activation_checkpointing_kwargs"] or {}).get("selective"))
    return Way(recipe.checkpoints_activations, selective, recipe["padding_free"], recipe["sort_within_batch"])


def _ways(case: Case, model: Model, free: set[str], kept: list[str]) -> Iterator[Way]:
    """Checkpointing and padding as they may be chosen, what costs least in time first."""
    recipe, chosen = case.recipe, case.topology
    kwargs, attention = recipe["activation_checkpointing_kwargs"], recipe["attn_implementation"] or "sdpa"
    every, whole = [way_of(recipe)], dataclasses.replace(way_of(recipe), checkpointing=True)
    if "activation_checkpointing" in free:
        # ZeRO-3 with adapters needs reentrant checkpointing, which recomputes everything.
        selective = "activation_checkpointing_kwargs" in free and not kwargs and attention == "sdpa"
        selective = selective and chosen.backend in ("single", "ddp") and not arguments.compiles(recipe.upstream())
        every = [Way(checkpointing=False), *([Way(checkpointing=True, selective=True)] if selective else []), whole]
    yield from (dataclasses.replace(each, sorted=_sorts(recipe, model, free)) for each in every)
    if recipe["packing"] or recipe["padding_free"]:
        return
    if (why_not := _padded(case, model, free)) is None:
        yield from (dataclasses.replace(each, padding_free=True) for each in every)
    else:
        kept.append(f"padding, since {why_not}")


def _sorts(recipe: Recipe, model: Model, free: set[str]) -> bool:
    """Whether the rows of a step are sorted by length, or may be."""
    may = "sort_within_batch" in free and conflicts.unsorted(recipe) is None
    return recipe["sort_within_batch"] or (may and not _learned_by_micro_batch(recipe, model))


def _padded(case: Case, model: Model, free: set[str], *, costly: bool = False) -> str | None:
    """Why rows have to be padded; None where they can be joined without, which may be `costly` to measure it."""
    recipe, chosen = case.recipe, case.topology
    attention = recipe["attn_implementation"] or "sdpa"
    if recipe["packing"] or recipe["padding_free"] or not {"padding_free", "max_length"} <= free:
        return "padding_free or max_length is written"
    if recipe["sort_within_batch"]:
        return "sort_within_batch is written, which sorts rows to pad them"
    if kind_of(model) not in APART or attention not in MASKED:
        return f"nobody has shown that {attention} attention of {kind_of(model)} keeps joined rows apart"
    if chosen.use_cpu and not costly:
        return f"{attention} attention computes the whole square of joined rows, which costs a CPU more than padding"
    if case.data is None or case.data["tokens_are"] != "exact":
        return "without the rows' tokens nobody knows whether max_length cuts any"
    longest = max(int(length) for split in case.data["splits"].values() for length in split["lengths"])
    if recipe["max_length"] is not None and longest > recipe["max_length"]:
        return f"padding_free cuts nothing at max_length, and rows have up to {longest:,} tokens"
    if chosen.processes > 1:
        return "the last batch of an epoch would count rows twice on several processes"
    return "noise by the length of a padded row would be another" if recipe["neftune_noise_alpha"] else None


def _on_gpu(options: list[Option], space: float) -> Option | None:
    """The fastest, with padding unless it is worth to be without."""
    padded = fit.fastest([each for each in options if not each.way.padding_free], space)
    joined = fit.fastest([each for each in options if each.way.padding_free], space)
    if padded and joined:
        return joined if joined.seconds < (1 - WORTH_JOINING) * padded.seconds else padded
    return padded or joined


def _on_cpu(options: list[Option], space: float) -> Option | None:
    """Without recomputation where that fits, in the smallest micro-batch that costs hardly more than the cheapest."""
    fitting = [each for each in options if each.needs <= space]
    kept_whole = [each for each in fitting if not each.way.checkpointing] or fitting
    costs = [(each.tokens + FIXED_ON_CPU) / each.rows for each in kept_whole]
    cheap = [each for each, cost in zip(kept_whole, costs, strict=True) if cost <= (1 + WORTH) * min(costs)]
    return min(cheap, key=lambda each: each.rows, default=None)


def kind_of(model: Model) -> str:
    """A model's architecture, as its config names it."""
    return str(model.config.get("model_type"))


def _worth(case: Case, choices: list[Choice]) -> str | None:
    """What the choices save: by the published speeds on a GPU, in what is counted on a CPU."""
    recipe = case.recipe
    if case.model is None or not choices or (case.data is None and recipe["max_length"] is None):
        return None
    after = Execution(tuple(choices), (), None).applied(recipe)
    one, other = (_option(each, case, case.model) for each in (recipe, after))
    if not case.topology.use_cpu:
        faster = one.seconds / other.seconds
        text = f"about {faster:.2g} times the tokens a second, by the published speeds of an A100 (docs/speed.md)"
        return text if faster > 1 + WORTH else None
    before, now = (recipe["global_batch_size"] // (each.rows * case.topology.processes) for each in (one, other))
    said = [] if before == now else [f"{before} -> {now} micro-batches a step"]
    if one.way.checkpointing and not other.way.checkpointing:
        said.append("nothing is computed twice")
    lengths = tuning.lengths_of(case)[0]
    real = [share(each.rows * fit.row_lengths(recipe, lengths)[1] / each.tokens, 1) for each in (one, other)]
    if real[0] != real[1]:
        said.append(f"{real[0]} -> {real[1]} of a batch are tokens")
    return "; ".join(said) or None


def _option(recipe: Recipe, case: Case, model: Model) -> Option:
    """The recipe's own way."""
    lengths, supervised, _ = tuning.lengths_of(case)
    rows = recipe["per_device_train_batch_size"]
    return fit.option(recipe, case.topology, model, way_of(recipe), rows, lengths, supervised)
