import shlex
from pathlib import Path

import pytest

from sft_recipes.errors import InputError
from sft_recipes.models import base_model
from sft_recipes.plan import memory
from sft_recipes.plan.fit import Fit, fit
from sft_recipes.plan.memory import Setup
from sft_recipes.recipes import recipe, topology

GIB = 2**30


def fitted(number: int, vram_gib: float, *overrides: str, lengths: tuple[int, ...] = ()) -> Fit:
    asked = recipe.load("default", recipe.parse_overrides(overrides))
    model = base_model.find(asked["model_name_or_path"])
    assert model is not None
    rows = {length: lengths.count(length) for length in lengths}
    return fit(asked, model, rows, 1.0, number, vram_gib)


@pytest.fixture(autouse=True)
def here(project: Path) -> None:
    """In a directory with the shipped recipes and accelerate configs."""


@pytest.mark.parametrize(("number", "vram"), [(1, 80), (4, 80), (1, 24), (2, 16), (1, 8)])
def test_the_line_is_a_recipe_that_keeps_the_global_batch_and_fits(number: int, vram: float) -> None:
    found = fitted(number, vram)
    assert found.best is not None
    words = dict(word.split("=", 1) for word in shlex.split(found.best.line))
    assert int(words["GPUS"]) == number
    asked = recipe.load("default", recipe.parse_overrides(words["SET"]))
    chosen = topology.read(words["ACCEL"], "test", number)
    steps = topology.resolve(asked, chosen)["gradient_accumulation_steps"]
    assert steps * asked["per_device_train_batch_size"] * number == 64
    model = base_model.find("Qwen/Qwen3-8B")
    assert model is not None
    setup = Setup.of(asked, chosen, asked["per_device_train_batch_size"] * 512, 512)
    assert memory.estimate(model, setup).allocated <= memory.HEADROOM * vram * GIB


def test_what_fits_without_checkpointing_has_none() -> None:
    found = fitted(4, 80)
    assert found.best is not None
    assert found.best.line == 'SET="per_device_train_batch_size=16 activation_checkpointing=false" ACCEL=ddp GPUS=4'
    assert "whole share of the global batch" in found.reason
    assert any("with checkpointing 16 rows fit" in sentence for sentence in found.tried)


def test_a_small_gpu_gets_checkpointing_and_the_reason() -> None:
    found = fitted(1, 8)
    assert found.best is not None and found.best.checkpointing
    assert found.best.topology.name == "single_gpu"
    assert any(sentence.startswith("without checkpointing 1 row already needs") for sentence in found.tried)


def test_weights_are_sharded_only_where_they_do_not_fit() -> None:
    found = fitted(4, 16, "load_in_4bit=false")
    assert found.best is not None and found.best.topology.name == "zero3"
    assert any(sentence.startswith("ddp needs") for sentence in found.tried)
    whole = fitted(4, 80, "load_in_4bit=false")
    assert whole.best is not None and whole.best.topology.name == "ddp"


def test_full_fine_tuning_tries_zero2_first() -> None:
    found = fitted(4, 80, "load_in_4bit=false", "use_peft=false")
    assert found.best is not None and found.best.topology.name == "zero2"


def test_enough_tokens_are_enough() -> None:
    found = fitted(1, 141, "max_length=4096", "packing=true", "lora_dropout=0")
    assert found.best is not None and found.best.rows == 4
    assert "save little" in found.reason


def test_real_lengths_allow_larger_micro_batches_than_max_length() -> None:
    limit, real = fitted(1, 24, "max_length=2048"), fitted(1, 24, "max_length=2048", lengths=(200,) * 99 + (600,))
    assert limit.best is not None and real.best is not None
    assert real.best.rows > limit.best.rows


def test_when_nothing_fits_it_says_how_much_is_missing_and_what_helps() -> None:
    found = fitted(1, 3, "load_in_4bit=false", "max_length=8192", "attn_implementation=eager")
    assert found.best is None
    assert "nothing fits 1 GPU of 3 GiB" in found.reason and "more than the 2.5 GiB allowed" in found.reason
    text = "\n".join(found.instead)
    for remedy in ("SET=load_in_4bit=true", "SET=max_length=4096", "SET=attn_implementation=sdpa", "ACCEL=zero3"):
        assert remedy in text
    assert {sentence.split()[0] for sentence in found.tried} == {"single_gpu", "zero3_offload"}


def test_the_batch_of_an_evaluation_must_fit_too() -> None:
    found = fitted(1, 24, "per_device_eval_batch_size=512", "max_length=2048")
    assert found.best is None
    assert any("SET=per_device_eval_batch_size=1, which needs" in remedy for remedy in found.instead)
    without = ("max_length=2048", "eval_strategy=no", "load_best_model_at_end=false", "early_stopping_patience=0")
    assert fitted(1, 24, "per_device_eval_batch_size=512", *without).best is not None


def test_offloading_is_the_last_resort_and_comes_with_what_would_spare_it() -> None:
    found = fitted(1, 16, "load_in_4bit=false")
    assert found.best is not None and found.best.topology.name == "zero3_offload"
    assert any("SET=load_in_4bit=true" in text and "still too much" not in text for text in found.instead)


def test_a_backend_that_cannot_run_the_recipe_is_passed_over_with_its_reason() -> None:
    found = fitted(4, 6, "bnb_4bit_quant_storage=uint8")
    assert any("ZeRO-3 can only partition 4-bit weights" in sentence for sentence in found.tried)


def test_a_batch_that_cannot_be_shared_out_is_refused() -> None:
    with pytest.raises(InputError, match="works: GPUS 1, 2"):
        fitted(3, 80)
