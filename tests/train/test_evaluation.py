"""The figures of an evaluation are means over all supervised tokens, whatever the batches."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from conftest import alpaca_rows, write_rows
from trl import SFTTrainer

from sft_recipes.launch import launch
from sft_recipes.plan import job as jobs
from sft_recipes.train import train as worker
from sft_recipes.train.trainer import Trainer


@pytest.fixture
def trainer(project: Path) -> Trainer:
    """One that has trained nothing, over 17 held-out rows with answers of 1 to 60 words."""
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()
    rows = [row | {"output": "odd " * length} for length, row in enumerate(alpaca_rows(16, seed=2), 1)]
    write_rows(project / "data" / "validation.jsonl", [*rows, alpaca_rows(1, seed=3)[0] | {"output": "green " * 60}])
    whole = {"load_in_4bit": False, "dtype": "float32", "bf16": False}
    return worker.build(launch.create(jobs.check("tiny", overrides=whole), "x").values())


def row_by_row(trainer: Trainer) -> dict[str, float]:
    """Loss, accuracy and entropy over all supervised tokens, from the logits of one row after another."""
    sums: dict[str, float] = dict.fromkeys(("eval_loss", "eval_mean_token_accuracy", "eval_entropy"), 0.0)
    tokens = 0
    trainer.model.eval()
    for row in trainer.eval_dataset:
        targets = torch.tensor(row["labels"][1:])
        with torch.no_grad():
            logits = trainer.model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
        logs, targets = logits[targets != -100].log_softmax(-1), targets[targets != -100]
        tokens += len(targets)
        sums["eval_loss"] -= float(logs.gather(1, targets[:, None]).sum())
        sums["eval_mean_token_accuracy"] += int((logs.argmax(-1) == targets).sum())
        sums["eval_entropy"] -= float((logs.exp() * logs).sum())
    return {key: value / tokens for key, value in sums.items()}


def test_an_evaluation_is_over_all_supervised_tokens_whatever_the_batch(trainer: Trainer) -> None:
    # So that rows differ in more than the number of their tokens.
    for number, (name, parameter) in enumerate(trainer.model.named_parameters()):
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(number))
    expected, stock = row_by_row(trainer), []
    for size, drop_last in ((1, False), (2, False), (4, False), (4, True), (17, False)):
        trainer.args.per_device_eval_batch_size, trainer.args.dataloader_drop_last = size, drop_last
        found = trainer.evaluate()
        assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-5), (size, drop_last)
        stock.append(SFTTrainer.evaluation_loop(trainer, trainer.get_eval_dataloader(), "", True).metrics["eval_loss"])
    # Upstream's means of batches are another number for each.
    assert max(stock) - min(stock) > 0.01 and stock[-1] == pytest.approx(expected["eval_loss"], rel=1e-5)


def test_the_term_that_balances_experts_is_no_part_of_an_evaluation(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    compute: Callable[..., Any] = SFTTrainer.compute_loss

    def noting(self: Trainer, *given: Any, **named: Any) -> Any:
        seen.append(self.router_aux_loss_coef)
        return compute(self, *given, **named)

    monkeypatch.setattr(SFTTrainer, "compute_loss", noting)
    trainer.router_aux_loss_coef = 0.5
    trainer.evaluate()
    assert {*seen} == {0.0} and trainer.router_aux_loss_coef == 0.5
