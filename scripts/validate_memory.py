"""Memory estimates beside measurements: `python scripts/validate_memory.py [--trace] [--measure]`.

Compares the formula (`memory.py`), and with --trace the trace (`trace.py`), with the published measurements of
tests/plan/measured_memory.csv. With --measure it measures too: the peak of real steps of SFTTrainer on models with
random weights, on this machine's GPU, or on its CPU where there is none. What traces and measurements gave is kept in
docs/memory/, and docs/memory.md is written from it; a test compares the two.
"""

import argparse
import csv
import dataclasses
import functools
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sft_recipes.environment import quiet_environment
from sft_recipes.models import base_model
from sft_recipes.plan import memory
from sft_recipes.plan.memory import Setup
from sft_recipes.plan.trace import trace

ROOT = Path(__file__).parents[1]
PUBLISHED = ROOT / "tests" / "plan" / "measured_memory.csv"
MODELS = ROOT / "tests" / "plan" / "models.json"
PAGE = ROOT / "docs" / "memory.md"
RESULTS = ROOT / "docs" / "memory"
TRACES = RESULTS / "traces.json"
PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate")
# Small enough for a CPU.
SMALL = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "head_dim": 64,
    "hidden_size": 768,
    "intermediate_size": 2304,
    "max_position_embeddings": 4096,
    "num_attention_heads": 12,
    "num_hidden_layers": 8,
    "num_key_value_heads": 4,
    "tie_word_embeddings": True,
    "vocab_size": 2048,
}
# The second has optimizer state; in its second micro-batch there are gradients too, as the estimates take it.
STEPS = MICRO_BATCHES = 2


@dataclasses.dataclass(frozen=True)
class Row:
    """A measurement, and the estimates of the same step, in bytes."""

    name: str
    model: str
    setup: Setup
    measured: float
    formula: float
    traced: float | None
    facts: dict[str, str]

    @property
    def counted(self) -> bool:
        return not self.facts.get("excluded")

    def error(self, estimate: float | None) -> float | None:
        """Relative to the measurement; None where there is no estimate."""
        return None if estimate is None else estimate / self.measured - 1


def published() -> list[Row]:
    """The published measurements, with the traces that were kept."""
    traces = json.loads(TRACES.read_text(encoding="utf-8"))["peaks"] if TRACES.is_file() else {}
    with PUBLISHED.open(encoding="utf-8", newline="") as file:
        return [_row(facts, traces.get(facts["row"])) for facts in csv.DictReader(file)]


def _row(facts: dict[str, str], traced: float | None) -> Row:
    setup = setup_of(facts)
    model = model_of(facts["model"])
    formula = memory.estimate(model, setup).allocated
    return Row(facts["row"], facts["model"], setup, float(facts["measured_gb"]) * 1e9, formula, traced, facts)


def setup_of(facts: dict[str, str]) -> Setup:
    """The columns that are fields of a setup, in the fields' types."""
    read: dict[type, Callable[[str], Any]] = {
        bool: lambda text: {"true": True, "false": False}[text],
        tuple: lambda text: tuple(text.split()),
    }
    kinds = {field.name: type(field.default) for field in dataclasses.fields(Setup)}
    return Setup(**{key: read.get(kinds[key], kinds[key])(text) for key, text in facts.items() if key in kinds})


@functools.cache
def model_of(name: str) -> base_model.Model:
    known = json.loads(MODELS.read_text(encoding="utf-8")) | base_model.bundled()
    return base_model.from_config(name, known[name]["config"], known[name]["source"])


def measured() -> list[tuple[dict[str, Any], list[Row]]]:
    """What was measured with this script: for each machine its facts and rows."""
    found = []
    for path in sorted(RESULTS.glob("measured-*.json")):
        kept = json.loads(path.read_text(encoding="utf-8"))
        rows = []
        for number, case in enumerate(kept["cases"], 1):
            setup = Setup(**{**case["setup"], "targets": tuple(case["setup"]["targets"])})
            model = base_model.from_config(case["name"], case["config"], path.name)
            formula = memory.estimate(model, setup).allocated
            rows.append(Row(str(number), case["name"], setup, case["peak"], formula, case["traced"], {}))
        found.append((kept, rows))
    return found


def cases(gpu: bool) -> list[tuple[str, dict[str, Any], Setup]]:
    """What --measure measures: (name, config, setup)."""
    quantised: dict[str, Any] = {"four_bit": True, "double_quant": True}
    if not gpu:
        # TRL's fused head is a few tensors on a GPU and many on a CPU, so there the loss is the Trainer's own.
        small = Setup(targets=("q_proj", "v_proj"), tokens=512, length=256, fused_head=False)
        change = dataclasses.replace
        everywhere = change(small, targets=("all-linear",))
        return [
            (name, SMALL, setup)
            for name, setup in {
                "57M NF4, double quantisation": change(everywhere, **quantised),
                "57M NF4, queries and values": change(small, **quantised),
                "57M NF4, bfloat16 adapters, no checkpointing": change(
                    everywhere, **quantised, adapter_bytes=2, checkpointing=False
                ),
                "57M bfloat16": everywhere,
                "57M bfloat16, no checkpointing": change(everywhere, checkpointing=False),
            }.items()
        ]
    known = json.loads(MODELS.read_text(encoding="utf-8")) | base_model.bundled()
    return [
        (
            f"{name} {'NF4' if four_bit else 'bfloat16'}",
            known[name]["config"],
            Setup(
                **(quantised if four_bit else {}),
                rank=32,
                tokens=2 * length,
                length=length,
                checkpointing=checkpointing,
                targets=("all-linear",),
            ),
        )
        for name in ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-4B", "Qwen/Qwen3-8B")
        for four_bit in (True, False)
        for length in (512, 4096)
        for checkpointing in (True, False)
    ]


def measure() -> None:
    """Measure every case in a process of its own, and add what came out to this machine's results."""
    import torch

    gpu = torch.cuda.is_available()
    hardware = torch.cuda.get_device_name() if gpu else f"CPU, {platform.machine()}"
    slug = re.sub(r"[^a-z0-9]+", "-", hardware.lower()).strip("-")
    path = RESULTS / f"measured-{slug}.json"
    kept: dict[str, Any] = {"hardware": hardware, "versions": versions(), "cases": []}
    for name, config, setup in cases(gpu):
        asked = {"config": config, "setup": dataclasses.asdict(setup)}
        done = subprocess.run(
            [sys.executable, __file__, "--case", json.dumps(asked)],
            env=quiet_environment(on_cpu=not gpu),
            capture_output=True,
            text=True,
        )
        if done.returncode:
            print(f"{name}, {setup.tokens} tokens: not measured: {done.stderr.strip().splitlines()[-1]}")
            continue
        peak = json.loads(done.stdout.splitlines()[-1])["peak"]
        kept["cases"].append({"name": name, **asked, "peak": peak, "traced": trace(config, setup)["peak"]})
        RESULTS.mkdir(exist_ok=True)
        path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        print(f"{name}, {setup.tokens} tokens: {peak / 1e9:.3f} GB", flush=True)


def measure_case(config: dict[str, Any], setup: Setup) -> int:
    """The peak of real training steps of SFTTrainer: torch's own on a GPU, of live storages on a CPU."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Trainer
    from trl import SFTConfig, SFTTrainer

    from sft_recipes.demo import demo_base
    from sft_recipes.models.census import config_of
    from sft_recipes.plan.fake_step import LiveStorages

    gpu = torch.cuda.is_available()
    rows = setup.tokens // setup.length
    # Each batch has a shorter row, so that there is padding to mask.
    lengths = [setup.length - (number % rows != 0) for number in range(rows * MICRO_BATCHES * STEPS)]
    with tempfile.TemporaryDirectory() as directory:
        with torch.device("cuda" if gpu else "cpu"):
            AutoModelForCausalLM.from_config(config_of(config), dtype=torch.bfloat16).save_pretrained(directory)
        trainer = SFTTrainer(
            model=directory,
            args=SFTConfig(
                output_dir=f"{directory}/run",
                model_init_kwargs={"dtype": torch.bfloat16, "attn_implementation": setup.attention},
                per_device_train_batch_size=rows,
                gradient_accumulation_steps=MICRO_BATCHES,
                max_steps=STEPS,
                train_sampling_strategy="sequential",
                max_length=None,
                bf16=True,
                use_cpu=not gpu,
                optim=setup.optimizer,
                activation_checkpointing=setup.checkpointing,
                report_to="none",
                save_strategy="no",
                dataset_kwargs={"skip_prepare_dataset": True},
            ),
            train_dataset=Dataset.from_list([{"input_ids": [1] * size, "labels": [1] * size} for size in lengths]),
            processing_class=demo_base.train_tokenizer(),
            peft_config=lora(setup),
            quantization_config=BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=setup.double_quant,
                bnb_4bit_compute_dtype=torch.bfloat16,
            )
            if setup.four_bit
            else None,
        )
        if not setup.fused_head:
            trainer.compute_loss = types.MethodType(Trainer.compute_loss, trainer)
        # As `train.py` does it.
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to({2: torch.bfloat16, 4: torch.float32}[setup.adapter_bytes])
        if gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            trainer.train()
            return torch.cuda.max_memory_allocated()
        from sft_recipes.plan.fake_step import held

        with LiveStorages() as live:
            for trained in (False, True):
                live.count(held(trainer.model, trained=trained))
            trainer.train()
            return live.peak


def lora(setup: Setup) -> Any:
    from peft import LoraConfig

    targets: Any = "all-linear" if "all-linear" in setup.targets else list(setup.targets)
    return LoraConfig(r=setup.rank, target_modules=targets, lora_dropout=setup.dropout, task_type="CAUSAL_LM")


def trace_published() -> None:
    """Trace every published row, and keep the peaks."""
    peaks = {}
    for row in published():
        peaks[row.name] = trace(model_of(row.model).config, row.setup)["peak"]
        print(f"row {row.name}: {peaks[row.name] / 1e9:.2f} GB traced", flush=True)
    RESULTS.mkdir(exist_ok=True)
    TRACES.write_text(json.dumps({"versions": versions(), "peaks": peaks}, indent=1) + "\n", encoding="utf-8")


def versions() -> dict[str, str]:
    return {name: version(name) for name in PACKAGES}


def percent(error: float | None) -> str:
    return "" if error is None else f"{error:+.1%}"


def gigabytes(size: float | None) -> str:
    return "" if size is None else f"{size / 1e9:.{2 if size >= 1e9 else 4}f}"


def settings(setup: Setup) -> str:
    """What distinguishes a measurement, for a reader of the table."""
    bits = "NF4" if setup.four_bit else "bfloat16"
    bits += " (double)" if setup.double_quant else ""
    targets = "all" if "all-linear" in setup.targets else " ".join(each[0] for each in setup.targets)
    words = [bits, f"r {setup.rank} on {targets}", "checkpointing" if setup.checkpointing else "no checkpointing"]
    if setup.adapter_bytes == 2:
        words.append("bfloat16 adapters")
    if not setup.fused_head:
        words.append("head not fused")
    return ", ".join(words)


def table(rows: Iterable[Row]) -> str:
    lines = [
        "| # | model | setting | tokens | measured | formula | error | trace | error |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        estimates = [gigabytes(row.formula), percent(row.error(row.formula))]
        estimates += [gigabytes(row.traced), percent(row.error(row.traced))]
        cells = [
            row.name,
            row.model,
            settings(row.setup),
            f"{row.setup.tokens:,}",
            gigabytes(row.measured),
            *estimates,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def summary(rows: Iterable[Row]) -> str:
    """Median and worst error of each estimate."""
    counted = [row for row in rows if row.counted]
    sentences = []
    for name, errors in (
        ("Formula", [row.error(row.formula) for row in counted]),
        ("Trace", [row.error(row.traced) for row in counted]),
    ):
        known = [each for each in errors if each is not None]
        if known:
            worst = max(known, key=abs)
            middle = statistics.median(abs(each) for each in known)
            sentences.append(f"{name}: median error {middle:.1%}, worst {worst:+.1%}, over {len(known)} measurements.")
    return "\n".join(sentences)


def left_out(rows: Iterable[Row]) -> str:
    """The rows that are not counted, by reason."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if not row.counted:
            reasons.setdefault(row.facts["excluded"], []).append(row.name)
    return "\n".join(f"- {', '.join(names)}: {reason}." for reason, names in reasons.items())


def sources(rows: Iterable[Row]) -> str:
    """Where each measurement is published, on what it was made, and what must be known to read it."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        key = tuple(row.facts[each] for each in ("hardware", "software", "measured_as", "note", "source"))
        groups.setdefault(key, []).append(row.name)
    lines = []
    for (hardware, software, kind, note, source), names in groups.items():
        lines.append(f"- {', '.join(names)}: {hardware}; {software}; {kind}. {note + '. ' if note else ''}<{source}>")
    return "\n".join(lines)


def sections() -> dict[str, str]:
    """The generated parts of docs/memory.md, by their marker's name."""
    rows = published()
    parts = []
    for kept, found in measured():
        stack = ", ".join(f"{name} {number}" for name, number in kept["versions"].items())
        parts.append(f"### {kept['hardware']}\n\n{summary(found)}\n\n{table(found)}\n\n({stack})")
    return {
        "published": f"{summary(rows)}\n\n{table(row for row in rows if row.counted)}",
        "left out": f"{left_out(rows)}\n\n{table(row for row in rows if not row.counted)}",
        "measured": "\n\n".join(parts) or "Nothing was measured yet.",
        "sources": sources(rows),
    }


def render(text: str) -> str:
    """docs/memory.md with its generated sections replaced."""
    for name, content in sections().items():
        pattern = rf"(<!-- generated: {name} -->).*?(<!-- end -->)"
        # A function, because backslashes of a replacement text would be read as groups.
        text, found = re.subn(pattern, functools.partial(_between, content), text, flags=re.DOTALL)
        if found != 1:
            sys.exit(f"{PAGE} has {found} sections 'generated: {name}', not one")
    return text


def _between(content: str, section: re.Match[str]) -> str:
    return f"{section[1]}\n\n{content}\n\n{section[2]}"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--trace", action="store_true", help="trace the published rows anew")
    options.add_argument("--measure", action="store_true", help="measure on this machine")
    options.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.case:
        setup = Setup(**{**chosen.case["setup"], "targets": tuple(chosen.case["setup"]["targets"])})
        print(json.dumps({"peak": measure_case(chosen.case["config"], setup)}))
        return
    os.chdir(ROOT)
    if chosen.trace:
        trace_published()
    if chosen.measure:
        measure()
    rows = published()
    print(table(rows), summary(rows), f"Not counted:\n{left_out(rows)}", sep="\n\n")
    for kept, found in measured():
        print(f"\n{kept['hardware']}\n\n{table(found)}\n\n{summary(found)}")
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
