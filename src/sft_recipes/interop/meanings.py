"""What takes more than a table to say of other tools' keys, each a function of the value and the whole file."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sft_recipes.interop.tables import DATA, OFF, File, Meaning, Translation, by_cases, cannot, sentence, translated
from sft_recipes.recipes import schema


def _per_epoch(kind: str) -> Meaning:
    """Axolotl's evals_per_epoch and saves_per_epoch: a share of all steps, as upstream's *_steps below 1 is."""

    def say(value: Any, file: File) -> Translation:
        if kind == "eval" and not (file.get("val_set_size") or file.get("test_datasets")):
            return Translation("dropped", sentence("$nothing_held_out"))
        if value in (0, 1):
            return translated(**{f"{kind}_strategy": "epoch" if value else "no"})
        epochs = file.get("num_epochs")
        whole = isinstance(value, int) and 0 < value <= 1000
        if not whole or not isinstance(epochs, (int, float)) or not epochs > 0:
            return cannot(f"set {kind}_strategy: steps and {kind}_steps, below 1 a share of all steps")
        why = f"1 / ({value} an epoch x {epochs} epochs); below 1 it is a share of all steps"
        return translated(why, **{f"{kind}_strategy": "steps", f"{kind}_steps": round(1 / (value * epochs), 6)})

    return say


def _dataset(entry: Any, names: Mapping[str, str], ignored: Sequence[str] = ()) -> Translation:
    """One entry of a list of datasets; `names` are the tool's words for path, config, split and files."""
    if not isinstance(entry, Mapping) or not isinstance(entry.get(names["path"]), str):
        return cannot("it names no path; set train_file or dataset_name")
    path, files, split = entry[names["path"]], entry.get("data_files"), entry.get(names["split"])
    if isinstance(files, list) and len(files) == 1:
        files = files[0]
    if isinstance(split, str) and "[" in split:
        return cannot("a slice of a split; $some_rows")
    if isinstance(files, str) or path.endswith((".jsonl", ".json", ".csv", ".parquet")):
        values = {"train_file": files if isinstance(files, str) else path}
    elif files:
        return cannot("several data files; $sources")
    else:
        found = {"dataset_config": entry.get(names["config"]), "dataset_train_split": split}
        values = {"dataset_name": path} | {key: value for key, value in found.items() if value is not None}
    known = (*names.values(), "data_files", *ignored)
    if rest := [key for key, value in entry.items() if key not in known and value not in (None, False)]:
        return cannot(f"taken over without {', '.join(map(str, rest))}; bring the rows into shape first", **values)
    return translated(**values)


_NAMES = {"path": "path", "config": "name", "split": "split"}
# What a recipe's key is called in one of several sources.
_OF_SOURCE = {"train_file": "file", "dataset_name": "dataset"} | {
    key: key.removeprefix("dataset_").removeprefix("train_")
    for key in ("dataset_config", "dataset_train_split", "data_format", "data_columns")
}


def _sources(value: Any, one: Callable[[Any], Translation]) -> Translation:
    """A list of datasets, all rows of each: one by the keys it always had, several as a list in `train_file`."""
    if not isinstance(value, list) or not value:
        return cannot("no list of datasets; set train_file or dataset_name")
    found = [one(entry) for entry in value]
    if len(found) == 1:
        return found[0]
    if wrong := [f"dataset {n}: {each.why}" for n, each in enumerate(found, 1) if each.outcome != "translated"]:
        return cannot("; ".join(wrong))
    why = "; ".join(dict.fromkeys(each.why for each in found if each.why))
    listed = [{_OF_SOURCE[key]: of_source for key, of_source in each.values.items()} for each in found]
    return translated(why, train_file=listed)


def _trl_datasets(value: Any, file: File) -> Translation:
    return _sources(value, lambda entry: _dataset(entry, _NAMES, ("columns",)))


def _mixture(value: Any, file: File) -> Translation:
    """alignment-handbook's and open-r1's dataset_mixture."""
    value = value if isinstance(value, Mapping) else {}
    names = {"path": "id", "config": "config", "split": "split"}

    def one(entry: Any) -> Translation:
        if isinstance(entry, Mapping) and entry.get("weight") not in (None, 1):
            return cannot("a share of the rows; $some_rows")
        return _dataset(entry, names, ("columns", "weight"))

    found = _sources(value.get("datasets"), one)
    held = value.get("test_split_size")
    return found + by_cases(DATA["tools"]["trl"]["cases"]["test_split_size"], held, file) if held else found


def _mixer(value: Any, file: File) -> Translation:
    """alignment-handbook's older dataset_mixer: shares by dataset."""
    if not isinstance(value, Mapping):
        return cannot("no shares by dataset; set train_file or dataset_name")

    def one(entry: tuple[Any, Any]) -> Translation:
        name, share = entry
        return translated(dataset_name=name) if share == 1 else cannot(f"{share} of the rows; $some_rows")

    return _sources([*value.items()], one)


def _splits(value: Any, file: File) -> Translation:
    names = value if isinstance(value, list) else [value]
    train = [name for name in names if isinstance(name, str) and "train" in name]
    test = [name for name in names if isinstance(name, str) and "test" in name]
    if len(train) != 1 or len(test) > 1 or len(train) + len(test) != len(names):
        return cannot("set dataset_train_split and dataset_test_split, one each")
    return translated(dataset_train_split=train[0], **({"dataset_test_split": test[0]} if test else {}))


def _configs(value: Any, file: File) -> Translation:
    if isinstance(value, list) and len(value) == 1:
        return translated(dataset_config=value[0])
    return cannot("several dataset configs; $sources")


def _axolotl_datasets(value: Any, file: File) -> Translation:
    return _sources(value, _axolotl_dataset)


def _axolotl_dataset(entry: Any) -> Translation:
    found = _dataset(entry, _NAMES, DATA["axolotl_dataset"])
    if not isinstance(entry, Mapping):
        return found
    kind = entry.get("type")
    if kind == "alpaca":
        why = "Axolotl writes `### Instruction:` around alpaca rows, here they are turns of the chat template"
        rows = translated(why, data_format="alpaca")
    elif kind == "chat_template" or (isinstance(kind, str) and kind.startswith("sharegpt")):
        rows = _axolotl_turns(entry, kind)
    else:
        instead = "bring the rows into messages, sharegpt, prompt_completion or alpaca, and set data_format"
        return cannot(f"type {kind if isinstance(kind, str) else 'of its own'}: {instead}", **found.values)
    if entry.get("chat_template") not in (None, "tokenizer_default"):
        rows += cannot("$own_template")
    return found + rows


def _axolotl_turns(entry: Mapping[str, Any], kind: str) -> Translation:
    """Conversations, as far as a format of ours reads what their turns, fields and roles are called."""
    given = entry.get("message_property_mappings") or {}
    names = dict(given) if isinstance(given, Mapping) else {}
    usual = ("role", "content") if kind == "chat_template" else ("from", "value")
    fields = tuple(
        entry.get(f"message_field_{name}") or names.pop(name, None) or own
        for name, own in zip(("role", "content"), usual, strict=True)
    )
    formats: dict[tuple[Any, ...], str] = {("role", "content"): "messages", ("from", "value"): "sharegpt"}
    data_format = formats.get(fields) if all(isinstance(field, str) for field in fields) else None
    if data_format is None:
        return cannot(f"turns of {' and '.join(map(str, fields))}; name them role and content in the rows")
    column = entry.get("field_messages") or ("messages" if kind == "chat_template" else "conversations")
    own_column = "messages" if data_format == "messages" else "conversations"
    rows = translated(
        "" if data_format == "messages" else "turns of from and value",
        data_format=data_format,
        **({"data_columns": {own_column: column}} if column != own_column else {}),
    )
    if others := [str(name) for name, theirs in names.items() if theirs != name]:
        rows += cannot(f"{', '.join(others)} of a turn under another name; name it so in the rows")
    roles, read = entry.get("roles"), DATA["roles"][data_format]
    if roles and not isinstance(roles, Mapping):
        return rows + cannot("roles is no mapping")
    wrong = [
        f"{name} as {role}"
        for role, theirs in (roles or {}).items()
        for name in (theirs if isinstance(theirs, list) else [theirs])
        if read.get(str(name)) != role
    ]
    return rows + cannot(f"roles {', '.join(wrong)}; rename them in the rows") if wrong else rows


def _test_datasets(value: Any, file: File) -> Translation:
    if not value:
        return OFF
    found = _axolotl_datasets(value, file)
    if found.outcome == "translated" and "train_file" in found.values:
        return translated(validation_file=found.values["train_file"])
    return cannot("$held_out_files")


def _load_best(value: Any, file: File) -> Translation:
    """Axolotl keeps the best checkpoint if rows are held out and evaluations fall on checkpoints, else the last."""
    evals, saves = (
        steps if isinstance(steps := file.get(key), (int, float)) and 0 < steps <= schema.LARGEST_NUMBER else 0
        for key in ("eval_steps", "save_steps")
    )
    held_out = file.get("val_set_size") or file.get("test_datasets")
    if not (value and held_out and evals and saves) or saves % evals:
        return Translation("dropped", "Axolotl keeps the last checkpoint, unless eval_steps divide save_steps")
    if evals != saves:
        return cannot("set save_steps equal to eval_steps, and load_best_model_at_end: true")
    if file.get("metric_for_best_model") not in (None, "loss", "eval_loss"):
        return translated(load_best_model_at_end=True)
    return translated(load_best_model_at_end=True, metric_for_best_model="eval_loss", greater_is_better=False)


def _early_stopping(value: Any, file: File) -> Translation:
    """Axolotl stops early where it also keeps the best checkpoint."""
    if not value:
        return OFF
    best = _load_best(True, file)
    if best.outcome != "translated":
        return cannot("early stopping needs held-out rows, and eval_steps equal to save_steps")
    return translated("with it Axolotl keeps the best checkpoint", early_stopping_patience=value) + best


def _oumi_datasets(value: Any, file: File) -> Translation:
    """oumi's list of datasets: a Hub dataset, or a file of conversations under the name text_sft."""
    names = {"path": "dataset_name", "config": "subset", "split": "split"}

    def one(entry: Any) -> Translation:
        given = entry if isinstance(entry, Mapping) else {}
        if str(given.get("dataset_name")).startswith("text_sft") and isinstance(given.get("dataset_path"), str):
            entry = {**entry, "dataset_name": entry["dataset_path"], "dataset_path": None, "split": None}
        return _dataset(entry, names, ("shuffle", "seed"))

    return _sources(value, one)


def _torchtune_model(value: Any, file: File) -> Translation:
    """torchtune's builder of a model, by whose name it is whole, LoRA or QLoRA, and the layers that get adapters."""
    name = str(value).rpartition(".")[2]
    if "lora_" not in name:
        return translated("every weight is trained", use_peft=False)
    layers = file.get("model.lora_attn_modules")
    layers = layers if isinstance(layers, list) else []
    targets = ["o_proj" if layer == "output_proj" else layer for layer in layers]
    targets += ["gate_proj", "up_proj", "down_proj"] if file.get("model.apply_lora_to_mlp") else []
    layers_said: dict[str, Any] = {"lora_target_modules": targets} if targets else {}
    found = translated(use_peft=True, **layers_said)
    if name.startswith("qlora_") or file.get("model.quantize_base"):
        nf4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "use_bnb_nested_quant": True}
        found += translated("4-bit is NF4 with double quantisation in torchtune", **nf4)
    if file.get("model.apply_lora_to_output"):
        found += cannot("adapters on the head are not trained here")
    return found


def _torchtune_dataset(value: Any, file: File) -> Translation:
    """torchtune's builder of a dataset, with its source."""
    name = str(value).rpartition(".")[2]
    source, files = file.get("dataset.source"), file.get("dataset.data_files")
    source = {"alpaca_dataset": "tatsu-lab/alpaca", "alpaca_cleaned_dataset": "yahma/alpaca-cleaned"}.get(name, source)
    split, subset = file.get("dataset.split"), file.get("dataset.subset")
    entry = {"path": source, "data_files": files, "split": split, "name": subset}
    if name in ("alpaca_dataset", "alpaca_cleaned_dataset"):
        why = "torchtune writes `### Instruction:` around alpaca rows, here they are turns of the chat template"
        return _dataset(entry, _NAMES) + translated(why, data_format="alpaca")
    style = file.get("dataset.conversation_style")
    if name == "chat_dataset" and style in ("openai", "sharegpt"):
        own, column = ("messages" if style == "openai" else "conversations"), file.get("dataset.conversation_column")
        columns: dict[str, Any] = {"data_columns": {own: column}} if column not in (None, own) else {}
        return _dataset(entry, _NAMES) + translated(data_format="messages" if style == "openai" else style, **columns)
    return cannot(f"{name}; $files")


# Where a training ran is no fact of a recipe, so that the accelerate config to choose is named.
_BITS = {"quantization_bit", "quant_bits", "quant_config.quantization_bit"}
_STAGE = re.compile(r"(?:zero|ds|z)[-_a-z]*?([0-3])(?![0-9])")


def _fsdp(value: Any, file: File) -> Translation:
    """Shards of FSDP, which cannot be of quantised weights here."""
    if not value:
        return OFF
    if file.get("load_in_8bit") or file.get("peft.q_lora_bits") == 8 or any(file.get(key) == 8 for key in _BITS):
        return Translation("dropped", sentence("$fsdp_of_eight_bits"))
    four = (file.get("load_in_4bit"), file.get("peft.q_lora"), file.get("adapter") == "qlora")
    if any(four) or any(file.get(key) for key in _BITS):
        return Translation("dropped", sentence("$fsdp_of_four_bits"))
    return Translation("dropped", sentence("$accelerate; choose ACCEL=fsdp2"))


def _deepspeed(value: Any, file: File) -> Translation:
    """A DeepSpeed configuration, by its own stage, or by that in the name of its file."""
    if not value:
        return OFF
    name = str(value).lower().rpartition("/")[2][:200]
    if isinstance(value, Mapping):
        section = value.get("zero_optimization")
        section = section if isinstance(section, Mapping) else {}
        stage, offload = section.get("stage", 0), "offload_param" in section
    else:
        found = _STAGE.search(name)
        stage, offload = int(found[1]) if found else None, "offload" in name
    own = {"0": "ddp", "1": "zero1", "2": "zero2", "3": "zero3_offload" if offload else "zero3"}
    choice = own.get(str(stage), "zero1, zero2 or zero3 by its stage")
    return Translation("dropped", sentence(f"$accelerate; choose ACCEL={choice}"))


def _dist_config(value: Any, file: File) -> Translation:
    return _fsdp(value, file) if "fsdp" in str(value) else Translation("dropped", sentence("$accelerate"))


def _special_tokens(value: Any, file: File) -> Translation:
    if not value:
        return OFF
    if not isinstance(value, Mapping):
        return cannot("write eos_token, if the tokenizer's own is not the right one")
    if others := [key for key, token in value.items() if key not in ("pad_token", "eos_token") and token is not None]:
        return cannot(f"{', '.join(map(str, others))} would change the tokenizer; save one that has them")
    if value.get("eos_token") is not None:
        return translated("pad_token: TRL takes the tokenizer's own", eos_token=value["eos_token"])
    return Translation("dropped", "TRL takes the tokenizer's own pad token, and no loss is computed on padding")


def _trackers(value: Any, file: File) -> Translation:
    """Axolotl switches a tracker on by naming its project."""
    chosen = [name for name, keys in DATA["trackers"].items() if any(file.get(key) for key in keys)]
    why = "names of projects come from the tracker's own environment"
    return translated(why, report_to=chosen) if value else OFF


_OF_TRL: dict[str, Meaning] = {
    "datasets": _trl_datasets,
    "dataset_mixture": _mixture,
    "dataset_mixer": _mixer,
    "dataset_splits": _splits,
    "dataset_configs": _configs,
}
# The keys of each tool whose meaning is worked out here.
CODE: dict[str, dict[str, Meaning]] = {
    "trl": _OF_TRL,
    "alignment-handbook": _OF_TRL,
    "axolotl": {
        "datasets": _axolotl_datasets,
        "test_datasets": _test_datasets,
        "special_tokens": _special_tokens,
        "load_best_model_at_end": _load_best,
        "early_stopping_patience": _early_stopping,
        "evals_per_epoch": _per_epoch("eval"),
        "saves_per_epoch": _per_epoch("save"),
        **{key: _trackers for keys in DATA["trackers"].values() for key in keys},
    },
    "llama-factory-v1": {"dist_config.name": _dist_config, "dist_config.config_file": _deepspeed},
    "torchtune": {"model._component_": _torchtune_model, "dataset._component_": _torchtune_dataset},
    "oumi": {
        "data.train.datasets": _oumi_datasets,
        "fsdp.enable_fsdp": _fsdp,
        "deepspeed.zero_stage": _deepspeed,
    },
}
# Where a training ran, by keys that every tool of the kind has.
PLACES: dict[str, Meaning] = {"fsdp": _fsdp, "fsdp_config": _fsdp, "deepspeed": _deepspeed}
