"""What a recipe may say: the keys of TRL, the few of our own, and what to write instead of everything else.

TRL's fields are read from `upstream.json`, a snapshot that a test keeps equal to the installed TRL, because importing
TRL takes ten seconds and a misspelt key deserves an answer at once.
"""

import dataclasses
import difflib
import functools
import json
import math
from collections.abc import Callable
from importlib import resources
from typing import Any


@dataclasses.dataclass(frozen=True)
class OwnKeys:
    """The keys that TRL does not have. Each is read by code and set by a recipe; everything else is upstream's."""

    extends: str | None = None
    """Another recipe of the same directory; this one is then only its difference. One level deep."""
    description: str = ""
    """The one idea of the recipe, as `make list` shows it."""
    accelerate_config: str | None = None
    """The accelerate config it is paired with; ACCEL= overrides it, and without either the hardware decides."""
    global_batch_size: int = 64
    """Rows per optimizer step over all processes; gradient accumulation is derived from it."""
    train_file: str | None = None
    """JSONL, JSON, CSV or Parquet with the training rows; or name a Hub dataset with `dataset_name`."""
    validation_file: str | None = None
    """The rows that are held out; without it, `validation_split_size` of the training rows."""
    test_file: str | None = None
    """Rows that are never trained on: to find them among the training rows, and to evaluate on at the end."""
    validation_split_size: float = 0.0
    """Share of the training rows to hold out when there is no validation file, chosen by a hash of the row."""
    data_format: str = "auto"
    """messages, sharegpt, prompt_completion or alpaca; auto looks at the columns."""
    data_columns: dict | None = None
    """The user's column for a field of the format, e.g. {instruction: text, output: label}."""
    adapter_dtype: str = "float32"
    """Dtype in which adapter weights and their optimizer state are kept; also after a resume."""
    early_stopping_patience: int = 0
    """Evaluations without improvement after which training stops; 0 never stops early."""
    early_stopping_threshold: float = 0.0
    """What counts as an improvement, as an absolute difference of `metric_for_best_model`."""
    task: str | None = None
    """What the answers are, for the evaluation on `test_file`: classification or generation; without it, none."""
    predict_by: str | None = None
    """How a class is predicted: by the likelihood of each label's answer (the default), or by generation."""
    labels: list | None = None
    """The classes; without it, those of the training answers."""
    label_field: str | None = None
    """The field of a JSON answer that holds the class; without it or `label_pattern` the whole answer is the class."""
    label_pattern: str | None = None
    """A regular expression whose one group is the class."""
    max_new_tokens: int | None = None
    """The longest answer to generate, in tokens; without it, twice the longest training answer, and 32 at least."""
    json_schema: str | None = None
    """A JSON schema file, which generated answers are checked against."""
    group_column: str | None = None
    """A column of the test rows by whose values the metrics are broken down."""
    silence: dict | None = None
    """Rules that a recipe breaks on purpose, each with the reason: {warmup-share: as documented by the origin}."""


OWN_CHOICES = {
    "data_format": ["auto", "messages", "sharegpt", "prompt_completion", "alpaca"],
    "adapter_dtype": ["float32", "bfloat16"],
    "task": ["classification", "generation"],
    "predict_by": ["likelihood", "generation"],
}

# Choices that upstream documents without declaring them on the field.
UPSTREAM_CHOICES = {
    "bnb_4bit_quant_storage": ["uint8", "bfloat16", "float16", "float32"],
    "report_to": ["none", "tensorboard", "trackio", "wandb", "mlflow"],
}

# Keys that existed once, or that other tools use, with what to write today. {value} is what the recipe says.
RENAMED = {
    "max_seq_length": "write max_length: {value}",
    "torch_dtype": "write dtype: {value}",
    "bnb_4bit_compute_dtype": "write dtype: {value}, which is also the 4-bit compute dtype",
    "bnb_4bit_use_double_quant": "write use_bnb_nested_quant: {value}",
    "warmup_ratio": "write warmup_steps: {value}; below 1 it is a share of all steps",
    "evaluation_strategy": "write eval_strategy: {value}",
    "group_by_length": "write train_sampling_strategy: group_by_length for true, drop the key for false",
    "gradient_checkpointing": "write activation_checkpointing: {value}",
    "gradient_checkpointing_kwargs": "write activation_checkpointing_kwargs: {value}",
    "overwrite_output_dir": "drop it; a run never overwrites another, choose its directory with NAME=",
    "logging_dir": "drop it; TensorBoard files lie in the run directory",
    "lora_bias": "drop it; TRL always trains with bias none",
    "cache_dir": "drop it and set the environment variable HF_HOME",
    "no_cuda": "drop it and choose ACCEL=cpu",
    "save_safetensors": "drop it; checkpoints are always safetensors",
    "push_to_hub_token": "drop it; tokens come from the environment (HF_TOKEN), never from a file",
    "use_liger": "drop it; TRL fuses the loss itself, kernels come by model_init_kwargs: {{use_kernels: true}}",
    "use_liger_kernel": "drop it; TRL fuses the loss itself, kernels come by model_init_kwargs: {{use_kernels: true}}",
    "use_flash_attention_2": "write attn_implementation: flash_attention_2 for true, drop the key for false",
    "chat_template": "write the template to a .jinja file and set chat_template_path",
    "pad_token": "drop it; TRL takes the tokenizer's own pad token",
    "include_tokens_per_second": "drop it; every run records tokens per second",
    "half_precision_backend": "drop it; bf16: true is all there is to say",
    "dataset_batch_size": "drop it; TRL no longer has it",
    "num_of_sequences": "drop it; TRL no longer has it",
    "chars_per_token": "drop it; TRL no longer has it",
    "model_name": "write model_name_or_path: {value}",
    "base_model": "write model_name_or_path: {value}",
    "lora_rank": "write lora_r: {value}",
    "lora_target_linear": "write lora_target_modules: [all-linear]",
    "micro_batch_size": "write per_device_train_batch_size: {value}",
    "sequence_len": "write max_length: {value}",
    "num_epochs": "write num_train_epochs: {value}",
    "eval_file": "write validation_file: {value}",
    "test_split_size": "write validation_split_size: {value}",
    "dataset_mixture": "prepare one file and set train_file",
}

# Fields TRL has and a recipe may not set, because they are facts of another place or would break a promise.
REFUSED = {
    "gradient_accumulation_steps": "it follows from global_batch_size, per_device_train_batch_size and the number of "
    "processes; set global_batch_size",
    "output_dir": "it is the run's directory; choose it with NAME=",
    "run_name": "it is the run's name; choose it with NAME=",
    "resume_from_checkpoint": "use make resume NAME=",
    "use_cpu": "it is a fact of the accelerate config; choose ACCEL=cpu",
    "deepspeed": "it is a fact of the accelerate config; choose ACCEL=zero2",
    "fsdp": "it is a fact of the accelerate config; choose ACCEL=fsdp2",
    "fsdp_config": "it is a fact of the accelerate config; choose ACCEL=fsdp2",
    "parallelism_config": "it is a fact of the accelerate config",
    "accelerator_config": "it is a fact of the accelerate config",
    "local_rank": "the launcher sets it",
    "ddp_backend": "it is a fact of the accelerate config",
    "ddp_find_unused_parameters": "it is derived: false, since every adapter takes part in every step",
    "hub_token": "tokens come from the environment (HF_TOKEN), never from a file",
    "trust_remote_code": "no code out of a model repository is run; choose a model that transformers itself knows",
    "push_to_hub": "look at the run first, then: hf upload ORG/NAME runs/NAME/adapter",
    **dict.fromkeys(
        ("hub_always_push", "hub_model_id", "hub_revision", "hub_strategy"),
        "a run uploads nothing; look at it first, then: hf upload ORG/NAME runs/NAME/adapter",
    ),
    "auto_find_batch_size": "it changes the batch size in silence; set per_device_train_batch_size",
    "enable_jit_checkpoint": "every run saves at a step boundary on SIGTERM already",
    "save_only_model": "a checkpoint without optimizer cannot be resumed exactly",
    "ignore_data_skip": "a resumed run would see other rows than the one it continues",
    "dataset_streaming": "data are checked as a whole before training",
    "dataset_kwargs": "data are prepared and checked as a whole before training",
    "disable_tqdm": "the terminal decides: a progress bar on a terminal, plain lines elsewhere",
    "logging_nan_inf_filter": "it is derived: false, so that a NaN stops the run; drop it",
    "restore_callback_states_from_checkpoint": "it is derived: true, so that a resumed run counts the evaluations "
    "without improvement on; drop it",
    "ignore_bias_buffers": "TRL reads it for preference training alone; drop it",
    "dataset_text_field": "rows are prepared as prompt and completion, or as messages; name your columns with "
    "data_columns",
    "length_column_name": "prepared rows have no column of lengths, they are counted from the tokens; drop it",
    "liger_kernel_config": "it configures use_liger_kernel, which is deprecated; kernels come by "
    "model_init_kwargs: {use_kernels: true}",
    # Nothing but the loss is evaluated during training.
    "include_for_metrics": "the trainer is given no metrics function; metrics are computed after training, set task",
    "batch_eval_metrics": "the trainer is given no metrics function; to empty the GPU's cache after each batch of an "
    "evaluation, set eval_accumulation_steps: 1",
    "eval_do_concat_batches": "the losses of an evaluation are averaged either way; drop it",
    "eval_use_gather_object": "losses are tensors, and an evaluation of one batch on several processes fails with it; "
    "drop it",
    "prediction_loss_only": "without a metrics function nothing but the loss is computed; drop it",
    "do_train": "the command decides",
    "do_eval": "set eval_strategy",
    "do_predict": "the command decides",
}


def _within(low: float, high: float, text: str) -> tuple[Callable[[float], bool], str]:
    return (lambda number: low <= number <= high), text


_POSITIVE = (lambda number: number > 0), "a number above 0"
_NOT_NEGATIVE = (lambda number: number >= 0), "0 or more"
RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "learning_rate": ((lambda number: 0 < number < 1), "above 0 and below 1"),
    "lora_dropout": ((lambda number: 0 <= number < 1), "0 or more and below 1"),
    "adam_beta1": ((lambda number: 0 <= number < 1), "0 or more and below 1"),
    "adam_beta2": ((lambda number: 0 <= number < 1), "0 or more and below 1"),
    "validation_split_size": ((lambda number: 0 <= number < 1), "0 or more and below 1"),
    "max_steps": ((lambda number: number == -1 or number > 0), "above 0, or -1 for all epochs"),
    "seed": _within(0, 2**32 - 1, "a whole number from 0 to 4294967295"),
    "data_seed": _within(0, 2**32 - 1, "a whole number from 0 to 4294967295"),
    **dict.fromkeys(
        (
            "lora_r",
            "lora_alpha",
            "num_train_epochs",
            "per_device_train_batch_size",
            "per_device_eval_batch_size",
            "global_batch_size",
            "max_length",
            "max_new_tokens",
            "logging_steps",
            "eval_steps",
            "save_steps",
            "save_total_limit",
        ),
        _POSITIVE,
    ),
    **dict.fromkeys(
        (
            "weight_decay",
            "warmup_steps",
            "max_grad_norm",
            "early_stopping_patience",
            "early_stopping_threshold",
            "neftune_noise_alpha",
            "dataloader_num_workers",
            "adam_epsilon",
        ),
        _NOT_NEGATIVE,
    ),
}


@functools.cache
def upstream() -> dict[str, dict[str, Any]]:
    """TRL's fields by name: `class`, `types`, `default`, and `choices` where limited."""
    text = resources.files("sft_recipes.recipes").joinpath("upstream.json").read_text(encoding="utf-8")
    return json.loads(text)


@functools.cache
def own() -> dict[str, dict[str, Any]]:
    """Our own keys in the same form as `upstream`."""
    names: dict[Any, list[str]] = {
        str: ["str"],
        int: ["int"],
        float: ["float"],
        int | None: ["int", "null"],
        dict | None: ["dict", "null"],
        list | None: ["list[str]", "null"],
    }
    return {
        field.name: {
            "class": "OwnKeys",
            "types": names.get(field.type, ["null", "str"]),
            "default": field.default,
            **({"choices": OWN_CHOICES[field.name]} if field.name in OWN_CHOICES else {}),
        }
        for field in dataclasses.fields(OwnKeys)
    }


def known() -> dict[str, dict[str, Any]]:
    """Every key a recipe may set."""
    return {**{key: entry for key, entry in upstream().items() if key not in REFUSED | RENAMED}, **own()}


def problem(key: str, value: Any) -> str | None:
    """What is wrong with `key: value`, with what to write instead; None if nothing is."""
    if key in RENAMED:
        return f"{key} is not a key of TRL {_trl_version()}: {RENAMED[key].format(value=as_yaml(value))}"
    if key in REFUSED:
        return f"{key} does not belong in a recipe: {REFUSED[key]}"
    entry = known().get(key)
    if entry is None:
        if isinstance(value, dict):
            return f"{key}: no such key; a recipe is flat, so move {', '.join(map(str, value))} to the top level"
        near = difflib.get_close_matches(key, known(), n=1, cutoff=0.6)
        return f"{key}: no such key" + (f"; did you mean {near[0]}?" if near else "; `sft-recipes keys` lists them")
    if not any(_fits(value, name) for name in entry["types"]):
        return f"{key}: {as_yaml(value)} is {_described(value)}, but {_wanted(key, value, entry)}"
    limited = entry.get("choices") or UPSTREAM_CHOICES.get(key)
    if limited and value is not None:
        for item in value if isinstance(value, list) else [value]:
            if item not in limited:
                near = difflib.get_close_matches(str(item), limited, n=1, cutoff=0.5)
                hint = f"; did you mean {near[0]}?" if near else ""
                return f"{key}: {as_yaml(item)} is not one of {', '.join(map(str, limited))}{hint}"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{key}: {as_yaml(value)} is out of range; it must be finite"
    if key in RANGES and isinstance(value, (int, float)) and not isinstance(value, bool):
        fits, text = RANGES[key]
        if not fits(value):
            return f"{key}: {as_yaml(value)} is out of range; it must be {text}"
    return None


def as_yaml(value: Any) -> str:
    """A value as a recipe writes it, on one line."""
    if isinstance(value, str):
        return value if value and value.strip() == value else json.dumps(value)
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False)


def _fits(value: Any, name: str) -> bool:
    if isinstance(value, bool):
        return name == "bool"
    if name == "list[str]":
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    kinds: dict[str, type | tuple[type, ...]] = {
        "int": int,
        "float": (int, float),
        "str": str,
        "dict": dict,
        "list": list,
        "null": type(None),
    }
    return name in kinds and isinstance(value, kinds[name])


def _described(value: Any) -> str:
    names = {bool: "a truth value", int: "a whole number", float: "a number", str: "text", dict: "a mapping"}
    return names.get(type(value), "a list" if isinstance(value, list) else "empty")


def _wanted(key: str, value: Any, entry: dict[str, Any]) -> str:
    types = entry["types"]
    if isinstance(value, str) and any(name.startswith("list") for name in types):
        return f"a list is wanted: [{', '.join(part.strip() for part in value.split(','))}]"
    if "bool" in types:
        return "true or false is wanted"
    names = {"int": "a whole number", "float": "a number", "str": "text", "dict": "a mapping", "list[str]": "a list"}
    wanted = " or ".join(names[name] for name in types if name in names)
    if isinstance(value, list) and len(value) == 1 and not isinstance(value[0], list):
        return f"{wanted} is wanted: {key}: {as_yaml(value[0])}"
    if isinstance(value, str) and "str" not in types:
        return f"{wanted} is wanted, without quotes or units"
    return f"{wanted} is wanted"


@functools.cache
def _trl_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("trl")
    except PackageNotFoundError:
        return "today"
