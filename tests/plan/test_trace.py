import dataclasses
import functools
import importlib.util
import json
import statistics
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import ROOT

from sft_recipes.benchmark import scale as scales
from sft_recipes.benchmark.section import Section
from sft_recipes.errors import InputError
from sft_recipes.models import base_model
from sft_recipes.plan import memory
from sft_recipes.plan.memory import Setup
from sft_recipes.plan.trace import trace

pytest_plugins = ["forks"]
pytestmark = pytest.mark.slow

TINY: dict[str, Any] = {
    "model_type": "qwen3",
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}
SETUP = Setup(four_bit=True, double_quant=True, tokens=512, length=256, rank=8)


@pytest.fixture(scope="module")
def validate() -> ModuleType:
    sys.path.insert(0, str(ROOT / "scripts"))
    spec = importlib.util.spec_from_file_location("validate_memory", ROOT / "scripts" / "validate_memory.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["validate_memory"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.usefixtures("project")
def test_the_trace_says_what_a_real_step_holds(tmp_path: Path) -> None:
    """Real tensors of a real SFTTrainer on the CPU, in 4 bit, with checkpointing, as `make gpu` does, within 2 %."""
    from accelerate.state import AcceleratorState, PartialState

    from sft_recipes.benchmark import device, measure
    from sft_recipes.plan import fake_step

    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()

    setup = dataclasses.replace(SETUP, fused_head=False)
    section = Section(tmp_path / "memory.json", 600)
    scale = dataclasses.replace(scales.cpu(), memory=(scales.MemoryCase("tiny", TINY, setup),))
    measure.memory(section, scale, device.Device(gpu=False), tmp_path)
    (measured,) = section.measurements
    assert fake_step.step(TINY, setup)["peak"] == pytest.approx(measured["peak"], rel=0.02)


@pytest.mark.usefixtures("forks")
def test_static_parts_are_the_formula_s_exactly() -> None:
    """Both count the same weights; the trace rounds every tensor up to an allocator's block."""
    from sft_recipes.plan import fake_step

    setup, config = dataclasses.replace(SETUP, targets=("q_proj", "v_proj")), TINY | {"num_hidden_layers": 3}
    found = trace(config, setup)
    assert found == fake_step.step(config, setup)
    expected = memory.estimate(base_model.from_config("tiny", config, "here"), setup)
    assert found["adapters"] == expected.adapters
    assert found["gradients"] == expected.gradients
    assert found["base"] == pytest.approx(expected.quantised + expected.unquantised, rel=0.15)
    assert found["peak"] > sum(size for part, size in found.items() if part != "peak")


WIDE = TINY | {
    "hidden_size": 256,
    "intermediate_size": 1024,
    "vocab_size": 8192,
    "head_dim": 64,
    "num_hidden_layers": 3,
}
MIXTURE = WIDE | {"model_type": "qwen3_moe", "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 256}
GPT_OSS = WIDE | {"model_type": "gpt_oss", "num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 256}
EXPERTS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
EVALUATED = {"eval_tokens": 4096, "eval_length": 256}


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (MIXTURE, {"four_bit": False}),
        (MIXTURE, {"four_bit": False, "checkpointing": False}),
        (GPT_OSS, {"four_bit": False, "parameters": EXPERTS, "targets": ("q_proj", "v_proj"), "attention": "eager"}),
        (WIDE, {"saved": ("embed_tokens",)}),
        (WIDE, EVALUATED),
        (WIDE, EVALUATED | {"attention": "eager"}),
        # As many entries as the head's buffer has, all of which the trace counts.
        (WIDE | {"vocab_size": memory.HEAD_ENTRIES}, {"on_cpu": True, "dropout": 0.1, "autocast": False}),
        (WIDE | {"vocab_size": memory.HEAD_ENTRIES}, {"on_cpu": True, "checkpointing": False, "adapter_bytes": 2}),
    ],
    ids=["experts", "experts-kept", "named-experts", "saved", "evaluation", "eager-evaluation", "cpu", "cpu-kept"],
)
def test_experts_saved_modules_and_evaluations_cost_what_the_modules_do(
    config: dict[str, Any], changes: dict[str, Any]
) -> None:
    from sft_recipes.plan import fake_step

    setup = dataclasses.replace(SETUP, supervised_share=0.05, **changes)
    found = fake_step.step(config, setup)
    expected = memory.estimate(base_model.from_config("tiny", config, "here"), setup)
    assert found["peak"] == pytest.approx(expected.allocated, rel=0.1)


@functools.cache
def traced(**change: Any) -> Any:
    from sft_recipes.plan import fake_step

    # The head's tile is as large as the whole model where many tokens are supervised.
    config = {**TINY, "hidden_size": 256, "intermediate_size": 1024, "vocab_size": 8192, "num_hidden_layers": 1}
    common = dataclasses.replace(SETUP, supervised_share=0.05, checkpointing=True)
    return fake_step.step(config, dataclasses.replace(common, **change))


@pytest.mark.parametrize(
    "change",
    [
        {"four_bit": False},
        {"double_quant": False},
        {"checkpointing": False},
        {"dropout": 0.1},
        {"adapter_bytes": 2},
        {"fused_head": False},
        {"autocast": False},
        {"attention": "eager"},
        {"attention": "flash_attention_2"},
        {"use_peft": False, "four_bit": False},
    ],
    ids=str,
)
def test_every_choice_is_traced_and_costs_something(change: dict[str, Any]) -> None:
    assert traced(**change) != traced()


@pytest.mark.parametrize(("vocabulary", "backward"), [(300, True), (40_000, True), (40_000, False)])
def test_the_head_on_a_cpu_holds_what_trl_does(vocabulary: int, backward: bool) -> None:
    """Counted at every operator of the real head, but for the pages of its buffer that a small vocabulary leaves."""
    import torch
    from trl.kernels import chunked_logprob

    from sft_recipes.plan.fake_step import LiveStorages

    tokens, hidden, entries = 96, 64, memory.HEAD_ENTRIES
    states = torch.randn(tokens, hidden, requires_grad=backward)
    head, labels = torch.randn(vocabulary, hidden), torch.zeros(tokens, dtype=torch.long)
    outputs = ("entropy", "is_top1")
    with LiveStorages() as live, torch.set_grad_enabled(backward):
        given = live.count([states, head, labels])
        scored = chunked_logprob.ChunkedLogProbFunction.apply(
            states, head, None, labels, 1.0, entries, None, 1.0, outputs
        )
        if backward:
            scored[0].sum().backward()
    tiny = memory.Shape.of(base_model.from_config("tiny", TINY, "here"))
    shape = dataclasses.replace(tiny, vocabulary=vocabulary, hidden=hidden)
    setup = Setup(tokens=tokens, autocast=False, base_bytes=4, on_cpu=True)
    untouched = tokens * (4 * (entries - vocabulary) - memory.PAGE) if vocabulary < entries else 0
    expected = live.peak - given - untouched
    assert memory.cpu_head(setup, shape, backward=backward) == pytest.approx(expected, rel=0.06)


def test_an_update_of_all_weights_at_once_holds_another_copy_of_them() -> None:
    """With many trained weights and few tokens, the peak is in the optimizer's step."""
    few = {"rank": 256, "tokens": 16, "length": 16}
    assert traced(**few, optimizer="adamw_torch")["peak"] > traced(**few, optimizer="adamw_torch_fused")["peak"]


def test_what_is_not_traced_is_refused_at_once() -> None:
    with pytest.raises(InputError) as caught:
        trace(TINY, dataclasses.replace(SETUP, eight_bit=True, zero_stage=3, optimizer="adamw_8bit"))
    assert len(caught.value.problems) == 3


def test_what_upstream_cannot_trace_fails_with_its_reason() -> None:
    from sft_recipes.plan import fake_step

    with pytest.raises(ValueError, match="no_such_layer"):
        fake_step.step(TINY, dataclasses.replace(SETUP, targets=("no_such_layer",)))


def test_layers_need_not_be_alike() -> None:
    """A mixture of experts whose last layer is dense is traced layer by layer."""
    from sft_recipes.plan import fake_step

    mixture = {**TINY, "model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2}
    mixture |= {"moe_intermediate_size": 64, "num_hidden_layers": 2}
    setup = dataclasses.replace(SETUP, four_bit=False, targets=("q_proj",))
    alike, mixed = (fake_step.step(mixture | {"mlp_only_layers": layers}, setup) for layers in ([], [1]))
    hidden, experts, dense = (mixture[key] for key in ("hidden_size", "num_experts", "intermediate_size"))
    experts_bytes = 2 * (experts * 3 * hidden * mixture["moe_intermediate_size"] + experts * hidden)
    assert mixed["base"] - alike["base"] == 2 * 3 * hidden * dense - experts_bytes


def test_models_of_the_validation_have_their_published_sizes(validate: ModuleType) -> None:
    known = json.loads(validate.MODELS.read_text(encoding="utf-8")) | base_model.bundled()
    # The first Qwen's class is gone from transformers; its matrices are written as a Llama, without its biases.
    published = {name: facts["parameters"] for name, facts in known.items() if "as a Llama" not in facts["source"]}
    assert len(published) > 20
    for name, parameters in published.items():
        assert validate.model_of(name).elements() == parameters, name


def test_the_formula_is_near_every_published_measurement(validate: ModuleType) -> None:
    errors = [abs(row.error(row.formula)) for row in validate.published() if row.counted]
    assert len(errors) >= 20
    assert statistics.median(errors) <= 0.05
    assert max(errors) <= 0.12


def test_a_process_on_a_cpu_takes_what_the_plan_says(validate: ModuleType) -> None:
    _, rows = validate.processes()
    errors = {row.name: row.error(row.formula) for row in rows}
    assert abs(errors["1"]) <= 0.15, "the demo"
    assert sum(abs(error) <= 0.15 for error in errors.values()) >= 0.8 * len(errors)
    # Too low is the expensive direction.
    assert min(errors.values()) > -0.15


def test_the_page_shows_the_kept_results_and_today_s_formula(validate: ModuleType) -> None:
    text = validate.PAGE.read_text(encoding="utf-8")
    assert validate.render(text) == text, "run scripts/validate_memory.py"
