"""How an adapter begins: what is taken ends in an adapter of the base as it was, and everything else is refused."""

import json
import typing
from collections.abc import Callable
from typing import Any

import pytest
import torch
from exactness import everything, same
from finished import FLOAT32
from peft import LoraConfig, PeftModel
from test_resume import NO_EVALUATION, back, kill
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from sft_recipes.errors import InputError
from sft_recipes.launch import launch
from sft_recipes.plan import job as jobs
from sft_recipes.plan import plan
from sft_recipes.recipes import schema
from sft_recipes.runs.run import Run
from sft_recipes.train import train as worker

pytest_plugins = ["finished"]

TABLE = schema.DATA["inits"]
SHORT = NO_EVALUATION | {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
TOKENS = torch.arange(5, 25).reshape(2, 10)
REFUSED = [(name, why) for why, names in TABLE["refused"].items() for name in names]


def test_all_that_peft_knows_is_taken_or_refused() -> None:
    hint = typing.get_type_hints(LoraConfig)["init_lora_weights"]
    known = {value for part in typing.get_args(hint) for value in typing.get_args(part)}
    # Its annotation leaves one out that it draws.
    known = {name.partition("_niter_")[0] for name in known} | {"lora_ga"}
    assert known == {*TABLE["taken"], *(name for name, _ in REFUSED if name)}


@pytest.mark.parametrize(
    ("init", "said", "values"),
    [
        *((name, why, {}) for name, why in REFUSED),
        ("pissa_niter_4", "moves a part of the base's weights into the adapter", {}),
        ("gausian", "is not one of true, gaussian, orthogonal; set init_lora_weights: gaussian", {}),
        ("orthogonal", "cannot be drawn on a quantised base; set init_lora_weights: gaussian", {}),
        ("orthogonal", "needs an even rank, and lora_r is 7; set lora_r: 8", FLOAT32 | {"lora_r": 7}),
        ("gaussian", "needs an adapter, and use_peft is false; drop it", FLOAT32 | {"use_peft": False}),
    ],
)
def test_what_would_not_be_right_is_refused_by_plan_and_train(
    project: Any, init: Any, said: str, values: dict[str, Any]
) -> None:
    overrides = values | {"init_lora_weights": init}
    with pytest.raises(InputError) as planned:
        plan.plan("tiny", overrides=overrides)
    with pytest.raises(InputError) as trained:
        launch.train("tiny", overrides=overrides)
    (problem,) = trained.value.problems
    assert [problem] == planned.value.problems
    assert problem.startswith(f"SET: init_lora_weights: {schema.as_yaml(init)} ") and said in problem


@pytest.mark.slow
@pytest.mark.parametrize("init", TABLE["taken"])
def test_an_adapter_begins_as_no_change_of_the_base(init: str, project: Any) -> None:
    overrides = [f"{key}={json.dumps(value)}" for key, value in FLOAT32.items()]
    run = launch.create(jobs.check("tiny", overrides=overrides), "begun")
    model = worker.build(run.values(), init_lora_weights=init).model.eval()
    plain = AutoModelForCausalLM.from_pretrained("model", dtype=torch.float32)
    with torch.no_grad():
        assert torch.allclose(model(input_ids=TOKENS).logits, plain(input_ids=TOKENS).logits, atol=1e-5)
    layer = next(module for name, module in model.named_modules() if name.endswith("layers.0.self_attn.q_proj"))
    a, b = (each["default"].weight.detach() for each in (layer.lora_A, layer.lora_B))
    if init == "gaussian":
        assert not b.any() and abs(float(a.std()) * 8 - 1) < 0.2
    else:
        # Each of the two has half of the rank, and none of the other's half.
        assert [int(torch.linalg.matrix_rank(each)) for each in (a, b)] == [4, 4]


def test_it_ends_as_an_adapter_of_the_base_as_it_was(
    train_here: Callable[..., Run], merge_here: Callable[..., Any]
) -> None:
    run = train_here(**FLOAT32, **SHORT, init_lora_weights="orthogonal")
    # On the same base, quantised, as whoever has the adapter may load it; PEFT could not draw another there.
    four_bit = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    quantised = AutoModelForCausalLM.from_pretrained("model", quantization_config=four_bit, device_map={"": "cpu"})
    PeftModel.from_pretrained(quantised, run.adapter)
    assert [*run.directory.rglob("README.md")] == [], "no card of PEFT's or TRL's, which says nothing"
    proof = merge_here(run.name)[1]
    assert proof["refused"] is None and proof["kl"] < 1e-6 < proof["effect"]["kl"]

    whole = everything(run)
    kill(run, 2)
    train_here(run=back(run))
    same(everything(run), whole)
