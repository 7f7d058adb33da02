"""The process that measures one candidate of `tune`: `python -m sft_recipes.benchmark.candidate`, asked on its input.

Apart from the others, so that its peak of memory is its own, and one that does not fit ends nothing else.
"""

import json
import sys
import tempfile
from typing import Any

from sft_recipes import children
from sft_recipes.environment import importing, quiet


def main() -> int:
    """Measure what is asked, and print what it took."""
    answers = children.answers()
    with importing():
        quiet()
        found = measured(json.load(sys.stdin))
    answers.write(json.dumps(found) + "\n")
    answers.flush()
    return 0


def measured(asked: dict[str, Any]) -> dict[str, Any]:
    """Train `warm` steps and then `timed` ones of a resolved recipe (`values` and `own`), and say what these took."""
    import torch

    from sft_recipes.benchmark import device, steps
    from sft_recipes.train.train import OF_TRAINER, build, correct

    here, own = device.find(), asked["own"]
    with tempfile.TemporaryDirectory() as scratch:
        recipe = {**asked["values"], "output_dir": scratch}
        trainer = build(recipe, **{key: own[key] for key in OF_TRAINER})
        correct(trainer, recipe, own)
        arm = steps.Arm("", steps.silent(trainer), here)
        arm.round(asked["warm"], asked["timed"])
    peak = torch.cuda.max_memory_allocated() if here.gpu else children.peak_resident()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {**arm.facts(), "losses": losses, "peak_memory_bytes": peak}


if __name__ == "__main__":
    sys.exit(main())
