"""What a recipe may say: the snapshot of TRL, the renamed and refused keys, and the check of each value."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from sft_recipes.recipes import arguments, schema


def test_upstream_json_is_what_the_installed_trl_has() -> None:
    spec = importlib.util.spec_from_file_location("snapshot_upstream", ROOT / "scripts" / "snapshot_upstream.py")
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for name, taken in {"upstream.json": script.snapshot(), "arguments.json": script.arguments()}.items():
        stored = json.loads(resources.files("sft_recipes.recipes").joinpath(name).read_text(encoding="utf-8"))
        assert stored == json.loads(json.dumps(taken)), "run python scripts/snapshot_upstream.py"


@pytest.mark.parametrize("kind", arguments.upstream()["schedules"])
def test_what_is_accepted_of_a_schedule_upstream_takes(kind: str) -> None:
    import torch
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.9)
    extra = schema.DATA["schedules"]
    least = {key: (extra["choices"].get(key) or [0.5])[0] for key in arguments.upstream()["schedules"][kind]}
    for key, entry in arguments.upstream()["schedules"][kind].items():
        if "int" in entry["types"]:
            least[key] = 1
        elif "bool" in entry["types"]:
            least[key] = True
    # Of two ways to say the same, one.
    least.pop("min_lr_rate", None)
    assert [*arguments.of_schedule(kind, least)] == []
    get_scheduler(kind, optimizer, 1, 10, least)
    if kind not in ("constant", "constant_with_warmup"):
        with pytest.raises(TypeError):
            get_scheduler(kind, optimizer, 1, 10, {"nonsense": 3})


def test_what_an_optimizer_reads_of_its_arguments_is_known() -> None:
    import inspect

    from transformers import trainer_optimizer

    spoilt = {"weight_decay", "block_size"}
    for name, handler in trainer_optimizer._OPTIMIZER_HANDLERS.items():
        code = inspect.getsource(handler)
        if "ademamix" not in name and handler is trainer_optimizer._get_bitsandbytes_optimizer:
            code = ""
        read = {
            *re.findall(r'optim_args(?:\.get\(|\.pop\(|\[)"(\w+)"', code),
            *re.findall(r'"(\w+)" in ctx.optim_args', code),
        }
        for names in re.findall(r"for key in \(([^)]*)\)", code):
            read |= {*re.findall(r'"(\w+)"', names)}
        tried = {key: [*arguments.of_optimizer(name, f"{key}=x")] for key in read | {"nonsense"}}
        unknown = {key for key, found in tried.items() if any("reads no" in each for each in found)}
        assert unknown == read & spoilt | {"nonsense"}, name


def test_every_optimizer_makes_a_step_or_is_refused_for_what_it_lacks(tmp_path: Path) -> None:
    import torch
    from transformers import Trainer, TrainingArguments, trainer_optimizer

    needs = {name: module for module, each in schema.DATA["optimizers"]["packages"].items() for name in each["of"]}
    assert schema.upstream()["optim"]["choices"] == sorted(
        each.value for each in trainer_optimizer._OPTIMIZER_HANDLERS
    )
    for name in schema.upstream()["optim"]["choices"]:
        if name in needs and importlib.util.find_spec(needs[name]) is None:
            continue
        targets = "all-linear" if name.startswith(("galore", "apollo")) else None
        given = TrainingArguments(str(tmp_path), optim=name, optim_target_modules=targets, use_cpu=True, report_to=[])
        model = torch.nn.Sequential(torch.nn.Linear(4, 4))
        before = model[0].weight.detach().clone()
        optimizer = Trainer(model, given).create_optimizer()
        model(torch.ones(1, 4)).sum().backward()
        optimizer.step()
        assert not torch.equal(model[0].weight, before), name


def test_renamed_keys_are_gone_from_trl_or_deprecated_in_it() -> None:
    deprecated = {"gradient_checkpointing", "gradient_checkpointing_kwargs", "use_liger_kernel", "pad_token"}
    assert schema.RENAMED.keys() & schema.upstream().keys() == deprecated
    assert not schema.RENAMED.keys() & (schema.known().keys() | schema.REFUSED.keys())


@pytest.mark.parametrize("key", schema.RENAMED)
def test_every_replacement_can_be_written(key: str) -> None:
    text = schema.RENAMED[key]
    named = re.findall(r"(?<![{\w])(\w+): ", text) + re.findall(r"\bset (\w+)$", text)
    assert [name for name in named if name not in schema.known()] == []
    assert named or text.startswith("drop it") or key == "chat_template"
    assert f"{key} is not a key of TRL" in (schema.problem(key, "x") or "")


def test_refused_keys_exist_in_trl_and_say_what_to_do() -> None:
    assert schema.REFUSED.keys() <= schema.upstream().keys()
    assert all(schema.REFUSED[key] in (schema.problem(key, None) or "") for key in schema.REFUSED)


def test_choices_and_ranges_are_of_keys_that_can_be_set() -> None:
    assert schema.DATA["upstream_choices"].keys() <= schema.upstream().keys() & schema.known().keys()
    assert schema.RANGES.keys() <= schema.known().keys()


def test_own_keys_are_not_also_keys_of_trl() -> None:
    assert not schema.own().keys() & schema.upstream().keys()


def test_own_keys_have_types_that_are_known() -> None:
    names = {name for entry in schema.upstream().values() for name in entry["types"]} | {
        "dict[str, str]",
        "list[class]",
        "list[source]",
    }
    assert all(set(entry["types"]) <= names for entry in schema.own().values())
    assert all(set(entry) <= {"class", "types", "default", "choices"} for entry in schema.own().values())


@pytest.mark.parametrize("key", schema.own())
def test_every_own_key_is_read_by_code_and_set_by_a_recipe_or_a_test(key: str) -> None:
    code = [path for path in (ROOT / "src" / "sft_recipes").rglob("*.py") if path.name != "schema.py"]
    assert any(f'"{key}"' in path.read_text(encoding="utf-8") for path in code)
    tests = [path for path in (ROOT / "tests").rglob("test_*.py") if path != Path(__file__)]
    users = [*(ROOT / "recipes").glob("*.yaml"), *tests]
    assert any(re.search(rf"\b{key}['\"]?[:=]", path.read_text(encoding="utf-8")) for path in users)


@pytest.mark.parametrize("key", schema.known())
def test_the_default_of_every_key_is_a_value_it_may_have(key: str) -> None:
    default = schema.known()[key]["default"]
    if default is not None:
        assert schema.problem(key, default) is None


@pytest.mark.parametrize(
    ("key", "value", "fragment"),
    [
        # types
        ("lora_r", True, "expected a whole number, got true"),
        ("learning_rate", False, "expected a number, got false"),
        ("seed", 4.5, "expected a whole number, got 4.5"),
        ("lora_r", "32", "expected a whole number, got the string '32'; write it without quotes or units"),
        ("learning_rate", "2e-4 ", "expected a number, got the string '2e-4 '; write it without quotes or units"),
        ("packing", 1, "expected true or false, got 1"),
        ("packing", "no", "expected true or false, got the string 'no'"),
        ("packing", "maybe", "expected true or false, got the string 'maybe'"),
        ("learning_rate", [1e-4], "expected a number, got [0.0001]; write learning_rate: 0.0001"),
        ("learning_rate", [1e-4, 2e-4], "expected a number, got [0.0001, 0.0002]"),
        (
            "lora_target_modules",
            "q_proj,v_proj",
            "expected a list of texts, got the string 'q_proj,v_proj'; write [q_proj, v_proj]",
        ),
        ("lora_target_modules", [1, 2], "expected a list of texts, got [1, 2]"),
        ("lora_target_modules", [True], "expected a list of texts, got [true]"),
        ("max_length", {"a": 1}, 'expected a whole number, got {"a": 1}'),
        ("data_columns", "prompt", "expected a mapping of texts to texts, got the string 'prompt'"),
        ("description", 3, "expected text, got 3"),
        # null
        ("seed", None, "expected a whole number, got null"),
        ("packing", None, "expected true or false, got null"),
        ("global_batch_size", None, "expected a whole number, got null"),
        ("data_format", None, "expected text, got null"),
        # choices
        ("eval_strategy", "epochs", "epochs is not one of epoch, no, steps; did you mean epoch?"),
        ("lr_scheduler_type", "cosin", "did you mean cosine?"),
        ("optim", "adamw_tourch", "did you mean adamw_torch?"),
        ("dtype", "float3", "did you mean float32?"),
        ("dtype", "bf16", "bf16 is not one of auto, bfloat16, float16, float32"),
        ("bnb_4bit_quant_type", "nf5", "did you mean nf4?"),
        ("bnb_4bit_quant_storage", "bfloat", "did you mean bfloat16?"),
        ("report_to", ["tensorboard", "wandbb"], "wandbb is not one of none, azure_ml, clearml"),
        ("data_format", "sharegtp", "did you mean sharegpt?"),
        ("adapter_dtype", "float16", "float16 is not one of float32, bfloat16"),
        # ranges
        ("learning_rate", 2, "2 is out of range; it must be above 0 and below 1"),
        ("learning_rate", 0, "out of range"),
        ("learning_rate", -1e-4, "out of range"),
        ("learning_rate", float("inf"), "out of range"),
        ("lora_dropout", 1.0, "0 or more and below 1"),
        ("adam_beta2", 1, "0 or more and below 1"),
        ("validation_split_size", 5, "0 or more and below 1"),
        ("lora_r", 0, "a whole number from 1 to 16384"),
        ("lora_alpha", -1, "a number above 0"),
        ("num_train_epochs", 0, "above 0, and at most 1000000"),
        ("num_train_epochs", float("inf"), "out of range"),
        ("weight_decay", float("inf"), "out of range"),
        ("weight_decay", float("nan"), "out of range"),
        ("per_device_train_batch_size", 0, "a number above 0"),
        ("global_batch_size", 0, "a number above 0"),
        ("max_length", -512, "a number above 0"),
        ("save_total_limit", 0, "a number above 0"),
        ("warmup_steps", -1, "and not below 0"),
        ("weight_decay", -0.1, "0 or more"),
        ("max_steps", 0, "above 0, or -1 for all epochs"),
        ("seed", -1, "a whole number from 0 to 4294967295"),
        ("seed", 2**32, "a whole number from 0 to 4294967295"),
        # keys
        ("lora_rr", 32, "no such key; did you mean lora_r?"),
        ("learning_rat", 1e-4, "no such key; did you mean learning_rate?"),
        ("zzzzzz", 1, "no such key; `sft-recipes keys` lists them"),
        ("model", {"name": "x", "dtype": "y"}, "a recipe is flat, so move name, dtype to the top level"),
    ],
)
def test_a_wrong_value_is_answered_with_what_to_write(key: str, value: Any, fragment: str) -> None:
    found = schema.problem(key, value)
    assert found is not None
    assert found.startswith(f"{key}: ")
    assert fragment in found


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("learning_rate", 2e-4),
        ("num_train_epochs", 3),
        ("warmup_steps", 0),
        ("warmup_steps", 0.03),
        ("max_length", None),
        ("lora_target_modules", ["all-linear"]),
        ("lora_target_modules", None),
        ("report_to", "none"),
        ("report_to", ["tensorboard", "wandb"]),
        ("eval_strategy", "no"),
        ("bnb_4bit_quant_storage", None),
        ("data_columns", {"instruction": "text"}),
        ("validation_split_size", 0),
        ("seed", 2**32 - 1),
        ("max_steps", -1),
        ("model_init_kwargs", {"use_kernels": True}),
    ],
)
def test_a_right_value_is_accepted(key: str, value: Any) -> None:
    assert schema.problem(key, value) is None


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_checking_a_recipe_imports_nothing_heavy() -> None:
    heavy = {"torch", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes", "deepspeed", "numpy"}
    code = (
        "import sys; from sft_recipes import cli; assert cli.main(['show', 'default', '--origin']) == 0; "
        f"print(sorted({heavy!r} & set(sys.modules)), file=sys.stderr)"
    )
    done = python("-c", code)
    assert (done.returncode, done.stderr) == (0, "[]\n")


@pytest.mark.parametrize("arguments", [["--help"], ["show", "default"]])
def test_the_answer_comes_in_half_a_second(arguments: list[str]) -> None:
    """Of processor time, because other tests keep the processors busy."""
    took = []
    for _ in range(3):
        began = os.times()
        assert python("-m", "sft_recipes", *arguments).returncode == 0
        ended = os.times()
        took.append(ended.children_user + ended.children_system - began.children_user - began.children_system)
    assert min(took) < 0.5
