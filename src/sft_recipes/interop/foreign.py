"""What the keys of other tools' SFT files mean in ours. Facts of the tools; `audit.py` applies them.

A key's meaning is a function of its value and the whole file. A key that no table here holds is looked up in
`schema`: what was renamed, what does not belong in a recipe, and what is TRL's or ours. Read from the configuration
classes of Axolotl, LLaMA-Factory, alignment-handbook and TRL.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from sft_recipes.recipes import schema

File = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Said:
    """What a foreign key says in our words: `values` for the recipe, and `why` they differ or are absent."""

    outcome: str
    """translated, dropped, or inexpressible; a value that arrives unchanged under its own name is kept."""
    why: str = ""
    values: dict[str, Any] = dataclasses.field(default_factory=dict)


Meaning = Callable[[Any, File], Said]

OFF = Said("dropped", "off, as it is here")
KERNELS = "a faster kernel for the same arithmetic; TRL fuses the loss itself"
DIRECTORY = "files of a run lie in its directory, runs/NAME"
ACCELERATE = "a fact of the accelerate config, not of what is learned"
ONE_FILE = "bring all rows into one file of one format and set train_file"
OWN_TEMPLATE = (
    "rows are rendered by the tokenizer's own chat template; if that is another one, or there is none, set "
    "chat_template_path"
)


def _as(key: str, why: str = "") -> Meaning:
    return lambda value, file: Said("translated", why, {key: value})


def _drop(why: str) -> Meaning:
    return lambda value, file: Said("dropped", why)


def _cannot(instead: str) -> Meaning:
    """Nothing of ours says it; where it is off, nothing has to."""
    return lambda value, file: Said("inexpressible", instead) if value else OFF


def _flag(why: str = "", **values: Any) -> Meaning:
    """A switch that stands for values of ours when it is on."""
    return lambda value, file: Said("translated", why, values) if value is True else OFF


def _choice(key: str, meanings: Mapping[Any, Any], instead: str) -> Meaning:
    """A key whose values have other names here."""

    def say(value: Any, file: File) -> Said:
        if isinstance(value, (str, int)) and value in meanings:
            return Said("translated", "", {key: meanings[value]})
        return Said("inexpressible", instead)

    return say


def _held_out(file: File) -> bool:
    return bool(file.get("val_set_size") or file.get("val_size") or file.get("test_datasets"))


def _share(value: Any, file: File) -> Said:
    if not value:
        return Said("dropped", "nothing is held out, so nothing is evaluated")
    if isinstance(value, (int, float)) and value >= 1:
        return Said(
            "inexpressible", f"{value} is a number of rows; write validation_split_size as a share of them all"
        )
    return Said("translated", "", {"validation_split_size": value})


def _per_epoch(kind: str) -> Meaning:
    """Axolotl's evals_per_epoch and saves_per_epoch: a share of all steps, as upstream's *_steps below 1 is."""

    def say(value: Any, file: File) -> Said:
        if kind == "eval" and not _held_out(file):
            return Said("dropped", "nothing is held out, so nothing is evaluated")
        if value == 0:
            return Said("translated", "", {f"{kind}_strategy": "no"})
        epochs = file.get("num_epochs")
        if value == 1:
            return Said("translated", "", {f"{kind}_strategy": "epoch"})
        whole = isinstance(value, int) and 0 < value <= 1000
        if not whole or not isinstance(epochs, (int, float)) or not epochs > 0:
            return Said("inexpressible", f"set {kind}_strategy: steps and {kind}_steps, below 1 a share of all steps")
        share = round(1 / (value * epochs), 6)
        why = f"1 / ({value} an epoch x {epochs} epochs); below 1 it is a share of all steps"
        return Said("translated", why, {f"{kind}_strategy": "steps", f"{kind}_steps": share})

    return say


def _steps(kind: str) -> Meaning:
    def say(value: Any, file: File) -> Said:
        if kind == "eval" and not _held_out(file):
            return Said("dropped", "nothing is held out, so nothing is evaluated")
        return Said("translated", "", {f"{kind}_strategy": "steps", f"{kind}_steps": value})

    return say


# Data

FILE_ENDINGS = (".jsonl", ".json", ".csv", ".parquet")


def _dataset(entry: Any, names: Mapping[str, str], ignored: tuple[str, ...] = ()) -> Said:
    """One entry of a list of datasets; `names` are the tool's words for path, config, split and files."""
    if not isinstance(entry, Mapping) or not isinstance(entry.get(names["path"]), str):
        return Said("inexpressible", "its one dataset names no path; set train_file or dataset_name")
    path, files = entry[names["path"]], entry.get("data_files")
    if isinstance(files, list) and len(files) == 1:
        files = files[0]
    split = entry.get(names["split"])
    if isinstance(split, str) and "[" in split:
        return Said("inexpressible", f"a slice of a split; {ONE_FILE}")
    values: dict[str, Any]
    if isinstance(files, str) or path.endswith(FILE_ENDINGS):
        values = {"train_file": files if isinstance(files, str) else path}
    elif files:
        return Said("inexpressible", f"several data files; {ONE_FILE}")
    else:
        values = {"dataset_name": path}
        if entry.get(names["config"]) is not None:
            values["dataset_config"] = entry[names["config"]]
        if split is not None:
            values["dataset_train_split"] = split
    rest = [
        key
        for key, value in entry.items()
        if key not in (*names.values(), "data_files", *ignored) and value not in (None, False)
    ]
    if rest:
        return Said("inexpressible", f"taken over without {', '.join(rest)}; bring the rows into shape first", values)
    return Said("translated", "", values)


def _mixture(value: Any, file: File) -> Said:
    """alignment-handbook's and open-r1's dataset_mixture."""
    datasets = value.get("datasets") if isinstance(value, Mapping) else None
    if not isinstance(datasets, list) or len(datasets) != 1 or not isinstance(datasets[0], Mapping):
        number = f"{len(datasets)} datasets; " if isinstance(datasets, list) else ""
        return Said("inexpressible", number + schema.RENAMED["dataset_mixture"])
    if datasets[0].get("weight") not in (None, 1):
        return Said("inexpressible", f"a share of the rows; {ONE_FILE}")
    names = {"path": "id", "config": "config", "split": "split"}
    said = _dataset(datasets[0], names, ("columns", "weight"))
    held = value.get("test_split_size")
    if not held:
        return said
    share = _share(held, file)
    outcome = "inexpressible" if "inexpressible" in (said.outcome, share.outcome) else said.outcome
    return Said(outcome, "; ".join(filter(None, (said.why, share.why))), said.values | share.values)


def _mixer(value: Any, file: File) -> Said:
    """alignment-handbook's older dataset_mixer: shares by dataset."""
    if not isinstance(value, Mapping) or len(value) != 1:
        return Said("inexpressible", f"several datasets; {ONE_FILE}")
    name, share = next(iter(value.items()))
    if share != 1:
        return Said("inexpressible", f"{share} of the rows; {ONE_FILE}")
    return Said("translated", "", {"dataset_name": name})


def _splits(value: Any, file: File) -> Said:
    names = value if isinstance(value, list) else [value]
    train = [name for name in names if isinstance(name, str) and "train" in name]
    test = [name for name in names if isinstance(name, str) and "test" in name]
    if len(train) != 1 or len(test) > 1 or len(train) + len(test) != len(names):
        return Said("inexpressible", "set dataset_train_split and dataset_test_split, one each")
    values = {"dataset_train_split": train[0]} | ({"dataset_test_split": test[0]} if test else {})
    return Said("translated", "", values)


def _configs(value: Any, file: File) -> Said:
    if isinstance(value, list) and len(value) == 1:
        return Said("translated", "", {"dataset_config": value[0]})
    return Said("inexpressible", f"several dataset configs; {ONE_FILE}")


def _split(key: str) -> Meaning:
    def say(value: Any, file: File) -> Said:
        if isinstance(value, str) and "[" in value:
            return Said("inexpressible", f"a slice of a split; {ONE_FILE}")
        return Said("translated", "", {key: value})

    return say


def _text_field(value: Any, file: File) -> Said:
    if value == "text":
        return Said("dropped", "TRL reads it for rows of plain text alone")
    return Said("inexpressible", "rows of plain text are not trained on; bring them into prompt and completion")


def _trl_datasets(value: Any, file: File) -> Said:
    if not isinstance(value, list) or len(value) != 1:
        return Said("inexpressible", f"several datasets; {ONE_FILE}")
    return _dataset(value[0], {"path": "path", "config": "name", "split": "split"}, ("columns",))


# What of an entry says how its rows are read, or changes nothing here.
_AXOLOTL_DATASET = (
    "type",
    "ds_type",
    "trust_remote_code",
    "field_messages",
    "message_field_role",
    "message_field_content",
    "message_property_mappings",
    "roles",
    "chat_template",
)


def _axolotl_datasets(value: Any, file: File) -> Said:
    if not isinstance(value, list) or len(value) != 1 or not isinstance(value[0], Mapping):
        return Said("inexpressible", f"several datasets; {ONE_FILE}")
    entry, names = value[0], {"path": "path", "config": "name", "split": "split"}
    said = _dataset(entry, names, _AXOLOTL_DATASET)
    kind = entry.get("type")
    values: dict[str, Any]
    if kind == "alpaca":
        why = "Axolotl writes `### Instruction:` around alpaca rows, here they are turns of the chat template"
        values = {"data_format": "alpaca"}
    elif kind == "chat_template" and _openai_turns(entry):
        why, values = "", {"data_format": "messages"}
        column = entry.get("field_messages", "messages")
        if column != "messages":
            values |= {"data_columns": {"messages": column}}
    elif kind == "chat_template" or (isinstance(kind, str) and kind.startswith("sharegpt")):
        column = entry.get("field_messages", "conversations")
        why, values = "turns of from and value", {"data_format": "sharegpt"}
        if column != "conversations":
            values |= {"data_columns": {"conversations": column}}
    else:
        instead = "bring the rows into messages, sharegpt, prompt_completion or alpaca, and set data_format"
        return Said("inexpressible", f"type {kind if isinstance(kind, str) else 'of its own'}: {instead}", said.values)
    outcome = said.outcome
    if entry.get("chat_template") not in (None, "tokenizer_default"):
        outcome, why = "inexpressible", f"{why}; {OWN_TEMPLATE}" if why else OWN_TEMPLATE
    return Said(outcome, "; ".join(filter(None, (said.why, why))), said.values | values)


def _openai_turns(entry: Mapping[str, Any]) -> bool:
    mapping = entry.get("message_property_mappings") or {}
    role = mapping.get("role") if isinstance(mapping, Mapping) else None
    return (entry.get("message_field_role") or role or "role") == "role"


def _test_datasets(value: Any, file: File) -> Said:
    if not value:
        return OFF
    said = _axolotl_datasets(value, file)
    if said.outcome == "translated" and "train_file" in said.values:
        return Said("translated", "", {"validation_file": said.values["train_file"]})
    return Said("inexpressible", "bring the held-out rows into one file and set validation_file")


# Precision, adapters, loss


def _bf16(value: Any, file: File) -> Said:
    """Axolotl and LLaMA-Factory load the model in the dtype they compute in; TRL's dtype is a key of its own."""
    if value in (True, "auto"):
        if value == "auto" and file.get("fp16"):
            return Said("dropped", "fp16 is chosen")
        why = "true wherever the GPU can" if value == "auto" else ""
        return Said("translated", why, {"bf16": True, "dtype": "bfloat16"})
    if value is False:
        return Said("translated", "", {"bf16": False})
    return Said("inexpressible", "write bf16: true, or adapter_dtype: bfloat16 for adapters without a float32 copy")


def _fp16(value: Any, file: File) -> Said:
    return Said("translated", "", {"fp16": True, "bf16": False, "dtype": "float16"}) if value is True else OFF


def _adapter(value: Any, file: File) -> Said:
    nf4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "use_bnb_nested_quant": True}
    if value == "qlora" or (value == "lora" and file.get("load_in_4bit")):
        return Said("translated", "4-bit is NF4 with double quantisation in Axolotl", {"use_peft": True, **nf4})
    if value == "lora":
        return Said("translated", "", {"use_peft": True})
    if not value:
        return Said("translated", "every weight is trained", {"use_peft": False})
    return Said("inexpressible", "only LoRA is trained here; set use_peft: true")


def _axolotl_targets(value: Any, file: File) -> Said:
    if file.get("lora_target_linear"):
        return Said("dropped", "lora_target_linear already names every linear layer")
    if isinstance(value, str) and value not in ("all-linear", "all_linear"):
        return Said("inexpressible", "a pattern; write the names of the layers as a list")
    return Said("translated", "", {"lora_target_modules": ["all-linear"] if isinstance(value, str) else value})


def _targets(value: Any, file: File) -> Said:
    names = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
    if names == ["all"]:
        return Said("translated", "all linear layers but the head", {"lora_target_modules": ["all-linear"]})
    return Said("translated", "", {"lora_target_modules": names})


def _extra_modules(value: Any, file: File) -> Said:
    names = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
    return Said("translated", "", {"lora_modules_to_save": names}) if names else OFF


def _quantization_bit(value: Any, file: File) -> Said:
    if file.get("quantization_method") not in (None, "bnb", "bitsandbytes"):
        return Said("inexpressible", "only bitsandbytes quantises here; set load_in_4bit: true")
    if value == 4:
        return Said("translated", "", {"load_in_4bit": True})
    if value == 8:
        return Said("translated", "", {"load_in_8bit": True})
    return Said("inexpressible", "only 4 and 8 bits; set load_in_4bit or load_in_8bit")


def _on_prompts(value: Any, file: File) -> Said:
    why = "the loss is on every token, prompts too" if value else "the loss is on the answers alone"
    return Said("translated", why, {"completion_only_loss": not value})


def _finetuning_type(value: Any, file: File) -> Said:
    if value in ("lora", "full"):
        return Said("translated", "", {"use_peft": value == "lora"})
    return Said(
        "inexpressible", "use_peft: true trains LoRA and use_peft: false every weight; there is nothing between"
    )


def _special_tokens(value: Any, file: File) -> Said:
    if not value:
        return OFF
    if not isinstance(value, Mapping):
        return Said("inexpressible", "write eos_token, if the tokenizer's own is not the right one")
    others = [key for key, token in value.items() if key not in ("pad_token", "eos_token") and token is not None]
    if others:
        return Said(
            "inexpressible", f"{', '.join(map(str, others))} would change the tokenizer; save one that has them"
        )
    if value.get("eos_token") is not None:
        return Said("translated", "pad_token: TRL takes the tokenizer's own", {"eos_token": value["eos_token"]})
    return Said("dropped", "TRL takes the tokenizer's own pad token, and no loss is computed on padding")


def _trackers(value: Any, file: File) -> Said:
    """Axolotl switches a tracker on by naming its project."""
    signs: dict[str, tuple[str, ...]] = {
        "wandb": ("wandb_project", "use_wandb"),
        "mlflow": ("mlflow_experiment_name", "use_mlflow"),
    }
    signs |= {"trackio": ("trackio_project_name", "use_trackio")}
    signs |= {"tensorboard": ("use_tensorboard",), "comet_ml": ("comet_project_name", "use_comet")}
    chosen = [name for name, keys in signs.items() if any(file.get(key) for key in keys)]
    if not value:
        return OFF
    return Said("translated", "names of projects come from the tracker's own environment", {"report_to": chosen})


def _scheduler(value: Any, file: File) -> Said:
    if file.get("cosine_min_lr_ratio") and value == "cosine":
        return Said("translated", "it ends at cosine_min_lr_ratio", {"lr_scheduler_type": "cosine_with_min_lr"})
    return Said("translated", "", {"lr_scheduler_type": value})


def _min_lr(value: Any, file: File) -> Said:
    if not value:
        return OFF
    values = {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": value}}
    return Said("translated", "", values)


def _checkpointing(value: Any, file: File) -> Said:
    if value in ("offload", "unsloth"):
        return Said("translated", "", {"activation_checkpointing": True, "activation_offloading": True})
    return Said("translated", "", {"activation_checkpointing": value})


def _plugins(value: Any, file: File) -> Said:
    names = value if isinstance(value, list) else [value]
    if all(isinstance(name, str) and ("liger" in name.lower() or "cut_cross" in name.lower()) for name in names):
        return Said("dropped", KERNELS)
    return Said("inexpressible", "plugins of Axolotl are not loaded here")


def _parallel(value: Any, file: File) -> Said:
    if value in (0, 1, None):
        return OFF
    return Said("inexpressible", "every process computes rows of its own here; say how many compute one step")


def _excess(value: Any, file: File) -> Said:
    if value == "truncate":
        return Said("dropped", "so TRL does")
    if value == "drop":
        return Said("dropped", "TRL cuts longer rows instead; leave them out of the file if they shall not be seen")
    return Said("inexpressible", "TRL cuts longer rows; look at their lengths first")


def _predefined(value: Any, file: File) -> Said:
    names = {"multi_gpu": "ddp", "fsdp1": "fsdp2"} | {name: name for name in ("single_gpu", "zero1", "zero2", "zero3")}
    names |= {"fsdp2": "fsdp2"}
    if isinstance(value, str) and value in names:
        return Said("translated", "", {"accelerate_config": names[value]})
    return Said("dropped", f"{ACCELERATE}; choose one of accelerate_configs/ with ACCEL=")


# One table a tool

_TRL: dict[str, Meaning] = {
    "datasets": _trl_datasets,
    "dataset_mixture": _mixture,
    "dataset_mixer": _mixer,
    "dataset_splits": _splits,
    "dataset_configs": _configs,
    "preprocessing_num_workers": _as("dataset_num_proc"),
    "dataset_train_split": _split("dataset_train_split"),
    "dataset_test_split": _split("dataset_test_split"),
    "dataset_text_field": _text_field,
    "dataset_kwargs": _cannot(schema.REFUSED["dataset_kwargs"]),
    "accelerate_config": _predefined,
    "streaming": _drop(schema.REFUSED["dataset_streaming"]),
    "test_split_size": _share,
    "auto_insert_empty_system_msg": _cannot("put the system turn into the rows"),
    "system_prompt": _cannot("put the system turn into the rows"),
    "text_column": _cannot("bring the rows into messages, sharegpt, prompt_completion or alpaca"),
    "benchmarks": _cannot("evaluate the adapter after the run"),
    "callbacks": _cannot("callbacks are not named in a recipe"),
    **dict.fromkeys(("overwrite_hub_revision", "push_to_hub_revision"), _drop(schema.REFUSED["push_to_hub"])),
    "use_unsloth": _drop(KERNELS),
    "dynamo_backend": _drop(ACCELERATE),
    "adapter_name_or_path": _cannot("a recipe starts from a base model; merge the adapter into it first"),
}

_AXOLOTL: dict[str, Meaning] = {
    **dict.fromkeys(
        ("model_type", "tokenizer_type", "trust_remote_code", "is_llama_derived_model", "is_mistral_derived_model"),
        _drop("transformers chooses the class from the model's own config"),
    ),
    "strict": _drop("every recipe is strict"),
    "revision_of_model": _as("model_revision"),
    "base_model_config": _cannot("model and config come from model_name_or_path"),
    "tokenizer_config": _cannot("model and tokenizer come from model_name_or_path"),
    "datasets": _axolotl_datasets,
    "test_datasets": _test_datasets,
    "pretraining_dataset": _cannot("supervised rows only; set train_file"),
    "val_set_size": _share,
    **dict.fromkeys(
        ("dataset_prepared_path", "dataset_keep_in_memory", "shuffle_merged_datasets", "hf_use_auth_token"),
        _drop("data are prepared once, cached by their content, and shuffled by the trainer"),
    ),
    "dataset_processes": _as("dataset_num_proc"),
    "dataset_exact_deduplication": _cannot("remove the duplicates from the rows"),
    "adapter": _adapter,
    "lora_model_dir": _cannot("a recipe starts from a base model; merge the adapter into it first"),
    "lora_target_modules": _axolotl_targets,
    "lora_fan_in_fan_out": _cannot("PEFT sets it for the models that need it"),
    "peft_use_dora": _as("use_dora"),
    "peft_use_rslora": _as("use_rslora"),
    **dict.fromkeys(
        ("loraplus_lr_ratio", "loraplus_lr_embedding", "peft_init_lora_weights", "peft_layers_to_transform", "relora"),
        _cannot("only plain LoRA, rsLoRA and DoRA are trained here"),
    ),
    "gptq": _cannot("only bitsandbytes quantises here"),
    "bnb_config_kwargs": _cannot("set bnb_4bit_quant_type, use_bnb_nested_quant and bnb_4bit_quant_storage"),
    "rl": _cannot("supervised fine-tuning only"),
    "sequence_len": _as("max_length", "Axolotl leaves longer rows out, TRL cuts their end"),
    "sample_packing": _as("packing"),
    "eval_sample_packing": _as("eval_packing"),
    "pad_to_sequence_len": _drop("rows are padded to the longest of a batch, and no loss is computed on padding"),
    "train_on_inputs": _on_prompts,
    "chat_template": lambda value, file: (
        OFF if value in (None, "tokenizer_default") else Said("inexpressible", OWN_TEMPLATE)
    ),
    "default_system_message": _cannot("put the system turn into the rows"),
    "special_tokens": _special_tokens,
    **dict.fromkeys(("tokens", "added_tokens_overrides"), _cannot("save a tokenizer and model that have the tokens")),
    "optimizer": _as("optim"),
    "lr_scheduler": _scheduler,
    "cosine_min_lr_ratio": _min_lr,
    **dict.fromkeys(("embedding_lr", "embedding_lr_scale", "lr_groups"), _cannot("one learning rate for all")),
    "bf16": _bf16,
    "fp16": _fp16,
    **dict.fromkeys(("bfloat16", "float16"), _cannot("pure half precision; write bf16: true or fp16: true")),
    "gradient_checkpointing": _checkpointing,
    "flash_attention": _flag(attn_implementation="flash_attention_2"),
    "sdp_attention": _flag(attn_implementation="sdpa"),
    "flex_attention": _flag(attn_implementation="flex_attention"),
    "eager_attention": _flag(attn_implementation="eager"),
    "xformers_attention": _flag("xformers is gone; PyTorch's own attention", attn_implementation="sdpa"),
    "s2_attention": _cannot("another attention than the model's own"),
    "plugins": _plugins,
    "eval_batch_size": _as("per_device_eval_batch_size"),
    "evals_per_epoch": _per_epoch("eval"),
    "saves_per_epoch": _per_epoch("save"),
    "eval_steps": _steps("eval"),
    "save_steps": _steps("save"),
    **dict.fromkeys(
        ("eval_table_size", "eval_table_max_new_tokens", "eval_max_new_tokens", "do_bench_eval", "max_prompt_len"),
        _drop("it only shows samples"),
    ),
    **dict.fromkeys(
        ("loss_watchdog_threshold", "loss_watchdog_patience"), _drop("a run whose loss is not a number stops at once")
    ),
    **dict.fromkeys(("debug", "device", "device_map", "ddp", "gpu_memory_limit", "max_memory"), _drop(ACCELERATE)),
    **dict.fromkeys(
        (
            "gc_steps",
            "low_cpu_mem_usage",
            "lora_on_cpu",
            "merge_lora",
            "save_first_step",
            "auto_resume_from_checkpoints",
            "profiler_steps",
            "experimental_skip_move_to_device",
            "qlora_sharded_model_loading",
            "layer_offloading",
            "tokenizer_use_fast",
            "tokenizer_save_jinja_files",
        ),
        _drop("it changes no weight"),
    ),
    **dict.fromkeys(
        ("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "tiled_mlp", "chunked_cross_entropy", "use_kernels"),
        _drop(KERNELS),
    ),
    **dict.fromkeys(("batch_flattening", "multipack_real_batches"), _drop("TRL lays out packed rows in its own way")),
    **dict.fromkeys(
        ("sequence_parallel_degree", "context_parallel_size", "tensor_parallel_size", "dp_shard_size"), _parallel
    ),
    "excess_length_strategy": _excess,
    "min_sample_len": _cannot("leave short rows out of the file"),
    "curriculum_sampling": _flag(train_sampling_strategy="sequential"),
    "noisy_embedding_alpha": _as("neftune_noise_alpha"),
    "eot_tokens": _cannot("the loss is on what the chat template puts into an assistant's turn; mark it there"),
    **dict.fromkeys(
        ("resize_token_embeddings_to_32x", "shrink_embeddings", "mean_resizing_embeddings", "fix_untrained_tokens"),
        _cannot("it changes the base model; save one that is changed, and name it"),
    ),
    **dict.fromkeys(("unfrozen_parameters", "peft", "qat", "quantization", "use_pose"), _cannot("only LoRA or QLoRA")),
    **dict.fromkeys(("dataset_shard_num", "skip_prepare_dataset"), _cannot(ONE_FILE)),
    **dict.fromkeys(
        (
            "wandb_project",
            "use_wandb",
            "use_tensorboard",
            "use_mlflow",
            "mlflow_experiment_name",
            "use_comet",
            "comet_project_name",
            "use_trackio",
            "trackio_project_name",
        ),
        _trackers,
    ),
    "trackio_run_name": _drop("names of projects and runs come from the tracker's own environment"),
    "push_dataset_to_hub": _drop(schema.REFUSED["push_to_hub"]),
}

_LLAMA_FACTORY: dict[str, Meaning] = {
    "stage": lambda value, file: (
        Said("dropped", "every recipe is") if value == "sft" else Said("inexpressible", "supervised fine-tuning only")
    ),
    "finetuning_type": _finetuning_type,
    "lora_target": _targets,
    "additional_target": _extra_modules,
    "quantization_bit": _quantization_bit,
    "quantization_method": _drop("bitsandbytes quantises here; what is asked stands under quantization_bit"),
    "quantization_type": _as("bnb_4bit_quant_type"),
    "double_quantization": _as("use_bnb_nested_quant"),
    "template": lambda value, file: Said("inexpressible", OWN_TEMPLATE),
    "dataset": _cannot("names of dataset_info.json, not files; set train_file, and data_format: alpaca or sharegpt"),
    "dataset_dir": _drop("train_file names the file itself"),
    "eval_dataset": _cannot("set validation_file"),
    "val_size": _share,
    "max_samples": _cannot("put the first rows of each dataset into the train_file"),
    "cutoff_len": _as("max_length", "LLaMA-Factory cuts prompt and answer in proportion, TRL the end"),
    "neat_packing": _flag("TRL's packing keeps rows apart", packing=True),
    "preprocessing_num_workers": _as("dataset_num_proc"),
    "streaming": _drop(schema.REFUSED["dataset_streaming"]),
    "train_on_prompt": _on_prompts,
    "mask_history": _cannot("the loss is on every answer of a row; split the rows so that each ends with the one"),
    **dict.fromkeys(
        ("overwrite_cache", "preprocessing_batch_size", "tokenized_path", "ignore_pad_token_for_loss"),
        _drop("data are prepared once and cached by their content; no loss is computed on padding"),
    ),
    "plot_loss": _drop("every run draws loss.png"),
    "include_effective_tokens_per_second": _drop("every run records tokens per second"),
    "flash_attn": _choice(
        "attn_implementation",
        {"auto": None, "fa2": "flash_attention_2", "sdpa": "sdpa", "disabled": "eager"},
        "set attn_implementation",
    ),
    "bf16": _bf16,
    "fp16": _fp16,
    "pure_bf16": _cannot("write bf16: true, or adapter_dtype: bfloat16 for adapters without a float32 copy"),
    "disable_gradient_checkpointing": lambda value, file: Said(
        "translated", "", {"activation_checkpointing": not value}
    ),
    "use_reentrant_gc": _drop("both ways give the same gradients"),
    "use_unsloth_gc": _flag(activation_checkpointing=True, activation_offloading=True),
    **dict.fromkeys(("enable_liger_kernel", "use_unsloth", "use_v1_kernels"), _drop(KERNELS)),
    **dict.fromkeys(("use_fast_tokenizer", "low_cpu_mem_usage", "print_param_status"), _drop("it changes no weight")),
    "use_dft_loss": _flag(loss_type="dft"),
    "moe_aux_loss_coef": _as("router_aux_loss_coef"),
    "disable_shuffling": _flag(train_sampling_strategy="sequential"),
    "adapter_name_or_path": _cannot("a recipe starts from a base model; merge the adapter into it first"),
    **dict.fromkeys(
        ("resize_vocab", "add_tokens", "add_special_tokens", "rope_scaling", "upcast_layernorm", "shift_attn"),
        _cannot("it changes the base model; save one that is changed, and name it"),
    ),
    **dict.fromkeys(
        ("loraplus_lr_ratio", "pissa_init", "use_galore", "use_apollo", "use_badam", "use_adam_mini", "use_muon"),
        _cannot("only plain LoRA, rsLoRA and DoRA, with transformers' optimizers, are trained here"),
    ),
    "early_stopping_steps": _as("early_stopping_patience", "both count evaluations without improvement"),
    **dict.fromkeys(
        ("predict_with_generate", "compute_accuracy", "generation_max_length", "max_new_tokens", "top_p"),
        _drop("it changes the evaluation, not what is learned"),
    ),
    **dict.fromkeys(("mix_strategy", "interleave_probs", "eval_on_each_dataset"), _cannot(ONE_FILE)),
    **dict.fromkeys(("tool_format", "enable_thinking"), _cannot(OWN_TEMPLATE)),
    **dict.fromkeys(
        ("media_dir", "image_max_pixels", "video_max_pixels", "freeze_vision_tower", "freeze_multi_modal_projector"),
        _cannot("rows of text only"),
    ),
    **dict.fromkeys(
        ("fp8", "mixture_of_depths", "train_from_scratch", "use_llama_pro", "freeze_trainable_layers"),
        _cannot("only LoRA, QLoRA or every weight, in bf16 or fp16"),
    ),
    **dict.fromkeys(("placement_strategy", "resources_per_worker"), _drop(ACCELERATE)),
    **dict.fromkeys(
        ("use_swanlab", "swanlab_project", "swanlab_mode"), _cannot("choose another tracker by report_to")
    ),
}

TOOLS: dict[str, dict[str, Meaning]] = {
    "trl": _TRL,
    "alignment-handbook": _TRL,
    "axolotl": _AXOLOTL,
    "llama-factory": _LLAMA_FACTORY,
}
TITLES = {
    "trl": "TRL",
    "alignment-handbook": "alignment-handbook",
    "axolotl": "Axolotl",
    "llama-factory": "LLaMA-Factory",
}

# Keys by which a file is recognised: those that only one of the tools has. TRL's are everybody's.
SIGNS: dict[str, frozenset[str]] = {
    "alignment-handbook": frozenset({"dataset_mixer", "dataset_mixture", "dataset_splits", "dataset_configs"}),
    "axolotl": frozenset(
        {
            "base_model",
            "micro_batch_size",
            "sequence_len",
            "num_epochs",
            "adapter",
            "sample_packing",
            "val_set_size",
            "lora_target_linear",
            "train_on_inputs",
            "dataset_prepared_path",
            "optimizer",
            "lr_scheduler",
            "pad_to_sequence_len",
        }
    ),
    "llama-factory": frozenset(
        {
            "stage",
            "finetuning_type",
            "lora_rank",
            "lora_target",
            "quantization_bit",
            "template",
            "cutoff_len",
            "dataset_dir",
            "val_size",
            "plot_loss",
            "overwrite_cache",
        }
    ),
}

# Every key of a family that says the same.
PREFIXES: dict[str, Meaning] = {
    "hub_": _drop(schema.REFUSED["push_to_hub"]),
    "wandb_": _drop("names of projects and runs come from the tracker's own environment"),
    "mlflow_": _drop("names of projects and runs come from the tracker's own environment"),
    "comet_": _drop("names of projects and runs come from the tracker's own environment"),
    "export_": _drop("merging comes after the run"),
    "sample_packing_": _drop("TRL lays out packed rows in its own way"),
    "liger_": _drop(KERNELS),
    "unsloth_": _drop(KERNELS),
    "flash_attn_": _drop(KERNELS),
    "cut_cross_": _drop(KERNELS),
    "ray_": _drop(ACCELERATE),
    "fsdp_": _drop(ACCELERATE),
}

# Values that have another name today.
VALUES: dict[tuple[str, str], tuple[Any, str]] = {
    ("packing_strategy", "ffd"): ("bfd", "TRL renamed it and packs a little tighter"),
    ("optim", "adamw_hf"): ("adamw_torch", "transformers dropped its own copy of the same optimizer"),
    ("loss_type", "chunked_nll"): ("nll", "the same loss; it is chunked by itself"),
}


def defaults(tool: str, file: File) -> dict[str, Any]:
    """What the tool takes for keys that the file does not set, where that decides what is learned and differs here."""
    if tool in ("trl", "alignment-handbook"):
        found: dict[str, Any] = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
        if not file.get("fp16"):
            # trl/trainer/base_config.py of TRL 1.16.
            found["bf16"] = True
        if "completion_only_loss" not in file and "assistant_only_loss" not in file:
            # Its rows are conversations, and TRL computes their loss on every token unless it is told otherwise.
            found["completion_only_loss"] = tool == "trl"
    elif tool == "axolotl":
        found = {
            "micro_batch_size": 1,
            "gradient_accumulation_steps": 1,
            "num_epochs": 1.0,
            "sequence_len": 512,
            "optimizer": "adamw_torch_fused",
            "lr_scheduler": "cosine",
            "bf16": "auto",
            "train_on_inputs": False,
            "gradient_checkpointing": False,
        }
        if file.get("adapter"):
            found["lora_dropout"] = 0.0
        if file.get("warmup_steps") is None:
            found["warmup_ratio"] = 0.03
        if file.get("save_steps") is None and file.get("saves_per_epoch") is None:
            found["save_strategy"] = "epoch"
        if file.get("batch_size") and file.get("gradient_accumulation_steps") is None:
            del found["gradient_accumulation_steps"]
    else:
        found = {
            "per_device_train_batch_size": 8,
            "gradient_accumulation_steps": 1,
            "finetuning_type": "lora",
            "learning_rate": 5e-5,
            "cutoff_len": 2048,
            "train_on_prompt": False,
        }
        if file.get("finetuning_type", "lora") == "lora":
            rank = file.get("lora_rank") or 8
            found |= {"lora_rank": 8, "lora_dropout": 0.0, "lora_target": "all"}
            found |= {"lora_alpha": 2 * rank} if isinstance(rank, int) else {}
        if not file.get("fp16"):
            found["bf16"] = False
        if file.get("quantization_bit") == 4:
            found["double_quantization"] = True
    return {key: value for key, value in found.items() if file.get(key) is None}


# What a default means for the reader, beyond its value.
DEFAULT_WHY = {
    (
        "trl",
        "completion_only_loss",
    ): "so TRL does with rows of prompt and completion; conversations it trains on every token, for which write false",
    (
        "alignment-handbook",
        "completion_only_loss",
    ): "conversations are trained on every token, prompts too; write true for the answers alone",
    ("axolotl", "warmup_ratio"): "at most 100 steps there",
}
