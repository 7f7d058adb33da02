"""The arithmetic of steps, against the Trainer's own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import alpaca_rows, write_rows

from sft_recipes.errors import InputError
from sft_recipes.plan.schedule import schedule
from sft_recipes.recipes import arguments, rates, recipe, topology
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
    write_rows(project / "data" / "train.jsonl", alpaca_rows(29, seed=1))
    settings |= {
        "load_best_model_at_end": False,
        "early_stopping_patience": 0,
        "lr_scheduler_type": "constant_with_warmup",
    }
    facts = train_here(name="real", **settings).facts()
    loaded = recipe.load("tiny", {key: recipe.Value(value, "SET") for key, value in settings.items()})
    planned = schedule(loaded, topology.read("cpu", "test"), 29)
    effect = facts["in_effect"]["run"]
    assert (planned.steps, planned.warmup_steps) == (effect["max_steps"], effect["warmup_steps"])
    assert planned.peak_learning_rate == effect["peak_learning_rate"]
    assert planned.last_learning_rate == effect["last_learning_rate"]
    assert effect["epochs"] == planned.steps / planned.steps_per_epoch
    assert planned.evaluations == len(facts["measured"]["eval_loss"])


GIVEN: dict[str, list[dict[str, Any]]] = {
    "cosine": [{}, {"num_cycles": 1.5}],
    "cosine_with_restarts": [{}, {"num_cycles": 3}],
    "cosine_with_min_lr": [{"min_lr": 1e-5}, {"min_lr_rate": 0.2}],
    "cosine_warmup_with_min_lr": [{"min_lr": 1e-5}, {"min_lr_rate": 0.2, "warmup_lr_rate": 0.5}],
    "polynomial": [{}, {"lr_end": 1e-5, "power": 2.0}],
    "inverse_sqrt": [{}, {"timescale": 7}],
    "warmup_stable_decay": [
        {"num_decay_steps": 5},
        *({"num_decay_steps": 6, "warmup_type": each, "decay_type": each} for each in ("linear", "cosine", "1-sqrt")),
        {"num_decay_steps": 4, "num_stable_steps": 2, "min_lr_ratio": 0.1},
    ],
    "greedy": [{"min_lr": 1e-6}],
}


@pytest.mark.parametrize("kind", arguments.upstream()["schedules"])
def test_rates_are_those_of_the_scheduler_that_transformers_makes(kind: str) -> None:
    import torch
    from transformers import get_scheduler

    for given in GIVEN.get(kind, [{}]):
        for warmup, steps in ((0, 20), (1, 20), (6, 20), (20, 19), (30, 20)):
            optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2e-4)
            made, seen = get_scheduler(kind, optimizer, warmup, steps, given), []
            for _ in range(steps):
                seen.append(optimizer.param_groups[0]["lr"])
                optimizer.step()
                if kind not in rates.ADAPTIVE:
                    made.step()
            found = rates.schedule(kind, given, 2e-4, warmup, steps)
            assert [found(step) for step in range(steps)] == seen
            said = rates.summary(found, warmup, steps)
            assert (said.peak, said.last) == (max(seen), seen[-1])
            rising = next((step for step in range(steps - 1) if seen[step + 1] <= seen[step]), steps)
            assert said.warmup_steps in (rising, steps - 1) and (said.warmup_steps < steps - 1 or rising == steps)


def test_a_schedule_without_warm_up_has_none_whatever_is_asked(project: Path) -> None:
    for kind, expected in {"constant": 0, "reduce_lr_on_plateau": 0, "constant_with_warmup": 100}.items():
        loaded = recipe.load("default", {"lr_scheduler_type": kind})
        planned = schedule(loaded, topology.read("ddp", "test"), 6400)
        assert (planned.warmup_steps, planned.peak_learning_rate, planned.last_learning_rate) == (expected, 2e-4, 2e-4)
        assert planned.follows_evaluations == (kind == "reduce_lr_on_plateau")


def test_a_schedule_that_fails_after_its_last_step_is_refused(project: Path) -> None:
    loaded = recipe.load("default", {"lr_scheduler_type": "polynomial", "max_steps": 100})
    with pytest.raises(InputError, match="lr_scheduler_type polynomial fails with 100 warm-up steps of 100"):
        schedule(loaded, topology.read("ddp", "test"), 6400)


def test_rates_of_a_run_of_any_length_come_at_once() -> None:
    found = rates.summary(rates.schedule("cosine", {}, 2e-4, 30_001, 10**9), 30_001, 10**9)
    assert (found.warmup_steps, found.peak) == (30_001, 2e-4) and found.last < 1e-9


def test_the_same_rows_on_more_processes_are_the_same_steps(project: Path) -> None:
    loaded = recipe.load("default")
    steps = {schedule(loaded, topology.read("ddp", "test", number), 6400).steps for number in (1, 2, 4, 8)}
    assert steps == {300}
