"""The arithmetic of steps, against the Trainer's own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import alpaca_rows, write_rows

from sft_recipes.plan.schedule import schedule
from sft_recipes.recipes import recipe, topology
from sft_recipes.runs.run import Run


@pytest.mark.parametrize(
    "settings",
    [
        {"num_train_epochs": 1.5, "warmup_steps": 0.3},
        {"max_steps": 5, "warmup_steps": 9, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "no"},
        {"dataloader_drop_last": True, "eval_strategy": "steps", "eval_steps": 0.25, "save_strategy": "no"},
    ],
)
def test_steps_and_warm_up_are_those_of_a_real_run(
    train_here: Callable[..., Run], project: Path, settings: dict[str, Any]
) -> None:
    write_rows(project / "data" / "train.jsonl", alpaca_rows(61, seed=1))
    settings |= {
        "load_best_model_at_end": False,
        "early_stopping_patience": 0,
        "lr_scheduler_type": "constant_with_warmup",
    }
    facts = train_here(name="real", **settings).facts()
    loaded = recipe.load("tiny", {key: recipe.Value(value, "SET") for key, value in settings.items()})
    planned = schedule(loaded, topology.read("cpu", "test"), 61)
    effect = facts["in_effect"]["run"]
    assert (planned.steps, planned.warmup_steps) == (effect["max_steps"], effect["warmup_steps"])
    assert planned.peak_learning_rate == pytest.approx(effect["peak_learning_rate"])
    assert planned.evaluations == len(facts["measured"]["eval_loss"])


def test_the_same_rows_on_more_processes_are_the_same_steps(project: Path) -> None:
    loaded = recipe.load("default")
    steps = {schedule(loaded, topology.read("ddp", "test", number), 6400).steps for number in (1, 2, 4, 8)}
    assert steps == {300}
