"""Did what the recipe asks take effect? Answered before the first step, or the run stops.

Each check returns the facts for run.json and says them in one line; what differs from the recipe is an `InputError`.
"""

import collections
import contextlib
import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import numpy as np
import peft
import torch
from peft import get_peft_model_state_dict
from torch.optim.lr_scheduler import LambdaLR
from transformers import AutoConfig, AutoTokenizer
from trl import SFTTrainer

from sft_recipes.data import refusals, tokens
from sft_recipes.errors import InputError, refuse
from sft_recipes.models import base_model, census, conflicts
from sft_recipes.models.loading import offloaded
from sft_recipes.recipes import places, rates
from sft_recipes.recipes.places import TEMPLATES
from sft_recipes.recipes.recipe import Recipe, Value
from sft_recipes.terminal import count, say, share
from sft_recipes.train import rows as tokenised_rows

Facts = dict[str, Any]


def model_files(recipe: Mapping[str, Any], rows: Mapping[str, Any]) -> None:
    """The config and tokenizer can be loaded and fit the recipe; before any weight is read.

    Args:
        rows: Whether they are `conversational`, what they hold and which `variables` they set, and the `task` on them.

    Raises:
        InputError: The model cannot be found, cannot be had as the recipe asks for it (`models.conflicts`), or its
            chat template cannot do what is asked.
    """
    name, revision = recipe["model_name_or_path"], recipe.get("model_revision", "main")
    try:
        config = AutoConfig.from_pretrained(name, revision=revision)
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
    except (OSError, ValueError) as error:
        raise InputError(
            f"model_name_or_path {name} (revision {revision}) cannot be loaded: {str(error).splitlines()[0]} "
            "Name a local directory, or a Hub id while the Hub is reachable; a gated model needs HF_TOKEN in the "
            "environment"
        ) from None
    asked = Recipe(name, {key: Value(value, "recipe.yaml") for key, value in recipe.items()})
    # Its config is on this machine now, if it was not when the run was planned.
    if (model := base_model.find(name, revision)) is not None:
        refuse(conflicts.of_model(model, asked))
    # As the recipe was resolved, the key is true where rows have several answers to learn.
    kind = "messages" if recipe.get("assistant_only_loss") else "prompt_completion"
    asked.values["task"] = Value(rows.get("task"), "run.json")
    known = {"vocab_size": config.get_text_config().vocab_size}
    of_rows = {"holds": (), "variables": (), **rows, "kind": kind}
    refuse(refusals.of_recipe(asked, refusals.facts(_words(tokenizer, recipe)), of_rows, known, 0))


def _words(tokenizer: Any, recipe: Mapping[str, Any]) -> Any:
    """The tokenizer with the recipe's tokens and template."""
    path, template, source = recipe.get("chat_template_path"), None, None
    if path and path.endswith(TEMPLATES):
        template = places.template(path)
    elif path:
        try:
            source = AutoTokenizer.from_pretrained(path)
        except (OSError, ValueError) as error:
            raise InputError(
                f"chat_template_path {path} has no tokenizer: {str(error).splitlines()[0]} Name a .jinja file, or a "
                "model whose template is to be taken"
            ) from None
    return tokens.dressed(tokenizer, recipe.get("eos_token"), template, source)


def data(trainer: SFTTrainer, prepared_rows: int) -> Facts:
    """What the loss is computed on, from the tokenised rows themselves.

    Raises:
        InputError: No token is supervised, or no row teaches the model to stop.
    """
    tokenizer, args = trainer.processing_class, trainer.args
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    stops = trainer.model.generation_config.eos_token_id
    stop_ids = {tokenizer.eos_token_id, *(stops if isinstance(stops, list) else [stops])} - {None}
    lengths: list[int] = []
    supervised = stopping = cut = 0
    for batch in trainer.train_dataset.with_format("arrow").iter(1000):
        labels = batch["labels"].combine_chunks()
        values = labels.flatten().to_numpy(zero_copy_only=False)
        edges = np.cumsum([0, *labels.value_lengths().to_pylist()]).tolist()
        lengths += np.diff(edges).tolist()
        supervised += int((values != -100).sum())
        ends = np.isin(values, list(stop_ids))
        for start, end in itertools.pairwise(edges):
            # A template may put a newline after the stop token, so the last few tokens are looked at.
            stops_here = bool(ends[start:end].any() if args.packing else ends[max(start, end - 3) : end].any())
            stopping += stops_here
            cut += not stops_here and args.max_length is not None and end - start >= args.max_length
    rows, tokens = len(lengths), sum(lengths)
    lost = 0 if args.packing else prepared_rows - rows
    if not supervised:
        raise InputError(
            f"no token is supervised: all {prepared_rows} rows lose their whole answer at max_length "
            f"{args.max_length}; set a larger max_length"
            if lost == prepared_rows
            else "no token is supervised: the loss would be zero from the first step"
        )
    if not stopping:
        raise InputError(
            f"no row ends with a stop token ({tokenizer.eos_token!r}) under supervision, so the model would never "
            "learn to stop; "
            + (
                f"all answers are cut at max_length {args.max_length}: set a larger one"
                if cut == rows
                else "the chat template must put it inside the assistant's turn"
            )
        )
    base, embeddings = trainer.model.config.name_or_path, trainer.model.config.get_text_config().vocab_size
    largest = max(_largest(each) for each in (trainer.train_dataset, trainer.eval_dataset) if each is not None)
    refuse(refusals.beyond(base, largest, embeddings))
    if trainer.eval_dataset is not None and not len(trainer.eval_dataset):
        raise InputError(f"no held-out row keeps its answer at max_length {args.max_length}; set a larger max_length")
    _positions(trainer, lengths)
    real = _real_token_share(trainer, lengths)
    pad_is_eos = tokenizer.pad_token_id == tokenizer.eos_token_id
    text = f"{share(supervised, tokens)} of {tokens:,} tokens ({'answers' if supervised < tokens else 'everything'})"
    text += f"; {count(stopping, 'row')} of {rows:,} end with a supervised {tokenizer.eos_token}"
    if cut or lost:
        text += (
            f"\nat max_length {args.max_length}: {count(cut, 'answer')} cut short, {count(lost, 'row')} left out whole"
        )
    say("loss on", text)
    text = f"{share(real, 1)} real tokens, padded to the longest row of a batch; pad {tokenizer.pad_token}"
    say(
        "batches",
        text + (" is also the stop token; TRL masks padding by position, not by token" if pad_is_eos else ""),
    )
    return {
        "rows": rows,
        "tokens": tokens,
        "supervised_token_share": supervised / tokens,
        "rows_ending_with_eos": stopping,
        "rows_cut": cut,
        "rows_lost": lost,
        "longest_row": max(lengths),
        "real_token_share": real,
        "pad_is_eos": pad_is_eos,
        # Of rows that were tokenised before, how many TRL has tokenised too, to the same.
        "rows_compared": trainer.compared,
    }


def _largest(rows: Any) -> int:
    """The largest token of tokenised rows."""
    batches = rows.with_format("arrow").iter(1000)
    ids = (batch["input_ids"].combine_chunks().flatten().to_numpy(zero_copy_only=False) for batch in batches)
    return max((int(each.max()) for each in ids if len(each)), default=0)


def _positions(trainer: SFTTrainer, lengths: list[int]) -> None:
    """Every row, of training and of evaluations, has a position for each of its tokens."""
    held_out = tokenised_rows.lengths(trainer.eval_dataset).tolist() if trainer.eval_dataset is not None else ()
    longest, config = max(*lengths, *held_out), trainer.model.config
    found = base_model.find(config.name_or_path, getattr(config, "_commit_hash", None) or "main")
    refused = conflicts.of_rows(found, longest) if found else ()
    refuse(each for each in refused if each.rule == "positions-missing")


def _real_token_share(trainer: SFTTrainer, lengths: list[int]) -> float:
    """Share of an epoch's batch positions that hold tokens, drawn with the run's own sampler."""
    if trainer.padding_free:
        return 1.0
    with torch.random.fork_rng(devices=[]):
        sampler = trainer._get_train_sampler(trainer.train_dataset)
        if sampler is not None and trainer.sort_within_batch:
            sampler = trainer.by_length(sampler)
        order = list(sampler) if sampler is not None else list(range(len(lengths)))
    size = trainer.args.per_device_train_batch_size
    computed = 0
    for start in range(0, len(order), size):
        batch = [lengths[index] for index in order[start : start + size]]
        computed += max(batch) * len(batch)
    return sum(lengths) / computed


def base(model: torch.nn.Module, recipe: Mapping[str, Any]) -> Facts:
    """The base model's weights are in the precision that was asked for.

    Raises:
        InputError: 4-bit was asked for and is not there, is there without being asked for, or is of another kind; or
            weights were put where no GPU has them.
    """
    if not recipe.get("use_cpu") and (where := offloaded(model)):
        raise InputError(
            f"the base model does not fit: {where}, from where each step would fetch them anew. Free the GPU of other "
            "processes, or choose load_in_4bit: true, a smaller model, or ACCEL=zero3 on several GPUs"
        )
    four_bit = [module for module in model.modules() if isinstance(module, bnb.nn.Linear4bit)]
    eight_bit = [module for module in model.modules() if isinstance(module, bnb.nn.Linear8bitLt)]
    packed = {id(module.weight) for module in four_bit}
    in_four_bit = sum(module.in_features * module.out_features for module in four_bit)
    adapter = _adapter_parameters(model)
    total = in_four_bit + sum(
        _elements(parameter)
        for parameter in model.parameters()
        if id(parameter) not in packed and id(parameter) not in adapter
    )
    problems = []
    for key, layers in (("load_in_4bit", four_bit), ("load_in_8bit", eight_bit)):
        asked_for = bool(recipe.get(key))
        if bool(layers) != asked_for:
            problems.append(
                f"{key} is {str(asked_for).lower()}, but {len(layers)} layers of the loaded model are quantised so"
            )
    if four_bit:
        kinds = {
            (
                module.weight.quant_type,
                bool(module.weight.compress_statistics),
                str(module.compute_dtype).removeprefix("torch."),
            )
            for module in four_bit
            if isinstance(module.weight, bnb.nn.Params4bit)
        }
        asked = (
            recipe.get("bnb_4bit_quant_type", "nf4"),
            bool(recipe.get("use_bnb_nested_quant", False)),
            recipe["dtype"],
        )
        if kinds - {asked}:
            problems.append(
                f"4-bit layers are {kinds}, the recipe asks for {asked} (kind, double quantisation, compute)"
            )
    refuse(problems)
    dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters() if id(p) not in packed | adapter})
    if four_bit:
        double = " with double quantisation" if recipe.get("use_bnb_nested_quant") else ""
        text = (
            f"{count(len(four_bit), '4-bit layer')}, {share(in_four_bit, total)} of {total:,} parameters "
            f"({recipe.get('bnb_4bit_quant_type', 'nf4')}{double}, compute in {recipe['dtype']}); the rest in "
            + " and ".join(dtypes)
        )
    else:
        text = f"{total:,} parameters in {' and '.join(dtypes)}, not quantised"
    say("base", text)
    return {
        "four_bit_layers": len(four_bit),
        "four_bit_parameters": in_four_bit,
        "parameters": total,
        "four_bit_share": in_four_bit / total,
        "dtypes": dtypes,
    }


def adapter(trainer: SFTTrainer, recipe: Mapping[str, Any], own: Mapping[str, Any]) -> Facts:
    """Every requested target has adapters, they train, and they are in the dtype that was asked for.

    Raises:
        InputError: A target matches no module, nothing trains, or the dtype is another.
    """
    model = trainer.model
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    total = sum(_elements(parameter) for parameter in trained)
    if not trained:
        raise InputError("no parameter is trainable; check use_peft and lora_target_modules")
    dtypes = sorted({str(parameter.dtype).removeprefix("torch.") for parameter in trained})
    if not recipe.get("use_peft"):
        say("training", f"all {total:,} parameters in {' and '.join(dtypes)}, no adapter")
        return {"trainable_parameters": total, "dtypes": dtypes, "modules": {}}
    modules = collections.Counter(path.rpartition(".")[2] for path, _ in census.adapted(model))
    if missing := census.unmatched(model, recipe):
        nothing = ", ".join(f"{name} of {key}" for key, name in missing)
        raise InputError(f"{nothing} got nothing; adapters are on {dict(modules)}")
    engine = trainer.is_deepspeed_enabled and recipe.get("bf16")
    # DeepSpeed computes with a bfloat16 copy and keeps the float32 master weights that the optimizer updates.
    wanted = "bfloat16" if engine else own["adapter_dtype"]
    if dtypes != [wanted]:
        raise InputError(f"adapter_dtype is {own['adapter_dtype']}, but the adapters are in {' and '.join(dtypes)}")
    names = sorted(modules)
    if len(set(modules.values())) == 1:
        where = f"{', '.join(names)} ({modules[names[0]]} each)"
    else:
        where = ", ".join(f"{name} ({modules[name]})" for name in names)
    kept = f"{own['adapter_dtype']}{' master weights in DeepSpeed' if engine else ''}"
    say("adapter", f"r={recipe['lora_r']}, alpha={recipe['lora_alpha']} on {where}; {total:,} trainable in {kept}")
    return {"trainable_parameters": total, "dtypes": dtypes, "modules": dict(modules)}


def start(
    trainer: SFTTrainer, topology: Mapping[str, Any], recipe: Mapping[str, Any], own: Mapping[str, Any]
) -> Facts:
    """Batch, schedule, precision and distribution are as planned; called when training is about to begin.

    Raises:
        InputError: Any of them differs.
    """
    args, accelerator, state = trainer.args, trainer.accelerator, trainer.state
    problems = []
    effective = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    if effective != own["global_batch_size"]:
        problems.append(f"global_batch_size is {own['global_batch_size']}, but a step takes {effective} rows")
    kinds = {"single": {"NO"}, "ddp": {"MULTI_GPU", "MULTI_CPU"}, "deepspeed": {"DEEPSPEED"}, "fsdp": {"FSDP"}}
    kind = accelerator.distributed_type.value
    if kind not in kinds[topology["backend"]] or accelerator.num_processes != topology["processes"]:
        problems.append(
            f"{topology['name']} asks for {topology['backend']} with {count(topology['processes'], 'process')}, but "
            f"{kind} with {count(accelerator.num_processes, 'process')} is running"
        )
    stage = accelerator.deepspeed_plugin.zero_stage if accelerator.deepspeed_plugin is not None else None
    if stage != topology["zero_stage"]:
        problems.append(f"{topology['name']} asks for ZeRO stage {topology['zero_stage']}, but {stage} is running")
    if topology["backend"] == "fsdp" and not accelerator.is_fsdp2:
        problems.append(f"{topology['name']} asks for FSDP2, but version 1 is running")
    if (accelerator.device.type == "cpu") != topology["use_cpu"]:
        problems.append(
            f"{topology['name']} is {'on CPU' if topology['use_cpu'] else 'on GPU'}, but {accelerator.device} is used"
        )
    precision = "bf16" if recipe.get("bf16") else "fp16" if recipe.get("fp16") else "no"
    if accelerator.mixed_precision != precision:
        problems.append(f"mixed precision is {accelerator.mixed_precision}, the recipe asks for {precision}")
    inner = accelerator.unwrap_model(trainer.model)
    if bool(getattr(inner, "is_activation_checkpointing", False)) != bool(recipe.get("activation_checkpointing")):
        problems.append(
            f"activation_checkpointing is {recipe.get('activation_checkpointing')}, but the model says otherwise"
        )
    refuse(problems)
    made = rates.summary(_rate(trainer.lr_scheduler), args.get_warmup_steps(state.max_steps), state.max_steps)
    say(
        "batch",
        f"{args.per_device_train_batch_size} per device x {count(args.world_size, 'process')}"
        f" x {args.gradient_accumulation_steps} accumulation = {effective} rows a step",
    )
    batches = len(trainer.callback_handler.train_dataloader)
    epochs = state.max_steps / max(math.ceil(batches / args.gradient_accumulation_steps), 1)
    reach = "" if made.warmup_steps < state.max_steps else f"; the run ends before {args.learning_rate:g} is reached"
    say(
        "schedule",
        f"{count(state.max_steps, 'step')} in {epochs:.3g} epoch{'' if epochs == 1 else 's'}, "
        f"{args.lr_scheduler_type.value} from {args.learning_rate:g}, "
        f"{made.warmup_steps} warm-up ({share(made.warmup_steps, state.max_steps)}){reach}",
    )
    how = "" if kind == "NO" else f" by {kind}{f' ZeRO-{stage}' if stage else ''}"
    mixed = "no mixed precision" if precision == "no" else f"mixed precision {precision}"
    say("running", f"{count(accelerator.num_processes, 'process')}{how} on {accelerator.device.type}, {mixed}")
    return {
        "effective_batch": effective,
        "max_steps": state.max_steps,
        "epochs": epochs,
        "warmup_steps": made.warmup_steps,
        "warmup_share": made.warmup_steps / state.max_steps,
        "peak_learning_rate": made.peak,
        "last_learning_rate": made.last,
        "distributed_type": kind,
        "world_size": accelerator.num_processes,
        "zero_stage": stage,
        "mixed_precision": precision,
        "device": accelerator.device.type,
        "threads": torch.get_num_threads(),
    }


def _rate(scheduler: Any) -> rates.Rate:
    """The learning rate of a step, of the scheduler that was made."""
    # Accelerate's and DeepSpeed's hold upstream's.
    scheduler = getattr(scheduler, "scheduler", scheduler)
    if isinstance(scheduler, LambdaLR):
        return lambda step: scheduler.base_lrs[0] * scheduler.lr_lambdas[0](step)
    start = scheduler.optimizer.param_groups[0]["lr"]
    return lambda step: start


def saved_adapter(trainer: SFTTrainer, directory: Path) -> Facts:
    """The adapter file on the disk holds what was trained, and plain PEFT reads it back.

    Called on every process, since ZeRO-3 and FSDP give a whole tensor only to all of them together. Where every
    process holds the whole model, PEFT loads the file beside the live adapter and both compute the logits of some
    training rows; elsewhere the tensors alone are compared.

    Raises:
        RuntimeError: A tensor is empty, not finite or other than the live one, every lora_B is still zero as at the
            start, or the reloaded adapter computes something else.
    """
    from safetensors.torch import load_file

    live = _live_adapter(trainer)
    if not trainer.is_world_process_zero():
        return {}
    tensors = load_file(directory / "adapter_model.safetensors")
    empty = [name for name, tensor in tensors.items() if tensor.numel() == 0]
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    changed = [name for name, tensor in tensors.items() if "lora_B" in name and tensor.any()]
    if not tensors or empty or broken:
        raise RuntimeError(f"{directory}: {len(empty)} empty and {len(broken)} non-finite of {len(tensors)} tensors")
    if not changed and any("lora_B" in name for name in tensors):
        raise RuntimeError(f"{directory}: every lora_B is zero, so training changed nothing")
    other = [
        name
        for name, tensor in live.items()
        if name not in tensors or not torch.equal(tensors[name], tensor.to(tensors[name].dtype))
    ]
    if other:
        raise RuntimeError(
            f"{directory}: {len(other)} of {len(live)} tensors are not those in memory, the first is {other[0]}; the "
            "file was not written whole, so train again, on another disk if this one is failing"
        )
    norm = math.sqrt(sum(float(tensor.double().norm() ** 2) for name, tensor in tensors.items() if "lora_B" in name))
    facts: Facts = {"tensors": len(tensors), "lora_b_norm": norm, "reloaded": "weights"}
    if trainer.is_fsdp_enabled or any(hasattr(parameter, "ds_id") for parameter in trainer.model.parameters()):
        return facts
    return facts | {"reloaded": "logits", **_reloaded(trainer, directory)}


def _live_adapter(trainer: SFTTrainer) -> dict[str, torch.Tensor]:
    """The adapter's tensors in memory, whole and on the CPU, by their names in its file."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    ours = _adapter_parameters(model)
    state = {}
    for name, parameter in model.named_parameters():
        if id(parameter) not in ours:
            continue
        with contextlib.ExitStack() as stack:
            if hasattr(parameter, "ds_id"):
                import deepspeed

                stack.enter_context(deepspeed.zero.GatheredParameters([parameter]))
            whole = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
            # Checkpointing of activations, as FSDP does it, wraps modules in one of this name, which no file has.
            state[name.replace("_checkpoint_wrapped_module.", "")] = whole.detach().to("cpu", copy=True)
    return get_peft_model_state_dict(model, state_dict=state, save_embedding_layers=False)


# Rows, and tokens of each, that the two adapters are compared on.
RELOAD_ROWS, RELOAD_TOKENS = 4, 128


def _reloaded(trainer: SFTTrainer, directory: Path) -> Facts:
    """Load the file into the live model as a second adapter, and compare the logits of both.

    The file's tensors equal the live ones here, so what is left to differ is how PEFT reads them: names it does not
    find, a scaling of another rank or alpha. Any such difference is a share of what the adapter itself does to the
    logits; scheduling on a GPU is not, and is far below the hundredth of it that is allowed.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    model.eval()
    rows = [
        trainer.train_dataset[index]["input_ids"][:RELOAD_TOKENS]
        for index in range(min(RELOAD_ROWS, len(trainer.train_dataset)))
    ]
    batches = [torch.tensor([row], device=trainer.accelerator.device) for row in rows]

    def logits() -> list[torch.Tensor]:
        with torch.inference_mode():
            return [model(input_ids=batch).logits.float() for batch in batches]

    trained = logits()
    with model.disable_adapter():
        base = logits()
    model.load_adapter(str(directory), adapter_name="saved", torch_device="cpu")
    try:
        # PEFT loads every adapter as float32; the live one may compute in bfloat16.
        dtypes = {name: parameter.dtype for name, parameter in model.named_parameters() if ".default" in name}
        for name, parameter in model.named_parameters():
            if ".saved" in name:
                parameter.data = parameter.data.to(dtypes[name.replace(".saved", ".default")])
        model.set_adapter("saved")
        again = logits()
    finally:
        model.set_adapter("default")
        model.delete_adapter("saved")
    difference = max(float((one - other).abs().max()) for one, other in zip(trained, again, strict=True))
    effect = max(float((one - other).abs().max()) for one, other in zip(trained, base, strict=True))
    if not difference <= effect / 100:
        raise RuntimeError(
            f"{directory}: reloaded in PEFT, the adapter gives logits that are up to {difference:.3g} off those "
            f"in memory, which change the base's by up to {effect:.3g}; peft {peft.__version__} does not read back "
            "what it wrote, so the adapter is not to be used"
        )
    return {"logit_difference": difference, "logit_effect": effect}


def _elements(parameter: torch.Tensor) -> int:
    """Elements of a parameter, also of one that ZeRO-3 has partitioned away."""
    return getattr(parameter, "ds_numel", None) or parameter.numel()


def _adapter_parameters(model: torch.nn.Module) -> set[int]:
    return {
        id(parameter)
        for name, parameter in model.named_parameters()
        if "lora_" in name or "modules_to_save" in name or "trainable_tokens" in name
    }
