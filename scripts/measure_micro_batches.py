"""What a micro-batch costs on this machine's CPU whatever is in it: `python scripts/measure_micro_batches.py`.

The same rows of equal length are trained on with adapters in float32, in micro-batches of several sizes that take
turns within one process. A step of n micro-batches of rows with t tokens in all takes rest + n x fixed + t x token
seconds: `fixed` is the slope over the number of micro-batches, `token` that over the tokens of a step. Writes
docs/micro_batches.json, from which `update_pages.py` writes a section of docs/execution.md; what `plan.execution`
takes for all models is between the least and the most of fixed / token, in tokens.
"""

import json
import os
import statistics
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from measure_processes import qwen3
from validate_memory import versions

from sft_recipes.benchmark import scale, steps
from sft_recipes.benchmark.device import find

KEPT = Path(__file__).parents[1] / "docs" / "micro_batches.json"
MODELS = {
    "4 layers of width 256": qwen3(256, 768, 4, 4, 2, 1408),
    "6 layers of width 384": qwen3(384, 1152, 6, 6, 2, 1408),
    "8 layers of width 768": qwen3(768, 2304, 8, 12, 4, 1408),
}
ROWS, LENGTHS, SIZES = 16, (32, 128), (1, 4, 16)
WARM, TIMED, ROUNDS = 1, 3, 3


def main() -> None:
    found = {}
    for name, differing in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            found[name] = measured(differing, Path(folder))
        print(f"{name}: {found[name]['tokens']:.0f} tokens", flush=True)
    facts = {"models": found, "rows": ROWS, "cpus": os.cpu_count(), "versions": versions()}
    KEPT.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def measured(differing: dict[str, Any], work: Path) -> dict[str, Any]:
    """The median seconds of a step by length and micro-batch, and what follows from them."""
    device = find()
    config = {**scale.cpu().config, **differing}
    words = steps.tokenizer()
    arms = {}
    for length, size in product(LENGTHS, SIZES):
        rows = scale.write_rows(work / f"rows-{length}", [length] * ROWS * (WARM + TIMED), config["vocab_size"])
        settings = {
            "max_length": length,
            "per_device_train_batch_size": size,
            "global_batch_size": ROWS,
            "max_steps": WARM + TIMED,
            "dataloader_num_workers": 0,
            "activation_checkpointing": False,
            "load_in_4bit": False,
            "dtype": "float32",
            "bf16": False,
        }
        recipe = steps.resolved(device, rows, work / "out", **settings)
        base = steps.random_base(config, device, four_bit=False, dtype="float32")
        arms[length, size] = steps.Arm(f"{length} {size}", steps.ours(recipe, base, words), device)
    steps.take_turns([*arms.values()], WARM, TIMED, ROUNDS)
    seconds = {key: statistics.median(step["seconds"] for step in arm.timed) for key, arm in arms.items()}
    rest, fixed, token = fit(seconds)
    return {
        "seconds": [
            {"length": length, "rows": size, "step": round(each, 5)} for (length, size), each in seconds.items()
        ],
        "rest": rest,
        "fixed": fixed,
        "token": token,
        "tokens": fixed / token,
    }


def fit(seconds: dict[tuple[int, int], float]) -> tuple[float, float, float]:
    """Seconds of a step beside its micro-batches, of a micro-batch, and of a token, by the least relative errors."""
    terms = [(1.0, ROWS / size, float(ROWS * length)) for length, size in seconds]
    took = np.array([*seconds.values()])
    rest, fixed, token = np.linalg.lstsq(np.array(terms) / took[:, None], np.ones(len(took)), rcond=None)[0]
    return float(rest), float(fixed), float(token)


if __name__ == "__main__":
    main()
