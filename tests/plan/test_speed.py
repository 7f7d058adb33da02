import json
import os
from pathlib import Path
from typing import Any

import pytest
from finished import BARE

from sft_recipes.models import base_model
from sft_recipes.plan import gpus, memory, speed
from sft_recipes.plan.memory import Setup
from sft_recipes.recipes import recipe, topology


def llama3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> base_model.Model:
    monkeypatch.chdir(tmp_path)
    config = {
        "model_type": "llama",
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "vocab_size": 128256,
        "tie_word_embeddings": False,
    }
    return base_model.from_config("Llama-3-8B", config, "test")


@pytest.fixture(scope="module")
def qwen() -> base_model.Model:
    found = base_model.find("Qwen/Qwen3-8B")
    assert found is not None
    return found


def test_operations_are_four_n_six_n_and_with_all_weights_six_n_eight_n(qwen: base_model.Model) -> None:
    weights = qwen.elements("linear") + qwen.elements("head")
    short = {"length": 1, "rank": 1, "fused_head": False}
    lora, lora_again, full, full_again = (
        speed.flops_per_token(qwen, Setup(use_peft=peft, checkpointing=again, **short)) / weights
        for peft in (True, False)
        for again in (False, True)
    )
    assert lora == pytest.approx(4, rel=0.01)
    assert full == pytest.approx(6, rel=0.01)
    # The head is not recomputed.
    body = qwen.elements("linear") / weights
    assert lora_again == pytest.approx(4 + 2 * body, rel=0.01)
    assert full_again == pytest.approx(6 + 2 * body, rel=0.01)


def test_longer_rows_and_masked_attention_cost_more(qwen: base_model.Model) -> None:
    flash, dense = (
        [speed.flops_per_token(qwen, Setup(attention=name, length=length)) for length in (2048, 16384)]
        for name in ("flash_attention_2", "sdpa")
    )
    assert flash[0] < flash[1] < dense[1]
    assert dense[1] - dense[0] == pytest.approx(2 * (flash[1] - flash[0]))


def test_only_visited_experts_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = {
        "model_type": "qwen3_moe",
        "vocab_size": 64,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
    }
    model = base_model.from_config("tiny", config, "test")
    assert speed.active_experts(model, memory.Shape.of(model)) == 2 * 2 * 3 * 64 * 32


@pytest.mark.parametrize(
    ("changes", "published"),
    [
        # Llama-3-8B QLoRA, FOAK and Liger kernels, 4096 x 32, one A100 (fms-acceleration, a100_80gb_liger.csv).
        ({"four_bit": True, "double_quant": True, "tokens": 131072}, 4160),
        # Mistral-7B QLoRA, 4096 x 4 (a100_80gb.csv); its shape is Llama-3's but for the vocabulary.
        ({"four_bit": True, "double_quant": True, "tokens": 16384}, 3596),
        ({"tokens": 16384}, 3324),
    ],
)
def test_published_throughputs_lie_within_the_range(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], published: float
) -> None:
    targets = ("q_proj", "k_proj", "v_proj", "o_proj")
    setup = Setup(attention="flash_attention_2", length=4096, targets=targets, **changes)
    low, high = speed.per_micro_batch(llama3(tmp_path, monkeypatch), setup, gpus.find("a100-80gb"))
    assert setup.tokens / high < published * 1.05
    assert published * 0.95 < setup.tokens / low


def test_more_tokens_in_a_micro_batch_are_faster_for_each(qwen: base_model.Model) -> None:
    per_token = [
        speed.per_micro_batch(qwen, Setup(four_bit=True, tokens=tokens, length=512), gpus.find("h200"))[1] / tokens
        for tokens in (512, 2048, 8192)
    ]
    assert per_token == sorted(per_token, reverse=True)


def test_an_estimate_says_what_it_rests_on(qwen: base_model.Model) -> None:
    found = speed.speed(qwen, Setup(), gpus.find("h100-80gb"), accumulation=4)
    assert found.seconds_per_step is not None
    low, high = found.seconds_per_step
    assert 0 < low < high
    assert found.basis.startswith("documented: 34% to 43% of 989 TFLOP/s (H100") and "not measured" in found.basis


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"on_cpu": True}, "on a CPU only a finished run tells"),
        ({"spec": None}, "no figures for this GPU"),
        ({"model": None}, "config is not here"),
    ],
)
def test_what_is_not_known_is_said(qwen: base_model.Model, changes: dict[str, Any], reason: str) -> None:
    arguments = {"model": qwen, "spec": gpus.find("h200"), **changes}
    found = speed.speed(setup=Setup(), accumulation=1, **arguments)
    assert found.seconds_per_step is None
    assert reason in found.basis


def write_run(name: str, asked: recipe.Recipe, chosen: topology.Topology, **changes: Any) -> None:
    directory = Path("runs") / name
    directory.mkdir(parents=True)
    (directory / "recipe.yaml").write_text(recipe.dump(asked.upstream()), encoding="utf-8")
    facts = {
        **BARE,
        "status": "finished",
        "own": asked.own(),
        "topology": {
            "name": chosen.name,
            "backend": chosen.backend,
            "processes": chosen.processes,
            "zero_stage": chosen.zero_stage,
            "use_cpu": chosen.use_cpu,
        },
        "gpus": [],
        "cpus": os.cpu_count(),
        "started": "2026-01-01T00:00:00+0000",
        "measured": {"step": 1, "tokens_per_second": 1000.0},
        **changes,
    }
    (directory / "run.json").write_text(json.dumps(facts), encoding="utf-8")


def test_a_run_of_the_same_work_says_it_better(project: Path, qwen: base_model.Model) -> None:
    asked = recipe.load("tiny")
    chosen = topology.read("cpu", "test")
    resolved = topology.resolve(asked, chosen)
    assert speed.measured(asked, chosen, []) is None
    write_run("old", resolved, chosen)
    write_run(
        "new", resolved, chosen, started="2026-02-01T00:00:00+0000", measured={"step": 1, "tokens_per_second": 2000.0}
    )
    found = speed.measured(asked, chosen, [])
    assert found == speed.Measured("new", 2000.0)
    told = speed.speed(qwen, Setup(), None, 4, found, tokens_per_step=500, on_cpu=True)
    assert told == speed.Speed((0.25, 0.25), "measured: 2,000 tokens/s in runs/new")


@pytest.mark.parametrize(
    "changes",
    [
        {"status": "interrupted"},
        {"rehearsal": True},
        {"gpus": ["NVIDIA L4, 23034 MiB"]},
        {"measured": {"step": 1, "tokens_per_second": None}},
        {"started": None, "own": None},
    ],
)
def test_a_run_of_another_kind_says_nothing(project: Path, changes: dict[str, Any]) -> None:
    asked = recipe.load("tiny")
    chosen = topology.read("cpu", "test")
    write_run("other", topology.resolve(asked, chosen), chosen, **changes)
    assert speed.measured(asked, chosen, []) is None


@pytest.mark.parametrize("override", ["max_length=64", "activation_checkpointing=false", "lora_r=4", "optim=sgd"])
def test_another_recipe_is_not_measured_by_it(project: Path, override: str) -> None:
    chosen = topology.read("cpu", "test")
    write_run("other", topology.resolve(recipe.load("tiny"), chosen), chosen)
    assert speed.measured(recipe.load("tiny"), chosen, []) is not None
    assert speed.measured(recipe.load("tiny", recipe.parse_overrides(override)), chosen, []) is None
