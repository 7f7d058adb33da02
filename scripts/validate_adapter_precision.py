"""What bfloat16 adapters cost and save on the demo: `python scripts/validate_adapter_precision.py`.

Trains the demo with adapters and moments in float32 and in bfloat16, in turn, with the same seed, rows and order in
both. Writes docs/adapter_precision.json: each run, and of each measure the mean difference with its interval over the
seeds. docs/performance.md and the evidence of `adapter_dtype` are made of it.
"""

import argparse
import contextlib
import itertools
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
from scipy import stats

from sft_recipes.benchmark import commands, program
from sft_recipes.environment import quiet_environment
from sft_recipes.files import write_whole
from sft_recipes.runs import checkpoints, provenance
from sft_recipes.runs.run import Run

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "docs" / "adapter_precision.json"
DTYPES = ("float32", "bfloat16")
SEEDS = (1, 2, 3)
MEASURES = ("eval_loss", "macro_f1", "seconds", "peak_memory_bytes")
LIMIT = 1800.0
# Of the cores, what others may use before a second of it says nothing.
QUIET = 0.1


def trained(dtype: str, seed: int, words: str) -> dict[str, Any]:
    """One run of the demo, and what came of it; one that was finished in this folder is not trained again."""
    run = Run(Path("runs") / f"{dtype}-{seed}")
    if not run.directory.exists():
        busy = psutil.cpu_percent(interval=2) / 100
        asked = f"adapter_dtype={dtype} seed={seed} data_seed={seed} report_to=none {words}"
        commands.command(["train", "demo", "--name", run.name, "--set", asked], quiet_environment(on_cpu=True), LIMIT)
        Path(f"{run.name}.json").write_text(json.dumps(busy), encoding="utf-8")
    facts, metrics = run.facts()["measured"], run.evaluation("test")
    saved = checkpoints.at(run.directory, facts["step"])
    return {
        "seed": seed,
        "adapter_dtype": dtype,
        "steps": facts["step"],
        "eval_loss": facts["eval_loss"][-1]["eval_loss"],
        "macro_f1": metrics["models"]["tuned"]["macro_f1"]["value"],
        "seconds": facts["training_seconds"],
        "peak_memory_bytes": facts["peak_memory_bytes"],
        "adapter_bytes": (saved / "adapter_model.safetensors").stat().st_size,
        "optimizer_bytes": (saved / "optimizer.pt").stat().st_size,
        "others_use": json.loads(Path(f"{run.name}.json").read_text(encoding="utf-8")),
    }


def paired(runs: list[dict[str, Any]], measure: str) -> dict[str, float]:
    """Mean of both, and of bfloat16 less float32 over the seeds with the 95 % interval of Student's t."""
    of = {dtype: {run["seed"]: run[measure] for run in runs if run["adapter_dtype"] == dtype} for dtype in DTYPES}
    apart = [of["bfloat16"][seed] - of["float32"][seed] for seed in of["float32"]]
    mean, error = statistics.mean(apart), statistics.stdev(apart) / len(apart) ** 0.5
    half = float(stats.t.ppf(0.975, len(apart) - 1)) * error
    return {
        **{dtype: statistics.mean(values.values()) for dtype, values in of.items()},
        "difference": mean,
        "low": mean - half,
        "high": mean + half,
        "seeds_apart": statistics.stdev(of["float32"].values()),
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--work", type=Path, help="a folder to train in and to keep, whose finished runs count")
    options.add_argument("--out", type=Path, default=KEPT)
    options.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="at least two")
    options.add_argument("--set", default="", help="recipe keys beside, as max_steps=5")
    asked = options.parse_args()
    out = asked.out.resolve()
    with contextlib.ExitStack() as stack:
        os.chdir(ROOT)
        work = asked.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if not (work / "recipes").exists():
            work.mkdir(parents=True, exist_ok=True)
            program._project(work)
        stack.enter_context(contextlib.chdir(work))
        runs = []
        for seed, dtype in itertools.product(asked.seeds, DTYPES):
            runs.append(trained(dtype, seed, asked.set))
            print(json.dumps(runs[-1]), flush=True)
    facts = {
        "versions": provenance.versions(),
        "python": sys.version.split()[0],
        "cpus": os.cpu_count(),
        "settings": asked.set,
        "seeds": len(asked.seeds),
        "quiet": all(run["others_use"] <= QUIET for run in runs),
        "paired": {measure: paired(runs, measure) for measure in MEASURES},
        "bytes": {
            run["adapter_dtype"]: {key: run[f"{key}_bytes"] for key in ("adapter", "optimizer")}
            for run in runs[: len(DTYPES)]
        },
        "runs": runs,
    }
    write_whole(out, json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
