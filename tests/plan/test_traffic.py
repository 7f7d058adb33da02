"""Bytes on the wire, by hand for Qwen3 8B on 8 processes with 4 micro-batches a step."""

import dataclasses
import importlib
from pathlib import Path

import pytest

from sft_recipes.models import base_model
from sft_recipes.plan import traffic
from sft_recipes.plan.memory import Setup

ROOT = Path(__file__).parents[2]
# Rank 16 on queries and values: 36 layers x 16 x ((4096 + 4096) + (4096 + 1024)).
TRAINED = 7_667_712
WEIGHTS = 2 * 8_190_735_360
PART = 7 / 8
LORA = Setup(targets=("q_proj", "v_proj"), processes=8, checkpointing=False)


@pytest.mark.parametrize(
    ("changes", "gradients", "weights"),
    [
        ({}, 2 * 4 * TRAINED, (0, 0)),
        ({"adapter_bytes": 2}, 2 * 2 * TRAINED, (0, 0)),
        ({"zero_stage": 1}, 2 * TRAINED + 2 * TRAINED, (0, 0)),
        ({"zero_stage": 2}, 4 * 2 * TRAINED + 2 * TRAINED, (0, 0)),
        ({"zero_stage": 3}, 4 * 2 * TRAINED, (4 * 2 * WEIGHTS, 4 * 2 * WEIGHTS)),
        ({"zero_stage": 3, "checkpointing": True}, 4 * 2 * TRAINED, (4 * 2 * WEIGHTS, 4 * 3 * WEIGHTS)),
        ({"fsdp": True, "checkpointing": True}, 4 * 4 * TRAINED, (4 * 2 * WEIGHTS, 4 * 2 * WEIGHTS)),
    ],
)
def test_what_each_process_sends(changes: dict, gradients: int, weights: tuple[int, int]) -> None:
    model = base_model.find("Qwen/Qwen3-8B", "main")
    assert model is not None
    sent = traffic.traffic(model, dataclasses.replace(LORA, **changes), 4)
    assert sent.gradients == pytest.approx(PART * gradients)
    assert sent.weights == pytest.approx(tuple(PART * each for each in weights))
    assert sent.total == pytest.approx(tuple(PART * (gradients + each) for each in weights))


def test_seconds_are_bytes_by_bandwidth() -> None:
    assert traffic.seconds(25e9, 200) == 1.0


def test_the_page_of_scaling_is_what_its_script_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    script = importlib.import_module("validate_scaling")
    assert script.render(text := script.PAGE.read_text(encoding="utf-8")) == text, "run scripts/validate_scaling.py"
