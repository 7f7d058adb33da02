"""Other tools' files: what becomes of each key, and that the recipe they make says the same and loads."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT
from theirs import AXOLOTL, CASES, EARLY, FACTORY, FILES, QUANTISED, TOKEN, TRL, audited, outcomes, turns

from sft_recipes.cli.app import from_make
from sft_recipes.data.turns import ROLES, SHAREGPT_ROLES
from sft_recipes.errors import InputError
from sft_recipes.interop import importers, meanings, recognition, tables
from sft_recipes.interop.audit import Audit, audit, facts, render, text, write
from sft_recipes.recipes import recipe as recipes
from sft_recipes.recipes import schema, secrets, topology
from sft_recipes.recipes.sources import entries


@pytest.mark.parametrize("name", CASES)
def test_every_key_of_a_public_file_has_its_outcome(name: str) -> None:
    made = audit(FILES / name)
    tool, expected, _ = CASES[name]
    found = outcomes(made)
    kept = found.pop("kept", set())
    assert made.tool == tool
    assert found == expected
    theirs = recognition.flat(recipes.read(FILES / name), tool)
    assert {entry.key for entry in made.entries if entry.line is not None} == theirs.keys()
    assert all(made.recipe[key] == theirs[key] for key in kept)
    written = (FILES / name).read_text(encoding="utf-8").splitlines()
    assert all(entry.key.rpartition(".")[2] in written[entry.line - 1] for entry in made.entries if entry.line)
    assert made.problems == ()
    assert made.complete is not bool({"assumed", "missing", "inexpressible", "unknown"} & expected.keys())


@pytest.mark.parametrize("name", CASES)
def test_the_written_recipe_loads_and_means_the_same(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = audit(FILES / name)
    out = tmp_path / "translated.yaml"
    assert out in write(made, out)
    recipe = recipes.load(out)
    assert yaml.safe_load(out.read_text(encoding="utf-8")).keys() == made.recipe.keys()
    monkeypatch.chdir(ROOT)
    resolved = topology.resolve(recipe, topology.read("ddp", "a test", made.processes))
    assert {key: resolved[key] for key in CASES[name][2]} == CASES[name][2]


@pytest.mark.parametrize("name", CASES)
def test_the_recipe_explains_every_key_that_is_not_as_the_file_has_it(name: str) -> None:
    made = audit(FILES / name)
    lines = text(made).splitlines()
    for entry in made.entries:
        if entry.outcome in ("translated", "added", "assumed", "missing", "inexpressible"):
            assert sum(entry.text in line and line.startswith("#") for line in lines) >= 1
    assert all(len(line) < 500 for line in lines)


@pytest.mark.parametrize("tool", [name for name, tool in importers.TOOLS.items() if not tool.nested])
def test_a_replaced_key_is_translated_by_what_the_schema_says_to_write(tool: str) -> None:
    for key in schema.RENAMED.keys() - importers.TOOLS[tool].keys.keys():
        found = importers.translate(tool, key, True, {})
        if found.outcome == "translated":
            assert found.values.keys() <= schema.known().keys()
            assert next(iter(found.values)) in schema.RENAMED[key]
        elif found.outcome == "dropped":
            assert schema.RENAMED[key] == f"drop it; {found.why}"
        else:
            # A template is a file, and a mixture is rows.
            assert key in ("chat_template", "dataset_mixture")


def test_the_tables_set_keys_that_exist_and_name_sentences_that_exist() -> None:
    data = schema.table("sft_recipes.interop", "importers.yaml")
    for table in data["tools"].values():
        renamed = [ours[0] if isinstance(ours, list) else ours for ours in table["renamed"].values()]
        renamed += table.get("same", [])
        switched = [key for values in table.get("switches", {}).values() for key in values]
        cased = [key for cases in table["cases"].values() for case in cases for key in case.get("set", {})]
        assert {*renamed, *switched, *cased} <= schema.known().keys()
        assert all(
            len(case.keys() & {"set", "drop", "cannot"}) == 1 for cases in table["cases"].values() for case in cases
        )
    names = set(re.findall(r"\$([a-z_]+)", json.dumps(data)))
    assert names - {"value"} <= data["sentences"].keys() | schema.REFUSED.keys()
    assert data["sentences"].keys() <= names


def test_no_key_is_in_two_parts_of_a_table() -> None:
    for name, table in schema.table("sft_recipes.interop", "importers.yaml")["tools"].items():
        keys = [*table["renamed"], *table.get("same", []), *table.get("switches", {}), *table["cases"]]
        keys += meanings.CODE.get(name, {})
        keys += [key for part in ("dropped", "inexpressible") for listed in table[part].values() for key in listed]
        assert sorted(keys) == sorted(set(keys))


def test_no_table_repeats_what_the_schema_renames() -> None:
    # These add what the other tool does differently; everything else is said once, in the schema.
    more = {"dataset_mixture", "test_split_size", "chat_template", "gradient_checkpointing", "sequence_len"}
    more |= {"torch_dtype", "bnb_4bit_compute_dtype", "model_name"}
    for tool in importers.TOOLS.values():
        assert tool.nested or tool.keys.keys() & schema.RENAMED.keys() <= more


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        # What a file leaves to its tool is stated, since TRL's own default is another.
        (AXOLOTL, {"num_train_epochs": 1.0, "lr_scheduler_type": "cosine", "max_length": 512, "warmup_steps": 0.03}),
        (AXOLOTL, {"global_batch_size": 1, "bf16": True, "dtype": "bfloat16", "completion_only_loss": True}),
        (AXOLOTL, {"train_file": "rows.jsonl", "data_format": "messages"}),
        (AXOLOTL + "adapter: lora\nlora_target_modules: [q_proj]\n", {"lora_dropout": 0.0, "use_peft": True}),
        (AXOLOTL + "adapter: lora\nload_in_8bit: true\nlora_target_linear: true", {"load_in_8bit": True}),
        (AXOLOTL + "cosine_min_lr_ratio: 0.1\n", {"lr_scheduler_type": "cosine_with_min_lr"}),
        (AXOLOTL + "cosine_min_lr_ratio: 0.1\n", {"lr_scheduler_kwargs": {"min_lr_rate": 0.1}}),
        (AXOLOTL + "micro_batch_size: 2\nbatch_size: 16\n", {"global_batch_size": 16}),
        (AXOLOTL + "micro_batch_size: 2\nworld_size: 4\n", {"global_batch_size": 8}),
        (AXOLOTL + "val_set_size: 0\nevals_per_epoch: 4\neval_steps: 10\n", {"save_strategy": "epoch"}),
        (AXOLOTL + "val_set_size: 0.1\n", {"eval_strategy": "epoch", "validation_split_size": 0.1}),
        (AXOLOTL + "fp16: true\n", {"fp16": True, "bf16": False, "dtype": "float16"}),
        (AXOLOTL + "use_tensorboard: true\nuse_wandb: true\n", {"report_to": ["wandb", "tensorboard"]}),
        (AXOLOTL + "special_tokens: {eos_token: '<|im_end|>'}\n", {"eos_token": "<|im_end|>"}),
        (FACTORY, {"lora_r": 4, "lora_alpha": 8, "lora_target_modules": ["all-linear"], "learning_rate": 5e-5}),
        (FACTORY, {"per_device_train_batch_size": 8, "global_batch_size": 8, "max_length": 2048}),
        (FACTORY + "lora_target: 'q_proj, v_proj'\n", {"lora_target_modules": ["q_proj", "v_proj"]}),
        (
            FACTORY + "val_size: 0.1\ntrain_on_prompt: true\n",
            {"completion_only_loss": False, "eval_strategy": "epoch"},
        ),
        (FACTORY + "flash_attn: fa2\nneat_packing: true\n", {"attn_implementation": "flash_attention_2"}),
        (FACTORY + "finetuning_type: full\n", {"use_peft": False}),
        # Every weight that LLaMA-Factory trains is kept in float32; adapters are here too.
        (FACTORY + "finetuning_type: full\n", {"bf16": True, "dtype": "float32"}),
        (FACTORY.replace("bf16", "fp16") + "finetuning_type: full\n", {"fp16": True, "dtype": "float32"}),
        (FACTORY, {"bf16": True, "dtype": "bfloat16"}),
        # With early stopping Axolotl keeps the best checkpoint.
        (EARLY, {"early_stopping_patience": 3, "load_best_model_at_end": True, "metric_for_best_model": "eval_loss"}),
        (AXOLOTL + "curriculum_sampling: true\n", {"train_sampling_strategy": "sequential"}),
        (turns("{role: from, content: value}", "{user: [human], assistant: [gpt]}"), {"data_format": "sharegpt"}),
        (turns("{role: from, content: value}"), {"data_columns": {"conversations": "messages"}}),
        (turns("{role: role, content: content}", "{assistant: [assistant]}"), {"data_format": "messages"}),
        # What cannot run together is stated, not written.
        (QUANTISED + "accelerate_config: fsdp2\n", {"accelerate_config": None}),
        (QUANTISED + "accelerate_config: zero3\n", {"bnb_4bit_quant_storage": "bfloat16"}),
        ("model_name_or_path: a/b\ndataset_mixture: {}\neval_strategy: epoch\n", {"eval_strategy": "no"}),
        (TRL, {"per_device_train_batch_size": 8, "global_batch_size": 8}),
        (TRL + "accelerate_config: zero3\n", {"accelerate_config": "zero3", "global_batch_size": 64}),
        (TRL + "use_peft: true\n", {"lora_target_modules": ["q_proj", "v_proj"]}),
        (TRL + "learning_rate: '2e-4'\nlora_alpha: 16.0\n", {"learning_rate": 2e-4, "lora_alpha": 16}),
        (TRL + "optim: adamw_hf\ngroup_by_length: true\n", {"train_sampling_strategy": "group_by_length"}),
        ("model_name_or_path: a/b\ndatasets: [{path: c/d, name: e, split: f}]\n", {"dataset_config": "e"}),
    ],
)
def test_values_arrive(tmp_path: Path, content: str, expected: dict[str, Any]) -> None:
    made = audited(tmp_path, content)
    assert {key: made.recipe.get(key) for key in expected} == expected
    assert made.problems == ()


@pytest.mark.parametrize(
    ("content", "key", "outcome", "words"),
    [
        (AXOLOTL + "micro_batchsize: 2\n", "micro_batchsize", "unknown", "did you mean micro_batch_size?"),
        (TRL + "lora_ranks: 2\n", "lora_ranks", "unknown", "did you mean lora_rank?"),
        (TRL + "gamma: 0.1\n", "gamma", "unknown", "not known here as a key of TRL, nor of a recipe"),
        (AXOLOTL + "cutoff_len: 8\n", "cutoff_len", "unknown", "LLaMA-Factory"),
        (AXOLOTL + "flash_attention: 2\n", "flash_attention", "inexpressible", "expected true or false"),
        (
            AXOLOTL + "curriculum_sampling: true\nsample_packing: true\n",
            "curriculum_sampling",
            "inexpressible",
            "order",
        ),
        (FACTORY + "disable_shuffling: true\nneat_packing: true\n", "disable_shuffling", "inexpressible", "order"),
        (AXOLOTL + "early_stopping_patience: 3\n", "early_stopping_patience", "inexpressible", "held-out rows"),
        (EARLY, "early_stopping_patience", "translated", "with it Axolotl keeps the best checkpoint"),
        (EARLY.replace("save_steps: 5", "save_steps: 10"), "early_stopping_patience", "inexpressible", "save_steps"),
        (AXOLOTL + "load_best_model_at_end: true\n", "load_best_model_at_end", "dropped", "keeps the last checkpoint"),
        (turns("{role: speaker, content: text}"), "datasets", "inexpressible", "turns of speaker and text"),
        (turns("{tool_calls: calls}"), "datasets", "inexpressible", "tool_calls of a turn under another name"),
        (turns("{role: role}", "{assistant: [bot]}"), "datasets", "inexpressible", "roles bot as assistant"),
        (turns("{role: role}", "{user: [assistant]}"), "datasets", "inexpressible", "roles assistant as user"),
        (AXOLOTL + "gptq: true\n", "gptq", "inexpressible", "only bitsandbytes"),
        (AXOLOTL + "deepspeed: configs/zero3_bf16.json\n", "deepspeed", "dropped", "choose ACCEL=zero3"),
        (AXOLOTL + "deepspeed: configs/zero1.json\n", "deepspeed", "dropped", "choose ACCEL=zero1"),
        (AXOLOTL + "deepspeed: zero3_cpuoffload_all.json\n", "deepspeed", "dropped", "choose ACCEL=zero3_offload"),
        (FACTORY + "deepspeed: ds_z2_config.json\n", "deepspeed", "dropped", "choose ACCEL=zero2"),
        (TRL + "deepspeed: {zero_optimization: {stage: 3}}\n", "deepspeed", "dropped", "choose ACCEL=zero3"),
        (TRL + "deepspeed: ds.json\n", "deepspeed", "dropped", "zero1, zero2 or zero3 by its stage"),
        (AXOLOTL + "fsdp: [full_shard]\n", "fsdp", "dropped", "choose ACCEL=fsdp2"),
        (AXOLOTL + "adapter: qlora\nfsdp: [full_shard]\n", "fsdp", "dropped", "FSDP2 cannot train a quantised base"),
        (FACTORY + "quantization_bit: 8\nfsdp: full_shard\n", "fsdp", "dropped", "quantised base; choose ACCEL=ddp"),
        (FACTORY + "quantization_bit: 4\nfsdp: full_shard\n", "fsdp", "dropped", "ACCEL=zero3"),
        (AXOLOTL + "val_set_size: 500\n", "val_set_size", "inexpressible", "a number of rows"),
        (AXOLOTL + "optimizer: muon\n", "optimizer", "inexpressible", "not one of"),
        (AXOLOTL + "loraplus_lr_ratio: 16\n", "loraplus_lr_ratio", "inexpressible", "only plain LoRA"),
        (AXOLOTL + "chat_template: llama3\n", "chat_template", "inexpressible", "chat_template_path"),
        (AXOLOTL + "num_epochs: three\n", "num_epochs", "inexpressible", "expected a number"),
        (FACTORY + "quantization_bit: 3\n", "quantization_bit", "inexpressible", "4 and 8"),
        (TRL + "max_seq_length: 512\nmax_length: 1024\n", "max_length", "inexpressible", "512 by max_seq_length"),
        (TRL + "gradient_accumulation_steps: many\n", "gradient_accumulation_steps", "inexpressible", "micro-batch"),
        (TRL + "dataset_mixer: {e/f: 0.5}\n", "dataset_mixer", "inexpressible", "0.5 of the rows"),
        (TRL + "report_to: sacred\n", "report_to", "inexpressible", "not one of"),
        (TRL + "dataset_train_split: 'train[:10%]'\n", "dataset_train_split", "inexpressible", "a slice"),
        (TRL + "dataset_text_field: body\n", "dataset_text_field", "inexpressible", "plain text"),
        (
            AXOLOTL + "context_parallel_size: 2\n",
            "context_parallel_size",
            "inexpressible",
            "how many compute one step",
        ),
        (AXOLOTL + "eot_tokens: ['<|end|>']\n", "eot_tokens", "inexpressible", "chat template"),
        (TRL + "cache_dir: /tmp\n", "cache_dir", "dropped", "HF_HOME"),
    ],
)
def test_what_cannot_be_said_is_named(tmp_path: Path, content: str, key: str, outcome: str, words: str) -> None:
    made = audited(tmp_path, content)
    entry = next(entry for entry in made.entries if entry.key == key)
    assert (entry.outcome, words in entry.text) == (outcome, True), entry.text
    assert outcome in ("dropped", "translated") or not made.complete


@pytest.mark.parametrize("name", ["org/Base-7B-GPTQ", "org/base-AWQ", "models/x-gguf", "org/x-FP8"])
def test_a_base_that_is_quantised_by_its_name_is_noticed(tmp_path: Path, name: str) -> None:
    made = audited(tmp_path, FACTORY.replace("a/b", name))
    assert outcomes(made)["inexpressible"] == {"model_name_or_path"}
    assert made.recipe["model_name_or_path"] == name
    assert not audited(tmp_path, FACTORY.replace("a/b", "org/Bawqet-7b")).complete
    assert "inexpressible" not in outcomes(audited(tmp_path, FACTORY.replace("a/b", "org/Bawqet-7b")))


def test_the_roles_that_are_taken_over_are_those_that_rows_are_read_by() -> None:
    assert tables.DATA["roles"] == {"messages": ROLES, "sharegpt": SHAREGPT_ROLES}


@pytest.mark.parametrize(
    ("content", "sources"),
    [
        (
            "base_model: a/b\nadapter: lora\ndatasets:\n- {path: a/b, type: alpaca, split: train_sft}\n"
            "- {path: rows.json, type: chat_template, field_messages: chat}\n",
            [
                {"dataset": "a/b", "split": "train_sft", "data_format": "alpaca"},
                {"file": "rows.json", "data_format": "messages", "data_columns": {"messages": "chat"}},
            ],
        ),
        (TRL + "datasets: [{path: a/b, name: small}, {path: c/d}]\n", [{"dataset": "a/b", "config": "small"}, "c/d"]),
        (TRL + "dataset_mixer: {a/b: 1.0, c/d: 1.0}\n", ["a/b", "c/d"]),
        (TRL + "dataset_mixture: {datasets: [{id: a/b, weight: 1.0}, {id: c/d}]}\n", ["a/b", "c/d"]),
    ],
)
def test_several_datasets_become_a_list_of_sources(tmp_path: Path, content: str, sources: list[Any]) -> None:
    made = audited(tmp_path, content)
    expected = [{"dataset": each} if isinstance(each, str) else each for each in sources]
    assert made.recipe["train_file"] == expected
    assert len(entries("train_file", made.recipe["train_file"])) == 2


@pytest.mark.parametrize(
    ("datasets", "words"),
    [
        ("datasets: [{path: a/b}, {path: c/d, fraction: 0.5}]", "dataset 2: taken over without fraction"),
        ("dataset_mixer: {a/b: 1.0, c/d: 0.5}", "dataset 2: 0.5 of the rows; name it in train_file as {dataset: NAME"),
        (
            "datasets: [{split: train}, 3]",
            "dataset 1: it names no path; set train_file or dataset_name; dataset 2: it",
        ),
    ],
)
def test_what_one_of_several_datasets_cannot_say_is_named(tmp_path: Path, datasets: str, words: str) -> None:
    made = audited(tmp_path, TRL + datasets + "\n")
    assert words in " ".join(render(made).split())
    assert not made.complete and "train_file" not in made.recipe


def test_sharegpt_turns_and_their_column_are_recognised(tmp_path: Path) -> None:
    entry = "[{path: rows.json, type: chat_template, field_messages: chat, message_property_mappings: &map}]"
    entry = entry.replace("&map", "{role: from, content: value}")
    made = audited(tmp_path, f"base_model: a/b\nsequence_len: 64\ndatasets: {entry}\n")
    assert made.recipe["data_format"] == "sharegpt"
    assert made.recipe["data_columns"] == {"conversations": "chat"}


def test_processes_come_from_the_accelerate_config_or_the_command(tmp_path: Path) -> None:
    (tmp_path / "acc.yaml").write_text("distributed_type: MULTI_GPU\nnum_processes: 3\n", encoding="utf-8")
    content = TRL + "accelerate_config: acc.yaml\nper_device_train_batch_size: 2\n"
    assert audited(tmp_path, content).recipe["global_batch_size"] == 6
    made = audited(tmp_path, content, processes=5)
    assert made.recipe["global_batch_size"] == 10
    assert "5 processes (as given)" in render(made)
    made = audited(tmp_path, TRL)
    assert "1 process (assumed, the file does not say: --gpus (GPUS=) does)" in render(made)
    assert {"gradient_accumulation_steps", "completion_only_loss"} == outcomes(made)["assumed"]
    assert not made.complete
    assert audited(tmp_path, TRL + "completion_only_loss: true\n", processes=1).complete


def test_make_hands_over_the_tool_and_the_number_of_gpus() -> None:
    given = {"GIVEN": "FILE TOOL GPUS", "FILE": "theirs.yaml", "TOOL": "trl", "GPUS": "8"}
    assert from_make("audit", given) == ["audit", "--tool=trl", "--gpus=8", "--", "theirs.yaml"]


def test_a_chat_template_is_written_beside_the_recipe(tmp_path: Path) -> None:
    template = "{% for message in messages %}\n{{ message['content'] + eos_token }}{% endfor %}"
    made = audited(tmp_path, TRL + f"chat_template: {json.dumps(template)}\n")
    out = tmp_path / "new.yaml"
    assert write(made, out) == [tmp_path / "new.jinja", out]
    assert (tmp_path / "new.jinja").read_text(encoding="utf-8") == template
    assert recipes.load(out)["chat_template_path"] == str(tmp_path / "new.jinja")


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    made = audited(tmp_path, TRL + 'chat_template: "{{ messages }}"\n')
    out = tmp_path / "new.yaml"
    (tmp_path / "new.jinja").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match=r"new\.jinja exists and is never overwritten"):
        write(made, out)
    assert not out.exists()
    with pytest.raises(InputError, match=r"theirs\.yaml exists"):
        write(made, tmp_path / "theirs.yaml")
    with pytest.raises(InputError, match="cannot be written"):
        write(made, tmp_path / "nowhere" / "new.yaml")
    with pytest.raises(InputError, match="is not a recipe file"):
        write(made, tmp_path / "new.txt")


def test_our_own_loader_has_the_last_word(tmp_path: Path) -> None:
    content = TRL + "load_in_4bit: true\nload_in_8bit: true\nuse_peft: true\nbf16: true\nfp16: true\n"
    made = audited(tmp_path, content)
    assert len(made.problems) == 2
    with pytest.raises(InputError, match=r"new\.yaml is not written: recipe:\d+: .*keep one"):
        write(made, tmp_path / "new.yaml")
    assert not (tmp_path / "new.yaml").exists()
    assert all(problem.startswith("recipe") for problem in made.problems)
    assert not made.complete
    assert made.problems[0] in render(made)


@pytest.mark.parametrize(
    ("value", "written"),
    [("2e-4", "'2e-4'"), ("010", "'010'"), ("no", "'no'"), ("a: b # c", "'a: b # c'"), ("", "''"), ("é", "é")],
)
def test_text_stays_text_in_both_yamls(tmp_path: Path, value: str, written: str) -> None:
    made = audited(tmp_path, f"model_name_or_path: a/b\nuse_peft: false\ndescription: {json.dumps(value)}\n")
    out = tmp_path / "new.yaml"
    write(made, out)
    assert recipes.load(out)["description"] == value
    assert yaml.safe_load(out.read_text(encoding="utf-8"))["description"] == value
    assert f"description: {written}" in out.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "line",
    [
        f"hub_token: {TOKEN}",
        "wandb_api_key: secret-of-mine",
        f"run_name: {TOKEN}",
        f"model_init_kwargs: {{token: {TOKEN}}}",
        "model_init_kwargs: {token: secret-of-mine}",
        "mlflow_tracking_uri: https://me:secret-of-mine@host/",
        f"unheard_of: {{a: [{TOKEN}]}}",
        f"{TOKEN}: 1",
    ],
)
def test_a_secret_is_named_and_never_shown(tmp_path: Path, line: str) -> None:
    made = audited(tmp_path, TRL + line + "\n")
    everything = render(made) + json.dumps(facts(made)) + text(made)
    assert TOKEN not in everything
    assert "secret-of-mine" not in everything
    assert made.entries[2].outcome in ("dropped", "inexpressible", "unknown")


@pytest.mark.parametrize(
    "line", ["hub_token: !!int secret-of-mine", f"x: !!float {TOKEN}", f"api_key: !!bool {TOKEN}"]
)
def test_a_secret_that_is_no_yaml_is_not_shown_either(tmp_path: Path, line: str) -> None:
    with pytest.raises(InputError) as error:
        audited(tmp_path, TRL + line + "\n")
    assert TOKEN not in str(error.value)
    assert "secret-of-mine" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("- a\n- b\n", "is a mapping"),
        ("just text", "is a mapping"),
        ("", "empty"),
        ("base_model: a\nbase_model: b\n", "appears twice"),
        ("base_model: &a b\nadapter: *a\n", "aliases"),
        ("x: " + "y" * 70_000, "bytes are too many for a recipe"),
        ("[" * 5000, "not YAML|nested too deeply"),
        ("extends: default\nlora_r: 8\n", "is a recipe already"),
        ("colour: red\n", "say which tool reads it with --tool"),
        ("base_model: a\nlora_rank: 8\n", "too little to tell .base_model of axolotl; lora_rank of llama-factory"),
        ("base_model: !!python/object:os.system a\n", "base_model"),
    ],
)
def test_hostile_and_foreign_files_are_one_clear_error(tmp_path: Path, content: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        audited(tmp_path, content)


def test_a_tool_can_be_named_and_must_be_known(tmp_path: Path) -> None:
    made = audited(tmp_path, "base_model: a\nlora_rank: 8\ndataset_name: c/d\n", tool="axolotl")
    assert made.tool == "axolotl"
    with pytest.raises(InputError, match=r"no tool axolot; there are .*did you mean axolotl\?"):
        audited(tmp_path, TRL, tool="axolot")


def test_a_key_cannot_break_out_of_its_comment(tmp_path: Path) -> None:
    made = audited(tmp_path, TRL + '"evil\\nlearning_rate": 1\n"x\\u2028lora_r": 2\nchat_template: "a\\nlora_r: 9"\n')
    out = tmp_path / "new.yaml"
    write(made, out)
    assert recipes.load(out).values.keys() == made.recipe.keys()
    assert len(render(made).splitlines()) == len(made.entries) + 3


def test_json_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "theirs.json"
    path.write_text(json.dumps({"model_name_or_path": "a/b", "dataset_name": "c/d", "max_seq_length": 64}), "utf-8")
    assert audit(path).recipe["max_length"] == 64


def test_the_table_and_the_facts_say_the_same() -> None:
    made = audit(FILES / "axolotl_qlora.yml")
    table = render(made).splitlines()
    assert table[1].split() == ["line", "key", "outcome", "what"]
    assert [line.split()[1] for line in table[2:-1]] == [entry.key for entry in made.entries]
    assert table[-1] == "10 kept, 18 translated, 25 dropped, 1 assumed"
    said = json.loads(json.dumps(facts(made)))
    assert said["recipe"] == made.recipe
    assert [entry["outcome"] for entry in said["entries"]] == [entry.outcome for entry in made.entries]


def test_an_audit_needs_no_torch() -> None:
    code = (
        "import sys; from pathlib import Path; from sft_recipes.interop.audit import audit; "
        f"audit(Path({str(FILES / 'zephyr_qlora.yaml')!r})); "
        "print([name for name in ('torch', 'transformers', 'trl', 'peft', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Without these a file of the tool is no file of a training.
NEEDED = {
    "torchtune": {"optimizer._component_": "torch.optim.AdamW"},
    "oumi": {"training.trainer_type": "TRL_SFT"},
}
STRANGE = [
    None,
    True,
    -1,
    2.5,
    10**400,
    "x",
    "\n#x\nlora_r: 3",
    "x\x85y",
    [],
    [1],
    [{}],
    {"a": 1},
    {"datasets": [{"id": 1}]},
]


@pytest.mark.parametrize("tool", importers.TOOLS)
@pytest.mark.parametrize("value", STRANGE, ids=lambda value: ascii(value)[:20])
def test_no_value_of_any_key_is_a_traceback_or_is_lost(tmp_path: Path, tool: str, value: Any) -> None:
    # Keys by which a file is known to be another kind of job end the audit; test_another_kind_of_job has them.
    other = {key for rule in importers.TOOLS[tool].refused for key in rule["if"]}
    common = {*schema.RENAMED, "gradient_accumulation_steps", "batch_size"}
    keys = sorted((importers.TOOLS[tool].keys.keys() | (set() if importers.TOOLS[tool].nested else common)) - other)
    needed = NEEDED.get(tool, {})
    # 400 digits for every key are more than a file may hold.
    for part in (keys[::2], keys[1::2]) if value == 10**400 else (keys,):
        path = tmp_path / "theirs.json"
        path.write_text(json.dumps(dict.fromkeys(part, value) | needed), encoding="utf-8")
        made = audit(path, tool)
        assert {entry.key for entry in made.entries if entry.line is not None} == {*part, *needed}
        assert len(text(made).splitlines()) > 2
        assert {key: item.value for key, item in written(made, tmp_path).items()} == made.recipe
        assert not any(schema.problem(key, item) for key, item in made.recipe.items())


def written(made: Audit, tmp_path: Path) -> dict[str, recipes.Value]:
    """The keys of the recipe, as they are read back."""
    path = tmp_path / "back.yaml"
    path.write_text(text(made), encoding="utf-8")
    return recipes.read(path)


def test_a_template_and_a_path_to_one_are_not_both_taken(tmp_path: Path) -> None:
    made = audited(tmp_path, TRL + 'chat_template_path: t.jinja\nchat_template: "{{ messages }}"\n')
    assert made.recipe["chat_template_path"] == "t.jinja"
    assert made.template is None
    assert outcomes(made)["inexpressible"] == {"chat_template"}


def test_empty_keys_leave_the_default_of_their_tool(tmp_path: Path) -> None:
    made = audited(tmp_path, AXOLOTL + "micro_batch_size:\ngradient_accumulation_steps:\nnum_epochs:\n")
    assert {entry.line for entry in made.entries if entry.key == "num_epochs"} == {6, None}
    assert made.recipe["num_train_epochs"] == 1.0
    assert made.recipe["global_batch_size"] == 1


def test_keys_about_tokens_are_no_secrets(tmp_path: Path) -> None:
    made = audited(
        tmp_path, TRL + "eos_token: <eos>\naverage_tokens_across_devices: true\ninclude_num_input_tokens_seen: all\n"
    )
    assert not secrets.named("template_thinking_key")
    assert {"eos_token", "average_tokens_across_devices", "include_num_input_tokens_seen"} <= outcomes(made)["kept"]


def test_a_dataset_with_a_template_of_its_own_is_not_passed_over(tmp_path: Path) -> None:
    content = (
        "base_model: a/b\nsequence_len: 64\ndatasets: [{path: c/d, type: chat_template, chat_template: chatml}]\n"
    )
    made = audited(tmp_path, content)
    assert outcomes(made)["inexpressible"] == {"datasets"}
    assert made.recipe["dataset_name"] == "c/d"
