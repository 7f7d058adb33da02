"""The shipped recipes: the values they are known for, what each states, and that TRL reads them as they are."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, alpaca_rows, write_rows

from sft_recipes.demo import tiny
from sft_recipes.errors import InputError
from sft_recipes.launch import launch, rehearse
from sft_recipes.plan import fit, plan
from sft_recipes.plan import job as jobs
from sft_recipes.recipes import recipe as recipes
from sft_recipes.recipes import topology, why
from sft_recipes.recipes.recipe import Recipe, load, read

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
# The recipes that others extend: what the founding document specifies, and what the evidence asks for.
BASES = ("default", "all_linear")
PRESETS = ("default", "high_capacity", "memory_efficient", "quick_test")
# Where the others are tried that are not for one GPU.
ACCELS = {"full_finetune": "zero3", "laptop": "cpu", "demo": "cpu"}
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
    derived = {"gradient_accumulation_steps", "greater_is_better"}
    assert (SAME.keys() | DIFFERENT.keys()) - derived <= read(Path("recipes/default.yaml")).keys()


@pytest.mark.parametrize("name", NAMES)
def test_a_variant_states_only_what_differs_from_its_base(name: str) -> None:
    stated = {key: item.value for key, item in read(Path("recipes") / f"{name}.yaml").items()}
    base = stated.pop("extends", None)
    if base is None:
        assert name in BASES
        return
    # The demo is another model on another machine; the others try one idea each.
    assert 0 < len(stated) <= (30 if name == "demo" else 10)
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


# What a topology derives is the same of every recipe.
PARSED = [
    *((name, config) for name in PRESETS for config in CONFIGS),
    *((name, ACCELS.get(name, "single_gpu")) for name in NAMES if name not in PRESETS),
]


@pytest.mark.parametrize(("name", "config"), PARSED)
def test_the_strict_parser_of_trl_reads_a_resolved_recipe_as_it_is(name: str, config: str, tmp_path: Path) -> None:
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, SFTConfig, TrlParser

    try:
        recipe = resolved(name, config)
    except InputError:
        # It is for a base without quantisation.
        assert config == "fsdp2"
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
    shipped = [*PRESETS, "demo", *IDEAS]
    assert recipes.names() == ["default", *sorted(set(shipped) - {"default"})]


# The recipes beyond the founding document

# What each is for, in the values that make it so.
IDEAS: dict[str, dict[str, Any]] = {
    "all_linear": {
        "lora_target_modules": ["all-linear"],
        "lora_r": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.0,
        "learning_rate": 2e-4,
        "num_train_epochs": 2,
        "global_batch_size": 16,
        "warmup_steps": 0.03,
        "weight_decay": 0.0,
        "max_length": 1024,
        "eval_steps": 0.1,
        "load_in_4bit": True,
    },
    "high_capacity_all_linear": {"lora_r": 64, "lora_alpha": 32},
    "small_data": {"global_batch_size": 8, "num_train_epochs": 4, "lora_dropout": 0.05, "validation_split_size": 0.2},
    "long_context": {"max_length": 8192, "packing": True, "activation_checkpointing": True},
    "lora_bf16": {"load_in_4bit": False, "use_peft": True, "dtype": "bfloat16"},
    "full_finetune": {"use_peft": False, "load_in_4bit": False, "accelerate_config": "zero3", "learning_rate": 2e-5},
    "single_24gb": {"accelerate_config": "single_gpu", "load_in_4bit": True, "global_batch_size": 16},
    "laptop": {"accelerate_config": None, "load_in_4bit": False, "dtype": "float32", "bf16": False},
    "chat": {"data_format": "messages", "assistant_only_loss": True, "max_length": 2048},
    "classification": {"task": "classification", "test_file": "data/test.jsonl"},
}


@pytest.mark.parametrize("name", IDEAS)
def test_a_recipe_has_the_values_that_its_idea_needs(name: str) -> None:
    recipe = load(name)
    assert {key: recipe[key] for key in IDEAS[name]} == IDEAS[name]


def with_rows(directory: Path) -> None:
    """The files that the shipped recipes name, as a user has them; `project` has the training rows."""
    write_rows(directory / "data" / "test.jsonl", alpaca_rows(16, seed=3))
    shutil.copytree(ROOT / "data" / "demo", directory / "data" / "demo")
    turns = [
        {
            "messages": [
                {"role": "user", "content": row["input"]},
                {"role": "assistant", "content": row["output"]},
                {"role": "user", "content": "And in words?"},
                {"role": "assistant", "content": f"It is {row['output']}."},
            ]
        }
        for row in alpaca_rows(64, seed=4)
    ]
    write_rows(directory / "data" / "conversations.jsonl", turns)


def test_plan_tells_every_recipe_from_every_other(project: Path) -> None:
    """On the same rows and the same topology, by what plan computes; a recipe that it cannot tell is not shipped."""
    with_rows(project)
    # From a few tokens to more than any recipe keeps.
    lengths = [2 ** (n % 14) for n in range(200)]
    rows = [
        {"instruction": "Count.", "input": f"{n} " + "red " * size, "output": ["odd", "even"][n % 2]}
        for n, size in enumerate(lengths)
    ]
    write_rows(project / "data" / "train.jsonl", rows)
    same = "train_file=data/train.jsonl data_format=auto validation_file=null group_column=null"
    seen: dict[str, str] = {}
    for name in NAMES:
        model = " model_name_or_path=Qwen/Qwen3-0.6B" if name == "demo" else ""
        test = " test_file=data/test.jsonl" if load(name)["task"] else ""
        figures = plan.plan(name, accel="single_gpu", overrides=[same + model + test])
        kept = ("model", "data", "evaluation", "batch", "schedule", "adapter", "memory")
        text = json.dumps({key: figures[key] for key in kept}, sort_keys=True)
        assert text not in seen, f"plan says the same of {name} and {seen.get(text)}"
        seen[text] = name


def memory_of(name: str, gpu: str | None = None, accel: str | None = None) -> dict[str, Any]:
    """What plan says of a recipe's memory without rows: of a micro-batch of rows as long as max_length."""
    return plan.plan(name, gpu=gpu, accel=accel)["memory"]


def test_what_the_recipes_say_of_memory_is_what_plan_computes() -> None:
    gib = 2**30
    assert memory_of("laptop", accel="cpu")["process"] < 10 * gib
    assert memory_of("single_24gb", "rtx-4090")["fits"]
    assert memory_of("lora_bf16", "a100-80gb")["fits"]
    assert memory_of("long_context", "a100-80gb")["tokens"] == 8192
    assert memory_of("long_context", "a100-80gb")["fits"]
    assert memory_of("full_finetune", "a100-80gb")["fits"]


def test_single_24gb_has_the_micro_batch_that_fit_finds() -> None:
    found = fit.fit(*plan.to_fit("all_linear", []), 1, 24)
    assert found.best is not None
    assert found.best.rows == load("single_24gb")["per_device_train_batch_size"]


def test_the_adapters_have_the_sizes_that_their_comments_say() -> None:
    def parameters(name: str) -> int:
        return plan.plan(name)["adapter"]["trainable_parameters"]

    # "three times its parameters", "four times the rank", "four times the default's steps", "32,768 tokens a step" and
    # "nearly three times the memory for the base".
    assert round(parameters("all_linear") / parameters("default")) == 3
    assert parameters("high_capacity_all_linear") == 4 * parameters("all_linear")
    assert load("default")["global_batch_size"] == 4 * load("all_linear")["global_batch_size"]
    assert load("long_context")["global_batch_size"] * load("long_context")["max_length"] == 32_768
    base = [
        parts["quantised"] + parts["unquantised"]
        for parts in (memory_of(name)["components"] for name in ("lora_bf16", "all_linear"))
    ]
    assert 2.5 < base[0] / base[1] < 3


@pytest.mark.parametrize("name", [name for name in NAMES if name not in (*PRESETS, "full_finetune")])
def test_a_recipe_trains_as_a_rehearsal_of_itself(
    same_words: None, name: str, project: Path, train_here: Callable[..., Any]
) -> None:
    """Its own data, quantisation, adapters, packing and loss, on a tiny model of its base's kind, in one process."""
    with_rows(project)
    # The demo builds a base of its own first, and three steps of 64 rows, or of 8,192 tokens, take half a minute.
    words = {"demo": ["model_name_or_path=model"], "long_context": ["max_length=128"]}.get(name, [])
    words += ["per_device_train_batch_size=2", "global_batch_size=4"]
    real = jobs.resolve(name, overrides=words, accel=ACCELS.get(name, "single_gpu"))
    chosen = real.recipe
    base = tiny.find(chosen["model_name_or_path"], chosen["model_revision"])
    tiny.build(base.directory, base.config, base.tokenizer)
    run = launch.create(rehearse.rehearsal_of(real, base), None)
    facts = train_here(run=run).facts()
    assert (facts["status"], facts["measured"]["step"]) == ("finished", rehearse.STEPS)
    effect = facts["in_effect"]
    assert effect["base"]["four_bit_layers"] == (14 if chosen["load_in_4bit"] else 0)
    layers = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert effect["adapter"]["modules"] == dict.fromkeys(sorted(layers), 2)


@pytest.mark.parametrize("name", IDEAS)
def test_a_value_that_is_not_the_default_s_has_its_reason_above_it(name: str) -> None:
    default = load("default")
    stated = read(Path("recipes") / f"{name}.yaml")
    other = {key: item for key, item in stated.items() if key not in ("extends", "description")}
    assert [key for key, item in other.items() if item.value != default[key] and not why.comment(item.origin)] == []


# What the seed advises, each line of it, by the words under which docs/choosing.md has it beside what holds.
ADVICE = (
    "standard training: `default`, research-backed and proven effective",
    "first production run: `default`",
    "underfits, or the default underperforms on a complex classification: `high_capacity`",
    "validation loss plateaus early, or nuanced distinctions are to be learned: `high_capacity`",
    "`high_capacity` where VRAM suffices",
    "out of memory, or GPUs of less than 80 GB: `memory_efficient`",
    "testing the pipeline, quick experiments: `quick_test`, 30 to 40 minutes",
    "long sequences: `default`, which supports 512 tokens",
    "short sequences only: `memory_efficient`, 256 tokens suffice",
    "production training, baseline experiments: `default`",
    "trade-off: the effective batch is maintained",
    "trade-off: 30 % more time",
    "trade-off: shorter sequences may truncate longer examples",
    "4-bit, AdamW with cosine, bfloat16, recomputed activations, an effective batch of 64",
)


def test_each_line_of_the_seed_s_guide_has_its_place_with_ours_beside_it() -> None:
    page = (ROOT / "docs" / "choosing.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in page.splitlines() if any(words in line for words in ADVICE)]
    assert len(rows) == len(ADVICE)
    assert all(len(cells) == 3 and all(cell.strip("| ") for cell in cells) for cells in rows)
    # What is recommended instead of the preset is a recipe or a command that there is.
    named = {name for cells in rows for name in re.findall(r"`(\w+)`", cells[2])}
    assert named >= {"all_linear", "long_context", "classification", "high_capacity_all_linear"}
    assert named - {path.stem for path in (ROOT / "recipes").glob("*.yaml")} == {"global_batch_size"}


def test_where_the_presets_are_not_the_origin_s_files_is_said() -> None:
    page = (ROOT / "docs" / "choosing.md").read_text(encoding="utf-8")
    for name, key, theirs in (
        ("high_capacity", "num_train_epochs", "5"),
        ("memory_efficient", "per_device_eval_batch_size", "2"),
        ("quick_test", "save_total_limit", "1"),
        ("quick_test", "early_stopping_threshold", "0.0"),
    ):
        ours = load(name)[key]
        assert str(ours) != theirs
        assert f"| [`{name}`](../recipes/{name}.yaml) | `{key}` | {theirs} | {ours} |" in page
