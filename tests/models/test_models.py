"""What is known of a model without its weights, against the real modules."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sft_recipes.errors import InputError
from sft_recipes.models import base_model, census
from sft_recipes.plan import job as jobs
from sft_recipes.recipes import recipe
from sft_recipes.runs.run import Run

# Before the tests put their own in its place (conftest.counted_here).
asked_apart = base_model._asked_apart


@pytest.mark.parametrize("name", base_model.bundled())
def test_a_bundled_config_builds_the_published_number_of_parameters(project: Path, name: str) -> None:
    model = base_model.find(name)
    assert model is not None
    assert model.elements() == base_model.bundled()[name]["parameters"]
    assert base_model.bundled()[name]["source"].startswith("https://huggingface.co/")


def test_every_hub_model_of_a_shipped_recipe_is_bundled() -> None:
    named = {recipe.load(name)["model_name_or_path"] for name in recipe.names()}
    assert {name for name in named if not name.startswith(".")} <= base_model.bundled().keys()


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["all-linear"], ["mlp.down_proj"]])
def test_adapter_and_four_bit_parameters_are_those_of_a_real_run(
    train_here: Callable[..., Run], targets: list[str]
) -> None:
    effect = train_here(lora_target_modules=targets, max_steps=1, warmup_steps=0).facts()["in_effect"]
    model = base_model.find("model")
    assert model is not None
    made = model.adapters(base_model.Asked(tuple(targets)))
    assert made.parameters(8) == effect["adapter"]["trainable_parameters"]
    assert made.modules == effect["adapter"]["modules"]
    assert model.elements() == effect["base"]["parameters"]
    assert model.four_bit_share == effect["base"]["four_bit_share"]


def test_experts_held_as_one_tensor_are_no_linear_layers(project: Path) -> None:
    config: dict[str, Any] = {"model_type": "qwen3_moe", "num_experts": 8, "num_hidden_layers": 2, "hidden_size": 64}
    config |= {"moe_intermediate_size": 32, "vocab_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    Path("moe").mkdir()
    Path("moe/config.json").write_text(json.dumps(config))
    model = base_model.find("./moe")
    assert model is not None
    experts = 2 * 8 * 3 * 64 * 32
    assert experts <= model.elements("other") < experts * 1.1
    assert model.four_bit_share < 0.8


def test_a_model_that_is_nowhere_is_not_known(project: Path) -> None:
    assert base_model.find("no/such-model") is None
    assert base_model.find("./nowhere") is None


@pytest.mark.slow
@pytest.mark.parametrize(("text", "message"), [("{", "cannot be read"), ('{"model_type": "no"}', "cannot build")])
def test_a_config_that_makes_no_model_is_refused(project: Path, text: str, message: str) -> None:
    Path("bad").mkdir()
    Path("bad/config.json").write_text(text)
    with pytest.raises(InputError, match=message):
        base_model.find("./bad")


def test_the_modules_are_counted_once(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = base_model.find("model")
    monkeypatch.setattr(base_model, "_asked_apart", None)
    assert base_model.find("model") == first


@pytest.mark.slow
def test_the_process_that_counts_gives_what_is_counted_here(project: Path) -> None:
    config = json.loads(Path("model/config.json").read_text())
    asked = {"config": config, "adapter": base_model.Asked(("all-linear",)).keys()}
    for question in ("parameters", "adapters"):
        assert asked_apart(question, asked) == json.loads(json.dumps(census.answer(question, asked)))


def test_arguments_that_the_model_has_no_value_for_are_refused(project: Path) -> None:
    job = jobs.resolve("tiny", overrides={"model_init_kwargs": {"rms_norm_eps": 0.5, "nonsense": 3, "variant": "x"}})
    with pytest.raises(
        InputError, match=r"^SET: model_init_kwargs: nonsense is no value of this model's config"
    ) as found:
        _ = job.model
    assert len(found.value.problems) == 1


@pytest.mark.parametrize("content", ["[]", "3", "{", "\xff"])
def test_a_config_that_is_none_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=r"config.json cannot be read as a model's config: "):
        base_model.find_config(str(tmp_path))


@pytest.mark.promise("foreign-run", "weights that are a pickle with code")
@pytest.mark.slow
def test_a_pickle_of_weights_that_would_run_code_is_refused_in_our_words(tmp_path: Path) -> None:
    import torch

    from sft_recipes.models.loading import refusals

    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "pwned",)

    torch.save({"weight": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError) as refused, refusals():
        torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    assert refused.value.problems == [
        "the weights are a pickle that holds more than tensors, which would run as code; name a checkpoint of "
        "safetensors"
    ]
    assert not (tmp_path / "pwned").exists()
