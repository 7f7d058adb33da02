"""The resolved recipe to SFTTrainer, checked before the first step, into the run directory.

Called once in each process of a launch (`process.py`); everything it needs to know is in the run directory.
"""

import contextlib
import datetime
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import load_dataset
from transformers import AutoTokenizer, EarlyStoppingCallback, HfArgumentParser, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from trl import ModelConfig, ScriptArguments, SFTConfig, SFTTrainer, get_quantization_config

from sft_recipes.files import sealed
from sft_recipes.models import base_model
from sft_recipes.models.census import beside_text, config_of, lora_config, on_meta
from sft_recipes.models.loading import adapter_config, keep_four_bit, put_adapter, refusals, stored_quantisation
from sft_recipes.runs import checkpoints, earlier, lock
from sft_recipes.runs.run import Run
from sft_recipes.terminal import say
from sft_recipes.train import engine, verify
from sft_recipes.train.callbacks import GracefulStop, Progress, Record, StopOnNaN, Stopped
from sft_recipes.train.rows import Tokenised
from sft_recipes.train.trainer import Trainer

# The recipe's own keys by which its trainer is built.
OF_TRAINER = ("mask_empty_reasoning", "init_lora_weights", "sort_within_batch")


def train(run: Run, *, launched: bool = False) -> None:
    """Train the resolved recipe of a run directory.

    Args:
        run: Whose directory holds all that is needed.
        launched: Whether a command holds the run and waits; if that command ends, so does the training, with a
            checkpoint.

    Raises:
        InputError: What the recipe asks for cannot be had, or did not take effect.
        FloatingPointError: The loss, the gradient or a weight became NaN or infinite.
        DamagedBest: The best checkpoint, whose weights the run would end with, cannot be used.
    """
    facts = run.facts()
    own, prepared = facts["own"], facts["data"]
    engine.only_where_it_wraps()
    if facts["topology"]["backend"] == "deepspeed":
        engine.without_inference_kernel()
        engine.allow_its_state()
    recipe = run.values()
    if launched and facts["topology"]["use_cpu"] and facts["topology"]["backend"] == "ddp":
        # transformers tells the processes how long to wait for one that is gone on GPUs alone.
        timeout = datetime.timedelta(seconds=recipe.get("ddp_timeout", 1800))
        torch.distributed.init_process_group("gloo", timeout=timeout)
    # Before the training arguments exist: they switch ZeRO-3 on, which would partition the model built for its names.
    verify.model_files(recipe, {**prepared, "task": own.get("task")})
    record, stop = Record(run), GracefulStop(run, launched=launched)
    continues = earlier_adapter(recipe, own)
    ours = {key: own[key] for key in OF_TRAINER if key in own}
    if reason := prepared.get("not_tokenised"):
        say("rows", f"tokenised by TRL: {reason}")
    kept = Path(prepared["tokens"]) if prepared.get("tokens") else None
    trainer = build(recipe, [StopOnNaN(run), stop], continues=continues, tokens=kept, **ours)
    trainer.belongs_to(run, record, stop)
    main = trainer.is_world_process_zero()
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    # Before the trackers, so that they get the tokens per second too.
    trainer.callback_handler.callbacks.insert(0, record)
    if own["early_stopping_patience"]:
        trainer.add_callback(EarlyStoppingCallback(own["early_stopping_patience"], own["early_stopping_threshold"]))
    correct(trainer, recipe, own)
    if continues:
        # In the dtype that the adapter is trained in, so that nothing is rounded on the way.
        put_adapter(trainer.model, continues)

    in_effect = {
        "base": verify.base(trainer.model, recipe),
        "data": verify.data(trainer, prepared["splits"]["train"]["prepared_rows"]),
    }

    def check_start() -> None:
        in_effect["adapter"] = verify.adapter(trainer, recipe, own)
        in_effect["run"] = verify.start(trainer, facts["topology"], recipe, own) | hosts()
        if main:
            run.update(in_effect=in_effect)

    trainer.add_callback(AtStart(check_start))
    trainer.add_callback(Progress())
    record.began = time.monotonic()
    checkpoint = facts.get("resume_from")
    lock.end_with(None)
    with noted(trainer, facts):
        try:
            resumed = str(run.directory / checkpoint) if checkpoint else None
            train_loss = trainer.train(resume_from_checkpoint=resumed).training_loss
        except Stopped:
            # In the evaluation before the first step of this launch, which goes on from where it began.
            train_loss = None
        measured = measurements(trainer) | {"train_loss": train_loss}
        if not stop.stopped:
            measured |= save(trainer, recipe)
    if main:
        run.update(status="interrupted" if stop.stopped else "finished", measured=measured)
    trainer.end()


def hosts() -> dict[str, Any]:
    """The machines of a run that several train, each with its processes and the network it was told to take."""
    if int(os.environ.get("GROUP_WORLD_SIZE", "1")) == 1:
        return {}
    # Two nodes of a scheduler may be one host.
    here = {"name": os.environ.get("SLURMD_NODENAME") or socket.gethostname(), "machine": lock.this_machine()}
    every = gather_object([here | {"network": os.environ.get("NCCL_SOCKET_IFNAME")}])
    machines = {each["machine"]: each for each in every}
    return {"hosts": [each | {"processes": every.count(each)} for _, each in sorted(machines.items())]}


def earlier_adapter(recipe: Mapping[str, Any], own: Mapping[str, Any]) -> Path | None:
    """Where the adapter lies that is continued from; None where a new one is trained.

    Raises:
        InputError: It is not there, or not on all the layers that the recipe asks for.
    """
    directory, targets = earlier.folder(own), recipe.get("lora_target_modules")
    if directory and targets == ["all-linear"]:
        # A plan may have had no config of the base, which is here by now.
        known = base_model.find(recipe["model_name_or_path"], recipe.get("model_revision", "main"))
        if known:
            earlier.check_targets(own, targets, known)
    return directory


def measurements(trainer: Trainer) -> dict[str, Any]:
    """What is known of a training when it has ended, of all its launches, as run.json holds it."""
    state, record, speed = trainer.state, trainer.record, trainer.record.tokens_per_second
    return {
        "step": state.global_step,
        "kept_step": trainer.kept_step,
        "training_seconds": round(trainer.record.seconds, 2),
        "tokens_per_second": speed and round(speed, 1),
        "samples_per_second": round(samples(trainer) * state.epoch / record.training_seconds, 3) if speed else None,
        "waiting_share": speed and round(record.waiting_share or 0.0, 5),
        "peak_memory_bytes": trainer.peak_memory(),
        "best_checkpoint": state.best_model_checkpoint,
        "eval_loss": [
            {"step": entry["step"], "eval_loss": entry["eval_loss"]}
            for entry in state.log_history
            if "eval_loss" in entry
        ],
    }


def samples(trainer: Trainer) -> int:
    """The rows of an epoch, each of those that were packed into one counted."""
    rows = trainer.train_dataset
    if "seq_lengths" not in rows.column_names:
        return len(rows)
    return sum(len(each["seq_lengths"].combine_chunks().flatten()) for each in rows.with_format("arrow").iter(1000))


@contextlib.contextmanager
def noted(trainer: Trainer, facts: Mapping[str, Any]) -> Iterator[None]:
    """Note in run.json what this launch does: from which step to which, and in how many seconds."""
    step, run = checkpoints.step_of(Path(facts.get("resume_from") or "checkpoint-0")), trainer.run
    this: dict[str, Any] = {"from_step": step, "to_step": None, "seconds": None}
    launches = [*facts.get("launches", []), this]

    def note() -> None:
        if trainer.is_world_process_zero():
            run.update(launches=launches)

    note()
    try:
        yield
    except (FloatingPointError, checkpoints.DamagedBest) as error:
        if trainer.is_world_process_zero():
            run.fail(str(error), diverged=isinstance(error, FloatingPointError))
        raise
    finally:
        this |= {"to_step": trainer.state.global_step, "seconds": round(time.monotonic() - trainer.record.began, 2)}
        note()


def save(trainer: Trainer, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Save the trained weights, read them back, and give what is known of them."""
    directory, facts = trainer.run.adapter, {}
    trainer.save_model(str(directory))
    trainer.accelerator.wait_for_everyone()
    if recipe.get("use_peft"):
        facts["adapter"] = verify.saved_adapter(trainer, directory)
    if trainer.is_world_process_zero():
        # A pickle of the arguments, which nothing reads and nobody should have to trust.
        (directory / "training_args.bin").unlink(missing_ok=True)
        # The model card is written anew after each evaluation.
        facts["saved"] = sealed(directory, besides="README.md")
    return facts


def correct(trainer: SFTTrainer, recipe: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Set what upstream makes otherwise than asked: the adapters' dtype, and how a CPU holds 4-bit weights."""
    keep_four_bit(trainer.model)
    # DeepSpeed computes adapters in its own precision over float32 master weights; a cast here would not survive it.
    if recipe.get("use_peft") and not (trainer.is_deepspeed_enabled and trainer.args.bf16):
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(getattr(torch, own["adapter_dtype"]))


def build(
    recipe: dict[str, Any],
    callbacks: Sequence[TrainerCallback] = (),
    *,
    base: Any = None,
    tokenizer: Any = None,
    mask_empty_reasoning: bool = False,
    init_lora_weights: bool | str = True,
    sort_within_batch: bool = False,
    continues: Path | None = None,
    tokens: Path | None = None,
) -> Trainer:
    """The trainer of a resolved recipe, with its model loaded and its rows tokenised.

    Training, preview and benchmark all come this way, so that none can show another trainer than the one that trains.

    Args:
        recipe: The resolved recipe in upstream's keys.
        callbacks: Called around its steps.
        base: The base model where it is loaded already, as the benchmark's random weights are.
        tokenizer: Its tokenizer, which must then be given too.
        mask_empty_reasoning: The recipe's key of that name.
        init_lora_weights: The recipe's key of that name.
        sort_within_batch: The recipe's key of that name.
        continues: An earlier adapter, whose config that of the new one is.
        tokens: Where the rows' tokens are (`data.tokenised`); without it TRL tokenises them.

    Raises:
        InputError: Upstream refuses what it is given, or makes other tokens of the rows than were kept.
    """
    # Before the training arguments exist, which may switch ZeRO-3 on, as in `train`.
    found = base_model.find_config(recipe["model_name_or_path"], recipe.get("model_revision", "main"))
    beside = beside_text(on_meta(config_of(found[0]))) if found else None
    with refusals():
        script, training, model = HfArgumentParser((ScriptArguments, SFTConfig, ModelConfig)).parse_dict(recipe)
    training.model_init_kwargs = {
        **(training.model_init_kwargs or {}),
        "revision": model.model_revision,
        "dtype": model.dtype,
        "attn_implementation": model.attn_implementation,
    }
    # Handed over as a config of its own; as a mapping transformers refuses it.
    training.model_init_kwargs.pop("quantization_config", None)
    adapters = adapter_config(continues) if continues else lora_config(model, beside)
    quantisation = stored_quantisation(recipe) or get_quantization_config(model)
    words = tokenizer
    if base is not None:
        training.model_init_kwargs = quantisation = None
    elif beside is not None:
        # Not the processor of images and sounds too, which needs packages of its own: rows are text.
        words = AutoTokenizer.from_pretrained(model.model_name_or_path, revision=model.model_revision)
    if adapters is not None:
        # Which base it is on, to those who have the adapter alone.
        adapters.revision = model.model_revision
        adapters.exclude_modules = beside or adapters.exclude_modules
        if continues is None:
            adapters.init_lora_weights = init_lora_weights
    splits = {"train": script.dataset_train_split}
    if training.eval_strategy != "no":
        splits["eval"] = script.dataset_test_split
    kept = {name: Tokenised(Path(script.dataset_name), tokens, split) for name, split in splits.items() if tokens}
    if kept:
        dataset = {name: each.sample() for name, each in kept.items()}
    else:
        loaded = load_dataset(script.dataset_name)
        dataset = {name: loaded[split] for name, split in splits.items()}
    with refusals():
        trainer = Trainer(
            model=model.model_name_or_path if base is None else base,
            args=training,
            processing_class=words,
            train_dataset=dataset["train"],
            eval_dataset=dataset.get("eval"),
            quantization_config=quantisation,
            peft_config=adapters,
            callbacks=[*callbacks],
            mask_empty_reasoning=mask_empty_reasoning,
            sort_within_batch=sort_within_batch,
            tokenised=kept,
        )
    if init_lora_weights is not True:
        # Whoever loads the adapter has its weights, and need not draw others first, as some bases cannot.
        trainer.model.peft_config["default"].init_lora_weights = True
    if base_model.dequantised(recipe):
        # Or weights that were made whole would be saved under their quantised names, by which nothing can read them.
        trainer.model._weight_conversions = None
    return trainer


class AtStart(TrainerCallback):
    """Calls a function when model, optimizer and schedule are ready and no step has been taken."""

    def __init__(self, check: Any) -> None:
        self.check = check

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.check()
