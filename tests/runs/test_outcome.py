"""What is said of the eval loss names the weights that were kept."""

from typing import Any

import pytest

from sft_recipes.runs.outcome import held_out, kept_step


def measured(losses: dict[int, float], step: int, kept: int) -> dict[str, Any]:
    evaluations = [{"step": each, "eval_loss": loss} for each, loss in losses.items()]
    return {"step": step, "kept_step": kept, "eval_loss": evaluations}


@pytest.mark.parametrize(
    ("losses", "kept", "said"),
    [
        ({}, 12, []),
        ({12: 0.5}, 12, ["0.5000 at step 12"]),
        ({0: 1.2, 8: 0.4, 12: 0.3}, 12, ["1.2000 before training -> 0.3000 at step 12"]),
        ({4: 0.6, 8: 0.4, 12: 0.5}, 8, ["0.6000 at step 4 -> 0.4000 at step 8"]),
        (
            {0: 1.1618, 8: 7.3, 12: 7.4},
            8,
            [
                "1.1618 before training -> 7.3000 at step 8",
                "training made it worse; the weights kept are those of step 8",
            ],
        ),
        (
            {0: 1.2, 8: 0.4, 12: 7.4},
            8,
            [
                "1.2000 before training -> 0.4000 at step 8",
                "training made it worse after that: it became 7.4000 at step 12; the weights kept are those of step 8",
            ],
        ),
        (
            {4: 0.6, 8: 0.4, 12: 0.5},
            12,
            [
                "0.6000 at step 4 -> 0.5000 at step 12",
                "training made it worse: it had been 0.4000 at step 8; the weights kept are those of step 12",
            ],
        ),
        (
            {0: 1.2, 8: 0.4},
            10,
            [
                "1.2000 before training -> 0.4000 at step 8; the weights that were kept, those of step 10, were "
                "not evaluated"
            ],
        ),
    ],
)
def test_the_loss_that_is_named_is_that_of_the_weights_that_were_kept(
    losses: dict[int, float], kept: int, said: list[str]
) -> None:
    assert held_out(measured(losses, 12, kept)) == said


def test_runs_of_before_the_kept_step_was_recorded_are_read() -> None:
    assert kept_step({"step": 12, "best_checkpoint": "runs/x/checkpoint-8"}) == 8
    assert kept_step({"step": 12, "best_checkpoint": None}) == 12
