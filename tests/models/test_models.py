"""What is known of a model without its weights, against the real modules."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sft_recipes.demo import tiny
from sft_recipes.errors import InputError
from sft_recipes.models import base_model, census, conflicts
from sft_recipes.plan import job as jobs
from sft_recipes.plan import memory
from sft_recipes.recipes import recipe
from sft_recipes.runs.run import Run

pytest_plugins = ["forks"]

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


SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
QWEN3_MOE = {"model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144} | {
    "moe_intermediate_size": 768,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "vocab_size": 151936,
}
SMALL = {"hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32, "num_hidden_layers": 2} | {
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 8,
    "vocab_size": 128,
}


@pytest.mark.parametrize(
    ("config", "targets", "parameters", "modules"),
    [
        (QWEN3_MOE, ("all-linear",), 996_507_648, {"gate_up_proj": 48, "down_proj": 48, "gate": 48, "q_proj": 48}),
        (QWEN3_MOE, SEVEN, 994_836_480, {"gate_up_proj": 48, "down_proj": 48, "o_proj": 48}),
        (
            "gpt_oss",
            ("all-linear",),
            16 * 2 * (128 + 2 * 96 + 128),
            {"q_proj": 2, "k_proj": 2, "v_proj": 2, "o_proj": 2},
        ),
        ("mixtral", ("w1", "w2", "w3"), 16 * 2 * 4 * (2 * (64 + 192) + 96 + 64), {"gate_up_proj": 2, "down_proj": 2}),
        ("olmoe", ("all-linear",), None, {"gate_up_proj": 2, "down_proj": 2, "gate": 2, "o_proj": 2}),
        ("deepseek_v3", ("all-linear",), None, {"gate": 1, "gate_up_proj": 1, "kv_b_proj": 2}),
        ("gpt2", ("all-linear",), None, {"c_attn": 2, "c_proj": 4, "c_fc": 2}),
        ("bloom", ("all-linear",), None, {"query_key_value": 2, "dense": 2}),
        ("mpt", ("all-linear",), None, {"Wqkv": 2, "up_proj": 2}),
        ("qwen3", ("layers.1.self_attn.q_proj",), None, {"q_proj": 1}),
        # A linear layer of its own class, but one all the same.
        ("falcon", ("all-linear",), None, {"query_key_value": 2, "dense": 2}),
    ],
)
def test_what_is_adapted_is_what_peft_adapts(
    config: Any, targets: tuple[str, ...], parameters: int | None, modules: dict[str, int]
) -> None:
    """With the numbers that were reported, or PEFT's own on the real class."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    if isinstance(config, str):
        config = {"model_type": config, **SMALL, **SIZES.get(config, {})}
    made = base_model.from_config("a model", config, "a test").adapters(base_model.Asked(targets))
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(census.config_of(config))
        asked = targets[0] if targets == ("all-linear",) else list(targets)
        model = get_peft_model(plain, LoraConfig(r=16, target_modules=asked, task_type="CAUSAL_LM"))
    assert made.parameters(16) == sum(each.numel() for each in model.parameters() if each.requires_grad)
    assert parameters in (None, made.parameters(16))
    assert modules.items() <= made.modules.items() and not made.unmatched and made.refused is None


BEYOND_TEXT = {
    "qwen3_5": "Qwen3_5ForConditionalGeneration",
    "qwen3_5_moe": "Qwen3_5MoeForConditionalGeneration",
    "mllama": "MllamaForConditionalGeneration",
    "llama4": "Llama4ForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
    "mistral3": "Mistral3ForConditionalGeneration",
    "gemma3": "Gemma3ForConditionalGeneration",
    "gemma4": "Gemma4ForConditionalGeneration",
    "llava": "LlavaForConditionalGeneration",
    "phi4_multimodal": "Phi4MultimodalForCausalLM",
}


@pytest.mark.slow
@pytest.mark.parametrize(("family", "name"), BEYOND_TEXT.items())
def test_adapters_of_a_model_for_more_than_text_are_those_that_text_reaches(family: str, name: str) -> None:
    """Of the class that its config names, which is the one that SFTTrainer loads; made as small as for a rehearsal."""
    import torch
    from peft import get_peft_model
    from transformers import AutoConfig
    from trl import ModelConfig

    config = AutoConfig.for_model(family).to_dict() | {"architectures": [name]}
    small = tiny.shrunk({"pad_token_id": None, **config}, vocabulary=320)
    base = census.build(small)
    assert type(base).__name__ == name
    arguments = ModelConfig(use_peft=True, lora_r=2, lora_dropout=0.0, lora_target_modules=["all-linear"])
    model = get_peft_model(base, census.lora_config(arguments, census.beside_text(base)))
    text = torch.arange(10, 18)[None]
    # Gemma wants to be told which tokens are pictures, as SFTTrainer does.
    types = {"token_type_ids": text * 0, "mm_token_type_ids": text * 0} if family.startswith("gemma") else {}
    outputs = model.train()(input_ids=text, attention_mask=torch.ones_like(text), use_cache=False, **types)
    outputs.logits.float().logsumexp(-1).sum().backward()
    trained = {path: each for path, each in model.named_parameters() if each.requires_grad}
    assert trained and not [path for path, each in trained.items() if each.grad is None]
    counted = base_model.from_config(family, small.to_dict() | {"architectures": [name]}, "a test")
    made = counted.adapters(base_model.Asked(("all-linear",)))
    assert made.parameters(2) == sum(each.numel() for each in trained.values())
    assert counted.elements() == sum(each.numel() for each in base.parameters() if not each.requires_grad)


# How these call what SMALL has, or what their sizes must be to go together.
SIZES: dict[str, dict[str, Any]] = {
    "gpt_oss": {"head_dim": 16, "layer_types": ["full_attention"] * 2},
    "deepseek_v3": {"n_group": 2, "topk_group": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4},
    "bloom": {"n_layer": 2, "n_head": 4},
    "mpt": {"d_model": 64, "n_layers": 2, "n_heads": 4},
}


def asked_of(recipe_keys: dict[str, Any], config: dict[str, Any]) -> list[str]:
    values = {key: recipe.Value(value, "a test") for key, value in recipe_keys.items()}
    model = base_model.from_config("org/model", {"architectures": ["X"], **config}, "a test")
    return [str(each) for each in conflicts.of_model(model, recipe.Recipe("test", values))]


@pytest.mark.parametrize(
    ("asked", "refused"),
    [
        ({"lora_target_modules": ["q_proj", "q_porj"]}, "lora_target_modules: q_porj matches no module of org/model"),
        ({"lora_target_modules": ["all-linear", "q_proj"]}, r"all-linear matches .*; or \[all-linear\], alone"),
        ({"lora_modules_to_save": ["embed_tokens", "norms"]}, "lora_modules_to_save: norms matches no module"),
        ({"lora_target_parameters": ["mlp.experts.up"]}, "its experts are model.layers.*.mlp.experts.down_proj"),
        ({"lora_target_modules": ["gate_proj"]}, "gate_proj without also targeting up_proj"),
        (
            {"lora_target_modules": ["all-linear"], "lora_dropout": 0.1},
            "on down_proj, gate, gate_up_proj need",
        ),
        ({"lora_target_modules": ["all-linear"], "use_dora": True}, "does not work with use_dora=True"),
        ({"lora_target_modules": ["lm_head"]}, "names lm_head, which SFTTrainer refuses"),
        ({"lora_target_modules": ["all-linear"]}, None),
        ({"lora_target_modules": list(SEVEN), "lora_modules_to_save": ["lm_head"]}, None),
    ],
)
def test_what_peft_does_not_make_is_refused(asked: dict[str, Any], refused: str | None) -> None:
    given = {"use_peft": True, "lora_target_modules": ["q_proj"], "lora_dropout": 0.0, **asked}
    found = asked_of(given, {"model_type": "qwen3_moe", **SMALL, "architectures": ["Qwen3MoeForCausalLM"]})
    assert len(found) == (refused is not None), found
    assert refused is None or re.search(refused, found[0]), found


BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"} | {
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": "bfloat16",
}
FOUR = {"load_in_4bit": True, "use_bnb_nested_quant": True, "dtype": "bfloat16"}


@pytest.mark.parametrize(
    ("stored", "asked", "refused"),
    [
        (BNB, FOUR, None),
        (
            BNB,
            {},
            "stored quantised by bitsandbytes, with load_in_4bit: true; write the same, or choose",
        ),
        (BNB, FOUR | {"dtype": "float16"}, "with dtype: bfloat16; write the same"),
        (BNB | {"bnb_4bit_quant_type": "fp4"}, FOUR, "with bnb_4bit_quant_type: fp4; write the same"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, FOUR, r"already \(gptq\).*; choose its unquantised"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, {}, None),
    ],
)
def test_a_checkpoint_that_is_stored_quantised_is_asked_for_as_it_is(
    stored: dict[str, Any], asked: dict[str, Any], refused: str | None
) -> None:
    config = {"model_type": "qwen3", **SMALL, "architectures": ["Qwen3ForCausalLM"], "quantization_config": stored}
    found = asked_of({"use_peft": True, "lora_target_modules": ["q_proj"], **asked}, config)
    assert len(found) == (refused is not None), found
    assert refused is None or re.search(refused, found[0]), found


@pytest.mark.parametrize(
    ("stored", "bits"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, 4 + 20 / 128),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, 8),
        ({"quant_method": "fp8"}, 8),
        ({"quant_method": "mxfp4"}, None),
        (None, None),
    ],
)
def test_weights_that_are_stored_quantised_are_counted_so(stored: dict[str, Any] | None, bits: float | None) -> None:
    plain = {"model_type": "qwen3", **SMALL}
    model = base_model.from_config("x", plain | ({"quantization_config": stored} if stored else {}), "a test")
    quantised, _ = memory.base_weights(model, memory.Setup())
    assert model.stored_bits == bits and quantised == model.elements("linear") * (bits or 0) / 8
    assert bool(memory.not_counted(model, memory.Setup())) == (stored is not None and bits is None)


def test_modules_that_are_trained_whole_are_counted() -> None:
    """An 8B model's embedding and head: 1.2 billion parameters, 20 GB of weights, gradients and state in float32."""
    model = base_model.find("Qwen/Qwen3-8B")
    assert model is not None
    both = 2 * 151936 * 4096
    one, other = (memory.Setup(targets=("q_proj",), saved=saved) for saved in ((), ("embed_tokens", "lm_head")))
    assert memory.adapted_parameters(model, other) - memory.adapted_parameters(model, one) == both
    more = memory.estimate(model, other).static - memory.estimate(model, one).static
    assert more == both * 16


@pytest.mark.parametrize(
    ("model_type", "limit"),
    [
        ("gpt2", (1024, True)),
        ("opt", (2048, True)),
        ("mpt", (2048, True)),
        ("bloom", (None, False)),
        ("qwen3", (32768, False)),
    ],
)
def test_positions_end_where_they_are_learned(model_type: str, limit: tuple[int | None, bool]) -> None:
    from transformers import AutoConfig

    config = AutoConfig.for_model(model_type).to_dict() | {"num_hidden_layers": 1, "n_layer": 1, "n_layers": 1}
    config.pop("layer_types", None)
    assert base_model.from_config(model_type, config, "a test").positions == limit


def test_a_model_that_is_nowhere_is_not_known(project: Path) -> None:
    assert base_model.find("no/such-model") is None
    assert base_model.find("./nowhere") is None


@pytest.mark.usefixtures("forks")
@pytest.mark.parametrize(
    ("text", "message"),
    # With the reason of the process that tried.
    [("{", "cannot be read"), ('{"model_type": "no"}', r"cannot build .* from this config: ValueError: .*\bno\b")],
)
def test_a_config_that_makes_no_model_is_refused(project: Path, text: str, message: str) -> None:
    Path("bad").mkdir()
    Path("bad/config.json").write_text(text)
    with pytest.raises(InputError, match=message):
        base_model.find("./bad")


def test_the_modules_are_counted_once(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = base_model.find("model")
    monkeypatch.setattr(base_model, "_asked_apart", None)
    assert base_model.find("model") == first


@pytest.mark.usefixtures("forks")
def test_the_process_that_counts_gives_what_is_counted_here(project: Path) -> None:
    config = json.loads(Path("model/config.json").read_text())
    asked = {"config": config, "adapter": base_model.Asked(("all-linear",)).keys()}
    assert asked_apart("adapters", asked) == json.loads(json.dumps(census.answer("adapters", asked)))


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
