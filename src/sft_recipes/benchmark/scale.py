"""What is measured, and at which sizes: those of a GPU, and small ones for a CPU. No torch here."""

import dataclasses
import itertools
import json
import math
from pathlib import Path
from typing import Any

from sft_recipes.models import base_model
from sft_recipes.plan.memory import Setup

SECTIONS = ("machine", "road", "memory", "speed", "knobs", "topologies", "gpt_oss")
"""The sections in order of worth."""
RATIOS = "ratios"
"""What is measured instead of them where it is asked for."""
SHARES = {
    "gpu": dict(zip(SECTIONS, (12, 75, 90, 85, 75, 45, 18), strict=True)),
    # Shapes are small here, and processes start slowly.
    "cpu": dict(zip(SECTIONS, (5, 240, 20, 20, 50, 90, 10), strict=True)),
}
"""The share of the time that each may take by kind of machine; what one leaves, the next ones have."""

# Small enough for a CPU: 15 million parameters.
SMALL = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "head_dim": 64,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "max_position_embeddings": 4096,
    "num_attention_heads": 8,
    "num_hidden_layers": 4,
    "num_key_value_heads": 4,
    "tie_word_embeddings": True,
    "vocab_size": 2048,
}
# Of these factors every two appear together in every way, in half of the runs that all combinations would take
# (a fractional factorial, defined by the product of its four signs).
FACTORS = [
    (length, checkpointing, everywhere, dropout)
    for dropout in (0.0, 0.05)
    for checkpointing in (True, False)
    for length in (512, 4096)
    for everywhere in (True, False)
    if (dropout == 0.0) ^ checkpointing ^ (length == 512) ^ everywhere
]
# Lengths of rows, as (share of the rows, tokens), in between by linear interpolation. The origin's rows were counted
# (2,686 of finetuning/data/ft_prompts/train.jsonl: mean 184, 95 % below 221, longest 712); the second has the long
# tail of conversations.
LENGTHS = {
    "origin": ((0.0, 143), (0.5, 181), (0.95, 221), (0.99, 249), (1.0, 712)),
    "long_tailed": ((0.0, 40), (0.5, 200), (0.8, 450), (0.95, 1000), (1.0, 2048)),
}
ANSWER = 36
"""Supervised tokens at the end of a row, the mean of the origin's."""

LIGHT = (
    ("--help",),
    ("list",),
    ("models",),
    ("keys",),
    ("rules",),
    ("show", "demo"),
    ("why", "lora_alpha"),
)
"""Commands that read no rows and no weights."""


@dataclasses.dataclass(frozen=True)
class Knob:
    """One change of execution or precision, measured alone against the same base."""

    name: str
    settings: dict[str, Any]  # recipe keys
    only_on_gpu: str = ""  # why a CPU cannot have it
    package: str = ""  # what must be installed for it


KNOBS = (
    Knob("micro_batch_4", {"per_device_train_batch_size": 4}),
    Knob("micro_batch_32", {"per_device_train_batch_size": 32}),
    Knob("no_checkpointing", {"activation_checkpointing": False}),
    Knob(
        "selective_checkpointing",
        {"activation_checkpointing_kwargs": {"selective": True, "use_reentrant": False}},
    ),
    Knob("padding_free_sdpa", {"padding_free": True, "max_length": None}),
    Knob(
        "padding_free_flash",
        {"padding_free": True, "max_length": None, "attn_implementation": "flash_attention_2"},
        only_on_gpu="FlashAttention has no CPU kernels",
        package="flash_attn",
    ),
    Knob("packing", {"packing": True}),
    Knob("base_in_bfloat16", {"load_in_4bit": False}),
    Knob("no_lora_dropout", {"lora_dropout": 0.0}),
    Knob("adapters_in_bfloat16", {"adapter_dtype": "bfloat16"}),
    Knob("adamw_fused", {"optim": "adamw_torch_fused"}),
    Knob("adamw_8bit", {"optim": "adamw_8bit"}),
    Knob(
        "flash_attention",
        {"attn_implementation": "flash_attention_2"},
        only_on_gpu="FlashAttention has no CPU kernels",
        package="flash_attn",
    ),
    Knob("eager_attention", {"attn_implementation": "eager"}),
    Knob("torch_compile", {"torch_compile": True}),
)


@dataclasses.dataclass(frozen=True)
class MemoryCase:
    """A training step whose peak is measured."""

    name: str
    config: dict[str, Any]
    setup: Setup


@dataclasses.dataclass(frozen=True)
class Scale:
    """The sizes of one kind of machine."""

    gpu: bool
    matrix: int  # side of the matrices that are multiplied
    copied: int  # bytes that are copied
    repeats: int  # of both, of which the median counts
    memory: tuple[MemoryCase, ...]  # steps whose memory is measured, in order of worth
    model: str  # whose shape the speed is measured on
    config: dict[str, Any]
    speed_batch: dict[str, int]  # the global batch by distribution
    longest: dict[str, int]
    """Tokens of the longest row by distribution, and of the rows that knobs are compared on."""
    knob_batch: tuple[int, int]  # global batch and micro-batch of the base that knobs are compared with
    warm: int  # steps before those that are timed
    timed: int  # steps that are timed in each of the two rounds
    experts: dict[str, Any]  # what differs from gpt-oss-20b's config, to make it small


def _bundled(name: str) -> dict[str, Any]:
    return base_model.bundled()[name]["config"]


def _gpu_cases() -> tuple[MemoryCase, ...]:
    order = [
        ("Qwen/Qwen3-8B", True),
        ("Qwen/Qwen3-0.6B", True),
        ("Qwen/Qwen3-8B", False),
        ("meta-llama/Llama-3.1-8B-Instruct", True),
        ("Qwen/Qwen3-1.7B", True),
        ("meta-llama/Llama-3.1-8B-Instruct", False),
        ("Qwen/Qwen3-1.7B", False),
        ("Qwen/Qwen3-0.6B", False),
    ]
    return tuple(
        MemoryCase(
            name,
            _bundled(name),
            Setup(
                four_bit=four_bit,
                double_quant=four_bit,
                rank=32,
                targets=("all-linear",) if everywhere else ("q_proj", "v_proj"),
                dropout=dropout,
                checkpointing=checkpointing,
                tokens=2 * length,
                length=length,
            ),
        )
        for name, four_bit in order
        for length, checkpointing, everywhere, dropout in FACTORS
    )


def _cpu_cases() -> tuple[MemoryCase, ...]:
    # TRL's fused head is a few tensors on a GPU and many on a CPU, so there the loss is the Trainer's own.
    some = Setup(targets=("q_proj", "v_proj"), tokens=512, length=256, fused_head=False)
    change = dataclasses.replace
    everywhere = change(some, targets=("all-linear",))
    quantised: dict[str, Any] = {"four_bit": True, "double_quant": True}
    setups = (
        change(everywhere, **quantised),
        change(some, **quantised),
        change(everywhere, **quantised, adapter_bytes=2, checkpointing=False),
        everywhere,
        change(everywhere, checkpointing=False),
    )
    return tuple(MemoryCase("15M", SMALL, setup) for setup in setups)


def gpu() -> Scale:
    """For one GPU of 40 GB or more; a smaller one says of the larger models that they do not fit."""
    return Scale(
        gpu=True,
        matrix=8192,
        copied=2**31,
        repeats=30,
        memory=_gpu_cases(),
        model="Qwen/Qwen3-1.7B",
        config=_bundled("Qwen/Qwen3-1.7B"),
        speed_batch={"origin": 64, "long_tailed": 16},
        longest={"origin": 512, "long_tailed": 2048, "knobs": 512},
        knob_batch=(32, 16),
        warm=5,
        timed=5,
        # The width is the model's own; its vocabulary would take longer to write than everything else.
        experts={"num_hidden_layers": 2, "vocab_size": 32768},
    )


def cpu() -> Scale:
    """Small shapes of everything: what a GPU would run, so that nothing of it runs there for the first time."""
    small = {**SMALL, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
    return Scale(
        gpu=False,
        # In bfloat16, for which few CPUs have units, a side of 1,024 would take seconds.
        matrix=256,
        copied=2**27,
        repeats=10,
        memory=_cpu_cases(),
        model="2 layers of width 128",
        config={**small, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32},
        speed_batch={"origin": 4, "long_tailed": 4},
        longest={"origin": 512, "long_tailed": 512, "knobs": 64},
        knob_batch=(32, 16),
        warm=1,
        timed=1,
        experts={
            "num_hidden_layers": 2,
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_local_experts": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "vocab_size": 2048,
        },
    )


def row_lengths(distribution: str, rows: int, longest: int | None = None) -> list[int]:
    """Lengths of so many rows in tokens, evenly through the distribution, shuffled by a fixed stride."""
    quantiles = LENGTHS[distribution]
    lengths = []
    # A stride that shares no divisor with the number of rows visits each once.
    stride = next(step for step in range(max(1, int(rows * 0.618)), rows + 1) if math.gcd(step, rows) == 1)
    for number in range(rows):
        place = (number * stride) % rows
        share = place / max(1, rows - 1)
        (low, short), (high, long) = next(pair for pair in itertools.pairwise(quantiles) if share <= pair[1][0])
        length = round(short + (long - short) * (share - low) / (high - low))
        lengths.append(length if longest is None else min(length, longest))
    return lengths


def write_rows(directory: Path, lengths: list[int], vocabulary: int, *, everything: bool = False) -> Path:
    """Rows of token ids as `directory/train.jsonl`, the loss on each row's last tokens or on `everything`."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "train.jsonl").open("w", encoding="utf-8") as file:
        for number, length in enumerate(lengths):
            ids = [(number * 7919 + place * 104_729) % vocabulary for place in range(length)]
            answer = length if everything else min(ANSWER, length - 1)
            file.write(json.dumps({"input_ids": ids, "labels": [-100] * (length - answer) + ids[length - answer :]}))
            file.write("\n")
    return directory
