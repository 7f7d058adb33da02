"""The sections that are measured in this process: machine, memory, speed, knobs and the gpt-oss shape."""

import dataclasses
import functools
import importlib.util
import json
import os
import types
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from transformers import Trainer

from sft_recipes.benchmark import scale as scales
from sft_recipes.benchmark import steps
from sft_recipes.benchmark.device import Device
from sft_recipes.benchmark.scale import Knob, MemoryCase, Scale
from sft_recipes.benchmark.section import Section
from sft_recipes.models import base_model, census
from sft_recipes.plan.speed import matrix_parameters
from sft_recipes.train.train import build, correct

# The second step has optimizer state; in its second micro-batch there are gradients too, as the estimate takes it.
MEMORY_STEPS = MICRO_BATCHES = 2
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def machine(section: Section, scale: Scale, device: Device, work: Path) -> None:
    """The rates that others are a share of: a bfloat16 matrix product, and a copy within the device's memory."""

    def product() -> dict[str, Any]:
        side = scale.matrix
        one, other = (torch.randn(side, side, dtype=torch.bfloat16, device=device.type) for _ in range(2))
        out = torch.empty_like(one)
        seconds = device.seconds(lambda: torch.mm(one, other, out=out), scale.repeats)
        return {"side": side, "seconds": seconds, "tflops": round(2 * side**3 / seconds / 1e12, 6)}

    def copy() -> dict[str, Any]:
        source = torch.randint(256, (scale.copied,), dtype=torch.uint8, device=device.type)
        target = torch.empty_like(source)
        seconds = device.seconds(lambda: target.copy_(source), scale.repeats)
        return {"bytes": scale.copied, "seconds": seconds, "gb_per_second": round(2 * scale.copied / seconds / 1e9, 1)}

    section.plan(["bfloat16_matrix_product", "copy_read_and_write"])
    section.measure("bfloat16_matrix_product", product)
    device.free()
    section.measure("copy_read_and_write", copy)


def memory(section: Section, scale: Scale, device: Device, work: Path) -> None:
    """The peak of real optimizer steps, for each case; what plan says of the same is computed when it is shown."""
    words = steps.tokenizer()
    kept: dict[str, Any] = {}
    section.plan(label(case) for case in scale.memory)
    for number, case in enumerate(scale.memory):
        key = json.dumps([case.name, case.setup.four_bit])
        if key not in kept:
            # One base at a time: two of them would not fit.
            kept.clear()
            device.free()
        measured = functools.partial(_memory_case, case, key, kept, device, words, work / f"memory-{number}")
        if section.measure(label(case), measured) is None:
            kept.clear()
    kept.clear()
    device.free()


def label(case: MemoryCase) -> str:
    """One line that tells a case from the others."""
    setup = case.setup
    return ", ".join(
        [
            case.name,
            "NF4" if setup.four_bit else "bfloat16",
            f"{setup.tokens} tokens",
            "all-linear" if "all-linear" in setup.targets else "q v",
            f"dropout {setup.dropout:g}",
            "checkpointing" if setup.checkpointing else "no checkpointing",
            *(["bfloat16 adapters"] if setup.adapter_bytes == 2 else []),
        ]
    )


def _memory_case(
    case: MemoryCase, key: str, kept: dict[str, Any], device: Device, words: Any, rows: Path
) -> dict[str, Any]:
    setup = case.setup
    if key not in kept:
        kept[key] = steps.random_base(
            case.config, device, four_bit=setup.four_bit, double_quant=setup.double_quant, attention=setup.attention
        )
    base = kept[key]
    before = device.allocated()
    batch = setup.tokens // setup.length
    # Each batch has a shorter row, so that there is padding to mask.
    lengths = [setup.length - (each % batch != 0) for each in range(batch * MICRO_BATCHES * MEMORY_STEPS)]
    scales.write_rows(rows, lengths, case.config["vocab_size"], everything=True)
    recipe = steps.resolved(
        device,
        rows,
        rows / "out",
        load_in_4bit=setup.four_bit,
        lora_r=setup.rank,
        lora_target_modules=list(setup.targets),
        lora_dropout=setup.dropout,
        adapter_dtype={2: "bfloat16", 4: "float32"}[setup.adapter_bytes],
        activation_checkpointing=setup.checkpointing,
        max_length=setup.length,
        per_device_train_batch_size=batch,
        global_batch_size=batch * MICRO_BATCHES,
        max_steps=MEMORY_STEPS,
        logging_steps=1,
        train_sampling_strategy="sequential",
        dataloader_num_workers=0,
    )
    trainer = steps.ours(recipe, base, words)
    if not setup.fused_head:
        trainer.compute_loss = types.MethodType(Trainer.compute_loss, trainer)
    with device.peak(trainer.model) as peak:
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    # The base as it was, for the next case.
    trainer.model.unload()
    base.activation_checkpointing_disable()
    # Upstream registers this hook twice and can take back only the second: it would keep the next case's embeddings.
    base.get_input_embeddings()._forward_hooks.clear()
    del trainer
    device.free()
    if before is not None and (device.allocated() or 0) > 1.02 * before:
        kept.clear()
    return {
        "model": case.name,
        "config": case.config if case.name not in base_model.bundled() else None,
        "setup": dataclasses.asdict(setup),
        "peak": peak.allocated,
        "reserved": peak.reserved,
        "device": peak.device,
        "loss": losses[-1] if losses else None,
    }


def speed(section: Section, scale: Scale, device: Device, work: Path) -> None:
    """The same rows executed three ways, in turn: as the project's origin did, by stock TRL, and by us."""
    words = steps.tokenizer()
    section.plan(scale.speed_batch)
    for distribution in scale.speed_batch:
        section.measure(
            distribution, functools.partial(speed_of, distribution, scale, device, words, work / distribution)
        )
        device.free()


def speed_of(distribution: str, scale: Scale, device: Device, words: Any, work: Path) -> dict[str, Any]:
    """Tokens a second of each of the three on rows of one distribution."""
    batch = scale.speed_batch[distribution]
    longest = scale.longest[distribution]
    rows = batch * (scale.warm + scale.timed + 1)
    lengths = scales.row_lengths(distribution, rows, longest)
    vocabulary = scale.config["vocab_size"]
    plain = scales.write_rows(work / "rows", lengths, vocabulary)
    whole = scales.write_rows(work / "rows-everything", lengths, vocabulary, everything=True)
    settings = {
        "max_length": longest,
        "per_device_train_batch_size": 4,
        "global_batch_size": batch,
        "max_steps": scale.warm + scale.timed,
    }

    def base() -> Any:
        return steps.random_base(scale.config, device, four_bit=True)

    recipe = steps.resolved(device, plain, work / "out", **settings)
    # What the origin did: every row padded to the whole length, the loss on all of it.
    padded = steps.resolved(device, whole, work / "out", **settings, pad_to_multiple_of=longest)
    arms = [
        steps.Arm("origin", steps.stock(padded, base(), words), device),
        steps.Arm("stock_trl", steps.stock(recipe, base(), words), device),
        steps.Arm("ours", steps.ours(recipe, base(), words), device),
    ]
    steps.take_turns(arms, scale.warm, scale.timed)
    return {
        **_work(scale, settings),
        "arms": {arm.name: arm.facts() for arm in arms},
    }


def _work(scale: Scale, settings: dict[str, Any]) -> dict[str, Any]:
    """What a speed is about: the model, and how many parameters a token is multiplied with."""
    known = base_model.from_config(scale.model, scale.config, "the benchmark")
    return {
        "model": scale.model,
        "config": scale.config if scale.model not in base_model.bundled() else None,
        "matrix_parameters": round(matrix_parameters(known)),
        "settings": {key: value for key, value in settings.items() if key != "max_steps"},
    }


def knobs(section: Section, scale: Scale, device: Device, work: Path) -> None:
    """Each change alone against the same base, which is timed first and again last, to show what drifted."""
    words = steps.tokenizer()
    (batch, micro), longest = scale.knob_batch, scale.longest["knobs"]
    lengths = scales.row_lengths("origin", batch * (scale.warm + 2 * scale.timed), longest)
    rows = scales.write_rows(work / "rows", lengths, scale.config["vocab_size"])
    settings: dict[str, Any] = {
        "per_device_train_batch_size": micro,
        "global_batch_size": batch,
        "max_steps": scale.warm + 2 * scale.timed,
        "activation_checkpointing": True,
        "max_length": longest,
    }

    def run(knob: Knob) -> dict[str, Any]:
        changed = {**settings, **knob.settings}
        if knob.settings.get("packing"):
            # The same rows in fewer, longer ones: as many of those as hold a batch.
            packed = max(1, round(batch * sum(lengths) / len(lengths) / (4 * longest)))
            changed |= {"max_length": 4 * longest, "per_device_train_batch_size": 1, "global_batch_size": packed}
        recipe = steps.resolved(device, rows, work / "out", **changed)
        base = steps.random_base(
            scale.config, device, four_bit=recipe["load_in_4bit"], attention=recipe["attn_implementation"]
        )
        arm = steps.Arm(knob.name, steps.ours(recipe, base, words), device)
        arm.round(scale.warm, 2 * scale.timed)
        return {"settings": knob.settings, **_work(scale, changed), **arm.facts()}

    chosen = (Knob("base", {}), *scales.KNOBS[:-1], Knob("base_again", {}), scales.KNOBS[-1])
    section.plan(knob.name for knob in chosen)
    for knob in chosen:
        if knob.only_on_gpu and not device.gpu:
            section.refuse(knob.name, knob.only_on_gpu)
        elif knob.package and importlib.util.find_spec(knob.package) is None:
            section.refuse(knob.name, f"{knob.package} is not installed")
        else:
            # `torch_compile` writes into the environment, and the next trainer would be compiled too.
            with mock.patch.dict(os.environ):
                section.measure(knob.name, functools.partial(run, knob))
            device.free()


def gpt_oss(section: Section, scale: Scale, device: Device, work: Path) -> None:
    """Layers of gpt-oss-20b's width from an MXFP4 checkpoint, with adapters on the attention, then on experts too."""
    words = steps.tokenizer()
    checkpoint = work / "gpt-oss"
    section.plan(["checkpoint", "attention", "experts"])
    section.measure("checkpoint", functools.partial(_mxfp4_checkpoint, checkpoint, scale, words))
    if not (checkpoint / "config.json").is_file():
        return
    rows = scales.write_rows(work / "rows", scales.row_lengths("origin", 8, 512), scale.config["vocab_size"])
    for name, settings in (
        ("attention", {}),
        ("experts", {"lora_target_parameters": EXPERTS, "lora_dropout": 0.0}),
    ):

        def train(settings: dict[str, Any] = settings) -> dict[str, Any]:
            recipe = steps.resolved(
                device,
                rows,
                work / "out",
                model="gpt_oss_20b",
                model_name_or_path=str(checkpoint),
                # The tokenizer is the demo's, and the rows are ids.
                chat_template_path=None,
                max_steps=2,
                per_device_train_batch_size=2,
                global_batch_size=4,
                logging_steps=1,
                warmup_steps=0,
                dataloader_num_workers=0,
                **settings,
            )
            trainer = steps.silent(build(recipe.upstream()))
            correct(trainer, recipe.upstream(), recipe.own())
            with device.peak(trainer.model) as peak:
                trainer.train()
            trained = sum(each.numel() for each in trainer.model.parameters() if each.requires_grad)
            losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
            return {"trainable_parameters": trained, "losses": losses, "peak": peak.allocated}

        section.measure(name, train, expected=0)
        device.free()


def _mxfp4_checkpoint(directory: Path, scale: Scale, words: Any) -> dict[str, Any]:
    """Random weights of gpt-oss in the form that it is published in: its experts two codes a byte, a scale for 32."""
    from safetensors.torch import save_file

    published = dict(base_model.bundled()["openai/gpt-oss-20b"]["config"])
    described = published.pop("quantization_config")
    config = {**published, **scale.experts}
    config["layer_types"] = config["layer_types"][: config["num_hidden_layers"]]
    model = census.on_meta(census.config_of(config), dtype=torch.bfloat16)
    tensors = {}
    for name, parameter in model.state_dict().items():
        if name.endswith(("gate_up_proj", "down_proj")):
            experts, width, out = parameter.shape
            tensors[f"{name}_blocks"] = torch.randint(256, (experts, out, width // 32, 16), dtype=torch.uint8)
            # Exponents about 2^-7: values of the size that initial weights have.
            tensors[f"{name}_scales"] = torch.randint(118, 122, (experts, out, width // 32), dtype=torch.uint8)
        else:
            tensors[name] = torch.randn(parameter.shape, dtype=torch.bfloat16) * 0.02
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    model.config.architectures = [type(model).__name__]
    model.config.quantization_config = described
    model.config.save_pretrained(directory)
    words.save_pretrained(directory)
    return {
        "layers": config["num_hidden_layers"],
        "hidden_size": config["hidden_size"],
        "experts": config["num_local_experts"],
        "bytes": (directory / "model.safetensors").stat().st_size,
    }
