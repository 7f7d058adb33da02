"""What processes on this machine's CPU take while they train: `python scripts/measure_processes.py [--only NAME ...]`.

Each case is a run of the demo's recipe with a model of random weights of another shape, of a few steps, started as
`sft-recipes train` starts every run; what it took is the peak of resident memory that the run keeps. The results are
docs/memory/processes.json, from which `validate_memory.py` writes a section of docs/memory.md.
"""

import argparse
import dataclasses
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from validate_memory import PROCESSES, versions

from sft_recipes.plan import job as jobs
from sft_recipes.plan.lint.speed import largest_micro_batch
from sft_recipes.runs.run import Run

ROOT = Path(__file__).parents[1]
BASE = ROOT / ".cache" / "demo" / "base"
ROWS = ROOT / "data" / "demo" / "train.jsonl"
# As many as the heap needs to be what it stays; a step of longer rows takes longer.
STEPS = {128: 8, 512: 3}


def qwen3(hidden: int, intermediate: int, layers: int, heads: int, keys: int, vocabulary: int) -> dict[str, Any]:
    """What differs from the demo's own config, of Qwen3's architecture."""
    sizes = {"hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers}
    heads_of = {"num_attention_heads": heads, "num_key_value_heads": keys, "head_dim": 64}
    return {**sizes, **heads_of, "layer_types": ["full_attention"] * layers, "vocab_size": vocabulary}


MODELS: dict[str, dict[str, Any] | None] = {
    "demo": None,
    "3M": qwen3(256, 768, 4, 4, 2, 1408),
    "12M": qwen3(384, 1152, 6, 6, 2, 1408),
    "42M, 151,936 entries": qwen3(256, 768, 4, 4, 2, 151_936),
    "56M": qwen3(768, 2304, 8, 12, 4, 1408),
    "29M, 1,024 wide": qwen3(1024, 3072, 2, 16, 8, 1408),
    "131M, 32,000 entries": qwen3(768, 3072, 12, 12, 4, 32_000),
    "64M, Llama, 49,152 entries": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 10,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "vocab_size": 49_152,
    },
}
FLOAT32, BFLOAT16 = "load_in_4bit=false", "load_in_4bit=false dtype=bfloat16 bf16=true"
NF4, NF4_BFLOAT16 = "load_in_4bit=true", "load_in_4bit=true dtype=bfloat16 bf16=true"
CHECKPOINTING, EVALUATION = "activation_checkpointing=true", "eval_strategy=steps eval_steps=3 eval_on_start=true"
# Model, rows of a micro-batch and tokens of a row, what is said of them, and processes; the constants of
# `plan/memory.py` were chosen by those that are `fitted`, and by shorter tries of their like.
CASES: dict[str, tuple[str, int, int, str, int]] = {
    "fitted-demo": ("demo", 16, 128, f"{NF4} {EVALUATION}", 1),
    "fitted-demo-float32": ("demo", 16, 128, FLOAT32, 1),
    "fitted-12m-nf4": ("12M", 4, 512, NF4, 1),
    "fitted-12m-nf4-checkpointing": ("12M", 4, 512, f"{NF4} {CHECKPOINTING}", 1),
    "fitted-56m-float32": ("56M", 4, 512, FLOAT32, 1),
    "fitted-56m-float32-checkpointing": ("56M", 4, 512, f"{FLOAT32} {CHECKPOINTING}", 1),
    "12m-float32-16": ("12M", 16, 128, FLOAT32, 1),
    "wide-float32-16": ("29M, 1,024 wide", 16, 512, FLOAT32, 1),
    "12m-bfloat16": ("12M", 4, 512, BFLOAT16, 1),
    "12m-float32-two": ("12M", 4, 128, FLOAT32, 2),
    "3m-whole": ("3M", 4, 512, f"{FLOAT32} use_peft=false", 1),
    "vocabulary-nf4": ("42M, 151,936 entries", 4, 512, NF4, 1),
    "vocabulary-float32-16": ("42M, 151,936 entries", 16, 128, FLOAT32, 1),
    "56m-nf4-1": ("56M", 1, 128, NF4, 1),
    "56m-nf4-16": ("56M", 16, 128, NF4, 1),
    "llama-float32": ("64M, Llama, 49,152 entries", 4, 128, FLOAT32, 1),
    "llama-nf4-checkpointing": ("64M, Llama, 49,152 entries", 4, 512, f"{NF4} {CHECKPOINTING}", 1),
    "llama-nf4-bfloat16": ("64M, Llama, 49,152 entries", 1, 512, NF4_BFLOAT16, 1),
    "131m-float32-1": ("131M, 32,000 entries", 1, 128, FLOAT32, 1),
    "131m-nf4-checkpointing": ("131M, 32,000 entries", 1, 512, f"{NF4} {CHECKPOINTING}", 1),
    "131m-bfloat16": ("131M, 32,000 entries", 4, 128, BFLOAT16, 1),
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", nargs="+", choices=CASES, help="measure these anew, and keep the others")
    asked = options.parse_args().only or [*CASES]
    kept = json.loads(PROCESSES.read_text(encoding="utf-8"))["cases"] if PROCESSES.is_file() else {}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for name in asked:
            print(name, flush=True)
            kept[name] = measure(name, *CASES[name])
            print(f"  {kept[name]['measured'] / 1e6:,.0f} MB", flush=True)
            facts = {
                "cases": {each: kept[each] for each in CASES if each in kept},
                "not_measured": [each for each in CASES if each not in kept],
                "libc": " ".join(platform.libc_ver()),
                "cpus": os.cpu_count(),
                "versions": versions(),
            }
            PROCESSES.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def measure(name: str, model: str, rows: int, length: int, words: str, processes: int) -> dict[str, Any]:
    """One run, with what the formula reads of it."""
    held_out = "eval_strategy" in words
    said = [
        f"model_name_or_path={base(model)} train_file=rows.jsonl max_length={length} max_steps={STEPS[length]}",
        f"per_device_train_batch_size={rows} global_batch_size={rows * processes}",
        "task=null test_file=null group_column=null report_to=none save_strategy=no load_best_model_at_end=false",
        "validation_file=held_out.jsonl" if held_out else "validation_file=null eval_strategy=no eval_on_start=false",
        words,
    ]
    write_rows(length)
    accel = "cpu"
    if processes > 1:
        accel = "cpus"
        shared = {"distributed_type": "MULTI_GPU", "num_machines": 1, "num_processes": processes, "use_cpu": True}
        Path("accelerate_configs").mkdir(exist_ok=True)
        Path("accelerate_configs/cpus.yaml").write_text(json.dumps(shared), encoding="utf-8")
    job = jobs.resolve("demo", overrides=said, accel=accel)
    command = [sys.executable, "-m", "sft_recipes", "train", "demo", "--accel", accel]
    subprocess.run([*command, "--name", name, "--set", " ".join(said)], check=True, stdout=sys.stderr)
    peak = Run(Path("runs") / name).facts()["measured"]["peak_memory_bytes"]
    setup = dataclasses.asdict(largest_micro_batch(job.case))
    config = json.loads((base(model) / "config.json").read_text(encoding="utf-8"))
    kept = {key: value for key, value in config.items() if key not in ("layer_types", "transformers_version")}
    return {"model": model, "config": kept, "setup": setup, "measured": peak, "fitted": name.startswith("fitted")}


def base(model: str) -> Path:
    """A folder with a model of that shape, random weights and the demo's tokenizer."""
    folder = Path("models") / model.split(",")[0]
    if folder.is_dir():
        return folder
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shutil.copytree(BASE, folder)
    if changes := MODELS[model]:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | changes
        if config["model_type"] != "qwen3":
            config = {key: value for key, value in config.items() if key != "layer_types"}
        for path in (folder / "config.json", folder / "model.safetensors", folder / "fingerprint"):
            path.unlink(missing_ok=True)
        made = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.float32)
        made.save_pretrained(folder)
    return folder


def write_rows(length: int) -> None:
    """The demo's rows for short ones, and as many of them in one as fill the longest that is asked for."""
    rows = [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()]
    together = 1 if length <= 128 else length // 28
    made = []
    for number, row in enumerate(rows[:200]):
        others = " ".join(rows[(number * together + each) % len(rows)]["input"] for each in range(together))
        made.append({**row, "input": f"{number}. {others}"})
    for name, some in (("rows.jsonl", made[:150]), ("held_out.jsonl", made[150:])):
        Path(name).write_text("".join(json.dumps(each) + "\n" for each in some), encoding="utf-8")


if __name__ == "__main__":
    main()
