"""Every key that a recipe sets, or that has evidence, does something.

Another legal value changes what the libraries are given, or what we do ourselves.
"""

import dataclasses
import functools
import json
import os
import re
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import trl
from conftest import ROOT
from transformers import training_args
from transformers.trainer_pt_utils import EvalLoopContainer

from sft_recipes.data import preparation
from sft_recipes.models import base_model
from sft_recipes.plan import lint, memory
from sft_recipes.plan.lint import Case
from sft_recipes.recipes import recipe, schema, topology, why
from sft_recipes.recipes.recipe import Value, load
from sft_recipes.train import train

STEPS = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 50, "save_steps": 50}
ALONE = {"load_best_model_at_end": False, "early_stopping_patience": 0}
# Another legal value of each key, and what else has to be set for the key to be read.
OTHER: dict[str, tuple[Any, dict[str, Any]]] = {
    "model_name_or_path": ("org/other", {}),
    "model_revision": ("v1.0", {}),
    "dtype": ("float16", {}),
    "attn_implementation": ("eager", {}),
    "load_in_4bit": (False, {}),
    "load_in_8bit": (True, {"load_in_4bit": False}),
    "bnb_4bit_quant_type": ("fp4", {}),
    "use_bnb_nested_quant": (False, {}),
    "bnb_4bit_quant_storage": ("uint8", {}),
    "model_init_kwargs": ({"use_kernels": True}, {}),
    "router_aux_loss_coef": (0.0, {}),
    "chat_template_path": ("org/other", {}),
    "eos_token": ("<|im_end|>", {}),
    "max_length": (256, {}),
    "packing": (True, {}),
    "packing_strategy": ("bfd_split", {"packing": True}),
    "padding_free": (True, {"max_length": None}),
    "eval_packing": (False, {"packing": True}),
    "completion_only_loss": (False, {}),
    "assistant_only_loss": (True, {"completion_only_loss": None}),
    "dataset_num_proc": (2, {}),
    "truncation_mode": ("keep_end", {}),
    "use_peft": (False, {"load_in_4bit": False}),
    "lora_r": (8, {}),
    "lora_alpha": (64, {}),
    "lora_dropout": (0.0, {}),
    "lora_target_modules": (["o_proj"], {}),
    "lora_target_parameters": (["mlp.experts.gate_up_proj"], {"lora_dropout": 0.0}),
    "lora_modules_to_save": (["embed_tokens"], {}),
    "use_rslora": (True, {}),
    "use_dora": (True, {}),
    "learning_rate": (1e-4, {}),
    "num_train_epochs": (2, {}),
    "max_steps": (100, {}),
    "per_device_train_batch_size": (2, {}),
    "per_device_eval_batch_size": (8, {}),
    "global_batch_size": (32, {}),
    "warmup_steps": (0.03, {}),
    "lr_scheduler_type": ("linear", {}),
    "lr_scheduler_kwargs": ({"num_cycles": 1.0}, {}),
    "seed": (43, {}),
    "data_seed": (43, {}),
    "loss_type": ("dft", {}),
    "neftune_noise_alpha": (5.0, {}),
    "label_smoothing_factor": (0.1, {}),
    "optim": ("adamw_torch_fused", {}),
    "optim_args": ("momentum=0.8", {"optim": "sgd"}),
    "adam_beta1": (0.8, {}),
    "adam_beta2": (0.95, {}),
    "adam_epsilon": (1e-6, {}),
    "weight_decay": (0.0, {}),
    "max_grad_norm": (0.3, {}),
    "bf16": (False, {"accelerate_config": "cpu"}),
    "fp16": (True, {"bf16": False, "accelerate_config": "single_gpu"}),
    "activation_checkpointing": (False, {}),
    "activation_checkpointing_kwargs": ({"use_reentrant": True}, {}),
    "activation_offloading": (True, {}),
    "train_sampling_strategy": ("group_by_length", {}),
    "dataloader_num_workers": (0, {}),
    "dataloader_drop_last": (True, {}),
    "torch_compile": (True, {}),
    "full_determinism": (True, {}),
    "average_tokens_across_devices": (False, {}),
    "logging_steps": (5, {}),
    "eval_strategy": ("no", ALONE),
    "eval_steps": (25, STEPS | ALONE),
    "eval_on_start": (True, {}),
    "eval_delay": (1, {}),
    "save_strategy": ("no", ALONE),
    "save_steps": (25, STEPS | ALONE),
    "save_total_limit": (2, {}),
    "load_best_model_at_end": (False, ALONE | {"load_best_model_at_end": True}),
    "metric_for_best_model": ("eval_mean_token_accuracy", {}),
    "report_to": ("none", {}),
    # Our own.
    "description": ("Another idea.", {}),
    "accelerate_config": ("zero2", {}),
    "train_file": ("data/other.jsonl", {}),
    "validation_file": ("data/validation.jsonl", {}),
    "test_file": ("data/test.jsonl", {}),
    "dataset_name": ("org/other", {"train_file": None, "dataset_name": "org/rows"}),
    "dataset_config": ("main", {"train_file": None, "dataset_name": "org/rows"}),
    "validation_split_size": (0.1, {}),
    "data_format": ("alpaca", {}),
    "data_columns": ({"output": "label"}, {}),
    "adapter_dtype": ("bfloat16", {}),
    "silence": ({"model-unpinned": "a test"}, {}),
}
# Keys whose effect other tests see in a run, or that only a run reads.
ELSEWHERE = {
    "early_stopping_patience": (
        "tests/train/test_train.py::test_early_stopping_counts_evaluations_and_zero_never_stops"
    ),
    "early_stopping_threshold": "tests/train/test_effects.py::test_a_threshold_decides_what_counts_as_an_improvement",
    "execution": "tests/train/test_executions.py::test_what_is_chosen_learns_the_same",
    "stopping_strategy": "tests/data/test_sources.py::test_weights_draw_as_interleave_datasets_does",
    "adapter_name_or_path": (
        "tests/train/test_continue.py::test_its_first_loss_is_that_of_the_earlier_adapter_on_the_same_rows"
    ),
    "adapter_revision": (
        "tests/train/test_continue.py::test_it_is_named_by_its_run_its_folder_or_a_hub_id_with_a_revision"
    ),
    "mask_empty_reasoning": ("tests/data/test_templates.py::test_an_empty_block_of_reasoning_is_left_out_of_the_loss"),
    "sort_within_batch": "tests/train/test_executions.py::test_what_is_chosen_learns_the_same",
    "drop_reasoning": "tests/data/test_tools.py::test_reasoning_is_kept_or_dropped_as_the_recipe_says",
    "test_split_size": "tests/data/test_data.py::test_share_is_chosen_by_content",
    "init_lora_weights": "tests/train/test_beginnings.py::test_an_adapter_begins_as_no_change_of_the_base",
    # There is one value that a recipe may give each of them.
    "greater_is_better": "tests/recipes/test_recipe.py::test_the_direction_of_a_metric_follows_from_it",
    "lora_task_type": "tests/test_bad_inputs.py::test_bad_input_gets_its_message",
    "extends": "tests/recipes/test_recipes.py::test_a_variant_states_only_what_differs_from_its_base",
}
NAMES = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))
SET = sorted({key for name in NAMES for key in recipe.read(ROOT / "recipes" / f"{name}.yaml")})
# Read after training, by the evaluation, whose tests are these.
TASK = {
    "task",
    "predict_by",
    "labels",
    "label_field",
    "label_pattern",
    "max_new_tokens",
    "json_schema",
    "group_column",
}
TESTS_OF_THE_TASK = ("recipes/test_task.py", "evaluate/test_evaluate.py")


@pytest.fixture(autouse=True)
def in_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def loaded(values: dict[str, Any]) -> recipe.Recipe:
    return load("default", {key: Value(value, "a test") for key, value in values.items()})


@functools.cache
def given(overrides: str) -> dict[str, Any]:
    """What `train.build` hands to the trainer for the default with overrides, as JSON.

    Arguments, adapter, quantisation, model and rows.
    """
    chosen = loaded(json.loads(overrides))
    resolved = topology.resolve(chosen, topology.read(chosen["accelerate_config"], "a test"))
    prepared = {"dataset_name": "prepared", "use_cpu": True, "output_dir": "unused"}
    # Training arguments set variables of the environment, which other tests must not see.
    with pytest.MonkeyPatch.context() as patched, mock.patch.dict(os.environ):
        patched.setattr(train, "load_dataset", lambda name: {"train": name, "validation": name, "test": name})
        patched.setattr(train, "Trainer", lambda **arguments: arguments)
        made: Any = train.build(resolved.upstream() | prepared)
    # Not `to_dict`, which hides every value whose key ends in _token.
    made["args"] = {field.name: getattr(made["args"], field.name) for field in dataclasses.fields(made["args"])}
    for key in ("quantization_config", "peft_config"):
        made[key] = made[key] and made[key].to_dict()
    return made


def ours(chosen: recipe.Recipe) -> dict[str, Any]:
    """What follows from our own keys, and is no argument of the libraries."""
    where = topology.read(chosen["accelerate_config"], "a test")
    model = base_model.find(chosen["model_name_or_path"])
    found = lint.findings(Case(chosen, where, model=model))
    return {
        "shown": chosen["description"],
        "where": topology.choose(chosen, None, None, []).facts(),
        "rows": preparation.source_of(chosen),
        "memory": memory.Setup.of(chosen, where, 2048, 512),
        "silenced": [each.rule for each in found if each.silenced],
    }


@pytest.mark.parametrize("key", OTHER)
def test_another_value_changes_what_the_libraries_are_given_or_what_we_do(key: str) -> None:
    value, with_it = OTHER[key]
    before, after = loaded(with_it), loaded({**with_it, key: value})
    assert before[key] != value, "another value than the one it has"
    if key in ("dataset_name", "dataset_config") or (key in schema.own() and key != "global_batch_size"):
        assert ours(before) != ours(after)
    else:
        assert given(json.dumps(with_it)) != given(json.dumps({**with_it, key: value}))


@pytest.mark.parametrize("key", SET)
def test_the_effect_of_every_key_that_a_recipe_sets_is_tested(key: str) -> None:
    if key in ELSEWHERE:
        file, _, name = ELSEWHERE[key].partition("::")
        assert f"\ndef {name}(" in (ROOT / file).read_text(encoding="utf-8")
    elif key in TASK:
        assert any(key in (ROOT / "tests" / name).read_text(encoding="utf-8") for name in TESTS_OF_THE_TASK)
    else:
        assert key in OTHER


def test_the_effect_of_every_key_with_evidence_is_tested() -> None:
    keys = set(why.documented()) & schema.known().keys()
    assert keys - OTHER.keys() - ELSEWHERE.keys() - TASK == set()
    assert OTHER.keys() - keys == set(), "write its evidence"


def upstream_code() -> str:
    """The code of the libraries that reads training arguments."""
    trainers = Path(trl.__file__).parent / "trainer"
    transformers = Path(training_args.__file__).parent
    files = [
        *(trainers / name for name in ("sft_trainer.py", "base_trainer.py", "utils.py")),
        *transformers.glob("trainer*.py"),
        *(transformers / "integrations").glob("*.py"),
        *(transformers / "distributed").glob("*.py"),
        transformers / "training_args.py",
    ]
    return "\n".join(path.read_text(encoding="utf-8") for path in files)


def test_no_training_argument_that_a_recipe_may_set_is_dead_upstream() -> None:
    """A field that nothing reads changes the arguments and nothing else."""
    code = upstream_code()
    fields = [key for key, entry in schema.known().items() if entry["class"] == "SFTConfig"]
    assert len(fields) > 90
    assert [key for key in fields if not read(key, code)] == []
    assert not read("no_such_argument", code)


# Why each key is refused that upstream reads and that could change nothing here, or only break something.


def test_what_is_derived_for_every_run_cannot_be_set() -> None:
    for name in ("cpu", "ddp", "zero3"):
        resolved = topology.resolve(loaded({}), topology.read(name, "a test"))
        always = {key for key in resolved.values if resolved.values[key].origin.startswith("derived: ")}
        written = {"greater_is_better", "use_cpu", "activation_checkpointing_kwargs"}
        assert always - written <= schema.REFUSED.keys()
        assert always >= {"logging_nan_inf_filter", "restore_callback_states_from_checkpoint"}


def test_the_trainer_is_given_no_metrics_function() -> None:
    refused = {"include_for_metrics", "batch_eval_metrics", "eval_do_concat_batches", "prediction_loss_only"}
    assert refused <= schema.REFUSED.keys()
    assert not {"compute_metrics", "preprocess_logits_for_metrics"} & given("{}").keys()


def test_evaluation_gathers_losses_alike_in_one_array_and_in_many() -> None:
    """What `eval_do_concat_batches` decides."""
    losses = []
    for concatenated in (True, False):
        kept = EvalLoopContainer(concatenated, padding_index=-100)
        for batch in (torch.tensor([1.0, 2.0]), torch.tensor([4.0])):
            kept.add(batch)
        found = kept.get_arrays()
        losses.append(np.concatenate(found) if isinstance(found, list) else found)
    assert losses[0].tolist() == losses[1].tolist() == [1.0, 2.0, 4.0]


@pytest.mark.parametrize("columns", [("instruction", "output"), ("prompt", "completion"), ("messages",)])
def test_prepared_rows_have_no_column_that_a_text_field_or_a_length_could_name(
    tmp_path: Path, columns: tuple[str, ...]
) -> None:
    turns = [{"role": role, "content": role} for role in ("user", "assistant", "user", "assistant")]
    row = {column: turns if column == "messages" else column for column in columns}
    (tmp_path / "rows.jsonl").write_text(json.dumps({**row, "text": "of the user", "length": 3}) + "\n")
    prepared = preparation.prepare(
        train_file=str(tmp_path / "rows.jsonl"), validation_file=None, cache=tmp_path / "cache"
    )
    (written,) = (prepared.directory / "train.jsonl").read_text().splitlines()
    assert set(json.loads(written)) in ({"prompt", "completion"}, {"messages"})
    assert {"dataset_text_field", "length_column_name"} <= schema.REFUSED.keys()


def read(key: str, code: str) -> bool:
    """Whether the code reads the attribute, other than to give it a value."""
    return bool(re.search(rf"\.{key}\b(?!\s*=[^=])", code))


def test_a_threshold_decides_what_counts_as_an_improvement(train_here: Any) -> None:
    run = train_here(num_train_epochs=3, early_stopping_patience=1, early_stopping_threshold=100.0)
    measured = run.facts()["measured"]
    first, second = (each["eval_loss"] for each in measured["eval_loss"])
    assert measured["step"] == 2 * 8 and first - second > load("default")["early_stopping_threshold"]
