"""How many steps a recipe takes on so many rows, and how far its learning rate gets: the Trainer's own arithmetic."""

import dataclasses
import math

from sft_recipes.errors import InputError
from sft_recipes.recipes import rates
from sft_recipes.recipes.recipe import Recipe
from sft_recipes.recipes.topology import Topology, accumulation


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Optimizer steps of one run."""

    rows: int  # training rows, or packed rows
    batches_per_epoch: int  # micro-batches that one process computes in an epoch
    accumulation: int
    steps_per_epoch: int
    steps: int
    warmup_steps: int
    """Those at the beginning after which the learning rate is a higher one: none, where a schedule has no warm-up."""
    peak_learning_rate: float
    """The highest learning rate that is reached, which is not the recipe's when warm-up takes the whole run."""
    last_learning_rate: float
    follows_evaluations: bool
    """Whether evaluations change the learning rate, so that these are its values until they do."""
    evaluations: int | None  # evaluations within the run, None when it has none

    @property
    def warmup_share(self) -> float:
        return self.warmup_steps / self.steps


def schedule(recipe: Recipe, topology: Topology, rows: int) -> Schedule:
    """The schedule of `rows` training rows, as `Trainer.set_initial_training_values` computes it (transformers 5.23).

    Raises:
        InputError: The global batch size cannot be reached on this topology, or the learning rate of a step cannot be
            computed.
    """
    accumulated = accumulation(recipe, topology)
    per_process = math.ceil(rows / topology.processes)
    size = recipe["per_device_train_batch_size"]
    batches = per_process // size if recipe["dataloader_drop_last"] else math.ceil(per_process / size)
    per_epoch = max(math.ceil(batches / accumulated), 1)
    steps = recipe["max_steps"] if recipe["max_steps"] > 0 else math.ceil(recipe["num_train_epochs"] * per_epoch)
    asked = recipe["warmup_steps"]
    warmup = int(asked) if asked >= 1 else math.ceil(steps * asked)
    kind, kwargs = recipe["lr_scheduler_type"], recipe["lr_scheduler_kwargs"] or {}
    try:
        found = rates.summary(rates.schedule(kind, kwargs, recipe["learning_rate"], warmup, steps), warmup, steps)
    except ArithmeticError as error:
        where = f"{recipe.values['warmup_steps'].origin}: " if "warmup_steps" in recipe.values else ""
        raise InputError(
            f"{where}warmup_steps: lr_scheduler_type {kind} fails with {warmup} warm-up steps of {steps} ({error}); "
            "write a share of the steps, such as warmup_steps: 0.03"
        ) from None
    follows, evaluations = kind in rates.ADAPTIVE, _evaluations(recipe, steps, per_epoch)
    return Schedule(rows, batches, accumulated, per_epoch, steps, *found, follows, evaluations)


def _evaluations(recipe: Recipe, steps: int, per_epoch: int) -> int | None:
    """How often transformers' `DefaultFlowCallback` evaluates: at its interval, and at the end whatever it is."""
    if recipe["eval_strategy"] == "no":
        return None
    every: float = per_epoch
    if recipe["eval_strategy"] == "steps":
        every = recipe["eval_steps"] or recipe["logging_steps"]
        every = math.ceil(steps * every) if every < 1 else int(every)
    delay = (recipe["eval_delay"] or 0) * (per_epoch if recipe["eval_strategy"] == "epoch" else 1)
    # Those before the end, from the first that is not delayed, and the one at the end.
    before = math.ceil(steps / every) - max(math.ceil(delay / every), 1)
    return max(before, 0) + (steps >= delay)
