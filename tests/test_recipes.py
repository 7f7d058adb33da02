"""The shipped recipes: the values they are known for, what each states, and that TRL reads them as they are."""

import re
from pathlib import Path
from typing import Any

import pytest

from sft_recipes import recipe as recipes
from sft_recipes import topology
from sft_recipes.errors import InputError
from sft_recipes.recipe import Recipe, load, read

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(path.stem for path in (ROOT / "accelerate_configs").glob("*.yaml"))
NAMES = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))

# What the founding document specifies, by the names that TRL has today.
DIFFERENT: dict[str, tuple[Any, Any, Any, Any]] = {
    "lora_r": (32, 64, 32, 16),
    "lora_alpha": (32, 64, 32, 16),
    "num_train_epochs": (3, 3, 3, 1),
    "per_device_train_batch_size": (4, 4, 2, 4),
    "gradient_accumulation_steps": (4, 4, 8, 4),
    "max_length": (512, 512, 256, 512),
    "warmup_steps": (100, 100, 100, 50),
    "early_stopping_patience": (2, 2, 2, 0),
}
PRESETS = ("default", "high_capacity", "memory_efficient", "quick_test")
SAME = {
    "learning_rate": 2e-4,
    "lora_dropout": 0.05,
    "lora_target_modules": ["q_proj", "v_proj"],
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "lr_scheduler_type": "cosine",
    "optim": "adamw_torch",
    "use_peft": True,
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "use_bnb_nested_quant": True,
    "dtype": "bfloat16",
    "bf16": True,
    "activation_checkpointing": True,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "early_stopping_threshold": 0.01,
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_loss",
    "greater_is_better": False,
    "report_to": "tensorboard",
    "global_batch_size": 64,
}


@pytest.fixture(autouse=True)
def in_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def resolved(name: str, config: str = "ddp", processes: int | None = None) -> Recipe:
    return topology.resolve(load(name), topology.read(config, "a test", processes))


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_the_values_of_the_founding_document(name: str) -> None:
    expected = SAME | {key: values[PRESETS.index(name)] for key, values in DIFFERENT.items()}
    recipe = resolved(name)
    assert {key: recipe[key] for key in expected} == expected


def test_the_default_states_what_it_is_known_for() -> None:
    """So that no default of a library, which may change with an upgrade, decides it."""
    derived = {"gradient_accumulation_steps"}
    assert (SAME.keys() | DIFFERENT.keys()) - derived <= read(Path("recipes/default.yaml")).keys()


@pytest.mark.parametrize("name", NAMES)
def test_a_variant_states_only_what_differs_from_its_base(name: str) -> None:
    stated = {key: item.value for key, item in read(Path("recipes") / f"{name}.yaml").items()}
    base = stated.pop("extends", None)
    if base is None:
        assert name in ("default", "demo")
        return
    # The demo is another model on another machine; the others try one idea each.
    assert 0 < len(stated) <= (30 if name == "demo" else 15)
    inherited = load(base)
    assert [key for key, value in stated.items() if inherited[key] == value] == []


def test_every_recipe_says_its_idea_in_a_sentence_of_its_own() -> None:
    ideas = [load(name)["description"] for name in NAMES]
    assert all(re.fullmatch(r"[A-Z].{20,110}\.", idea) for idea in ideas)
    assert len(set(ideas)) == len(NAMES)


@pytest.mark.parametrize("processes", [1, 2, 4, 8])
@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_keeps_its_global_batch_on_any_number_of_processes(name: str, processes: int) -> None:
    recipe = resolved(name, processes=processes)
    assert recipe["per_device_train_batch_size"] * recipe["gradient_accumulation_steps"] * processes == 64


@pytest.mark.parametrize("processes", [3, 5])
@pytest.mark.parametrize("name", PRESETS)
def test_a_number_of_processes_that_cannot_keep_it_is_refused_with_numbers_that_can(name: str, processes: int) -> None:
    with pytest.raises(InputError, match=rf"Works: GPUS 1, 2, 4, 8 or global_batch_size {64 - 64 % (4 * processes)}$"):
        resolved(name, processes=processes)


# TRL's own parser


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", NAMES)
def test_the_strict_parser_of_trl_reads_a_resolved_recipe_as_it_is(name: str, config: str, tmp_path: Path) -> None:
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, SFTConfig, TrlParser

    try:
        recipe = resolved(name, config)
    except InputError:
        # FSDP2 is for a base without quantisation; other recipes than the presets need not fit everywhere.
        assert config == "fsdp2" or name not in PRESETS
        return
    plain = recipe.upstream() | {"output_dir": str(tmp_path / "out"), "dataset_name": "org/rows"}
    path = tmp_path / "plain.yaml"
    path.write_text(recipes.dump(plain), encoding="utf-8")
    parser = TrlParser((ScriptArguments, SFTConfig, ModelConfig, DatasetMixtureConfig))
    script, training, model, _ = parser.parse_args_and_config(["--config", str(path), "--use_cpu", "true"])
    for key, value in plain.items():
        (holder,) = [part for part in (script, training, model) if hasattr(part, key)]
        if key == "report_to" and isinstance(value, str):
            value = [] if value == "none" else [value]
        if key == "use_cpu":
            continue
        if key == "lora_target_modules" and len(value) == 1:
            # TRL hands PEFT a text then, which `train.train` undoes for all but all-linear.
            value = value[0]
        assert getattr(holder, key) == value, key


def test_no_preset_is_refused_by_its_own_accelerate_config() -> None:
    for name in NAMES:
        assert resolved(name, load(name)["accelerate_config"] or "cpu")["gradient_accumulation_steps"] >= 1


def test_these_recipes_are_shipped() -> None:
    assert recipes.names() == ["default", "demo", "high_capacity", "memory_efficient", "quick_test"]
