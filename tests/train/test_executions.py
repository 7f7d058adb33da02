"""What `execution: auto` may choose computes the same: losses and gradients of each architecture, and whole steps."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from sft_recipes.demo import tiny
from sft_recipes.models import base_model, census
from sft_recipes.plan import execution

# Of rows that differ in length, so that padding is much of the batch.
LENGTHS = (37, 5, 21, 64)
# Sizes that other architectures say in other words than those that `tiny.shrunk` knows.
SMALL = {"num_experts": 8, "num_local_experts": 8, "ffn_hidden_size": 128}


def tiny_of(kind: str) -> Any:
    bundled = (base_model.find_config(name, "main") for name in base_model.bundled())
    config = next((found[0] for found in bundled if found and found[0]["model_type"] == kind), None)
    if config is None:
        config = AutoConfig.for_model(kind).to_dict() | {"architectures": [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind]]}
    small = tiny.shrunk(config, 256)
    small.pad_token_id = 0
    text = small.get_text_config()
    for key, value in SMALL.items():
        if hasattr(text, key):
            setattr(text, key, value)
    if getattr(text, "intermediate_size", 0) > 1000:
        text.intermediate_size = 128
    torch.manual_seed(0)
    return census.build(small, dtype=torch.float32, attn_implementation="eager").eval()


def joined_apart(model: Any) -> float:
    """How far the gradients of joined rows are from those of padded ones, as a share of the largest."""
    generator = torch.Generator().manual_seed(0)
    rows = [{"input_ids": torch.randint(3, 200, (length,), generator=generator).tolist()} for length in LENGTHS]
    found = []
    for free in (False, True):
        collate = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=free)
        batch = collate([row | {"labels": [-100, -100, *row["input_ids"][2:]]} for row in rows])
        labels = batch.pop("labels")
        model.zero_grad()
        logits = model(**batch, use_cache=False).logits
        # The mean over the supervised tokens of all rows, as a step has it.
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        loss.backward()
        found.append([loss.detach(), *(each.grad.clone() for each in model.parameters() if each.grad is not None)])
    largest = max(float(each.abs().max()) for each in found[0])
    return max(float((one - other).abs().max()) for one, other in zip(*found, strict=True)) / largest


@pytest.mark.parametrize("kind", sorted(execution.APART))
def test_joined_rows_have_the_losses_and_gradients_of_padded_ones(kind: str) -> None:
    model = tiny_of(kind)
    for attention in execution.MASKED:
        model.set_attn_implementation(attention)
        assert joined_apart(model) < 1e-5, attention


@pytest.mark.parametrize("kind", sorted(execution.MIXED))
def test_rows_that_are_joined_see_each_other_in_some_architectures(kind: str) -> None:
    """When upstream has mended one of these, it belongs to the others."""
    assert joined_apart(tiny_of(kind)) > 1e-4


# Nothing but steps, without anything drawn at random and in one precision.
PLAIN = {
    "lora_dropout": 0.0,
    "dtype": "float32",
    "bf16": False,
    "load_in_4bit": False,
    "max_steps": 3,
    "eval_strategy": "no",
    "load_best_model_at_end": False,
    "early_stopping_patience": 0,
    "save_strategy": "no",
}
# What is chosen on a GPU alone.
ON_A_GPU = {
    "per_device_train_batch_size": 8,
    "padding_free": True,
    "max_length": None,
    "activation_checkpointing_kwargs": {"selective": True, "use_reentrant": False},
}


def test_what_is_chosen_learns_the_same(project: Path, train_here: Callable[..., Any]) -> None:
    """Step by step as it is written: loss, gradient and tokens, to 1e-5 of each; and what ran is in run.json."""
    tiny_recipe = Path("recipes/tiny.yaml")
    checkpointed = tiny_recipe.read_text().replace("activation_checkpointing: false\n", "")
    tiny_recipe.write_text(checkpointed + "per_device_train_batch_size: 2\n")
    ways = {"as_written": {}, "auto": {"execution": "auto"}, "gpu": ON_A_GPU, "sorted": {"sort_within_batch": True}}
    runs = {name: train_here(name=name, **PLAIN, **asked) for name, asked in ways.items()}
    steps = {name: [each for each in run.log_entries() if "loss" in each] for name, run in runs.items()}
    for name in ("auto", "gpu", "sorted"):
        for ours, written in zip(steps[name], steps["as_written"], strict=True):
            assert ours["num_tokens"] == written["num_tokens"]
            for key in ("loss", "grad_norm", "learning_rate"):
                assert ours[key] == pytest.approx(written[key], rel=1e-5), (name, key)
    facts, values = runs["auto"].facts(), runs["auto"].values()
    assert facts["own"]["execution"] == "auto"
    chosen = {key for key, origin in facts["origins"].items() if origin.startswith("execution: auto (")}
    assert chosen == {"per_device_train_batch_size", "activation_checkpointing", "sort_within_batch", "optim"}
    assert (values["optim"], values["activation_checkpointing"]) == ("adamw_torch_fused", False)
    effects = [run.facts()["in_effect"]["run"] for run in runs.values()]
    assert [effect["effective_batch"] for effect in effects] == [8, 8, 8, 8]
    assert json.dumps(values["gradient_accumulation_steps"]) == "2"
