"""Peak memory of a training step from upstream's own modules, run without a GPU and without memory for their tensors.

`memory.py` answers at once from a formula; this takes some seconds, and knows every architecture that transformers
and PEFT know. The step is run by `fake_step.py` in a process of its own: `python -m sft_recipes.plan.trace`, with
{"config": ..., "setup": ...} as JSON on stdin and what `trace` returns as JSON on stdout.
"""

import dataclasses
import json
import subprocess
import sys
from typing import Any

from sft_recipes.environment import quiet_environment
from sft_recipes.errors import InputError
from sft_recipes.plan.memory import Setup


def trace(config: dict[str, Any], setup: Setup) -> dict[str, Any]:
    """The bytes of one optimizer step at its peak, of a process that holds the whole model.

    Args:
        config: config.json of the model.
        setup: the facts that the formula in `memory.py` reads too.

    Returns:
        `peak`, and the parts of it: `static` (`base`, `adapters`, `gradients` and `optimizer`, which stay between
        micro-batches) and `activations` (what a micro-batch needs beside them); `phase`, in which the peak is; and
        `phases`, the peak of each.

    Raises:
        InputError: The trace does not cover what is asked for, or upstream cannot build or run it.
    """
    if problems := _not_covered(setup):
        raise InputError(*problems)
    done = subprocess.run(
        [sys.executable, "-m", "sft_recipes.plan.trace"],
        input=json.dumps({"config": config, "setup": dataclasses.asdict(setup)}),
        capture_output=True,
        text=True,
        env=quiet_environment(on_cpu=True),
    )
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise InputError(f"the training step of this model cannot be traced: {reason[0]}")
    return json.loads(done.stdout.splitlines()[-1])


def _not_covered(setup: Setup) -> list[str]:
    problems = []
    if setup.parameters:
        problems.append("adapters on experts (lora_target_parameters) are not traced; the formula estimates them")
    if setup.eight_bit:
        problems.append("load_in_8bit is not traced; the formula estimates it")
    if setup.zero_stage or setup.fsdp or setup.offload_parameters or setup.offload_optimizer:
        problems.append("sharded or offloaded training is not traced; the formula estimates it, or trace ACCEL=ddp")
    if not setup.optimizer.startswith(("adamw_torch", "sgd")):
        problems.append(f"optim: {setup.optimizer} is not traced; the formula estimates it, or trace adamw_torch")
    return problems


def main() -> None:
    from sft_recipes.plan import fake_step

    asked = json.load(sys.stdin)
    setup = asked["setup"]
    print(json.dumps(fake_step.extrapolate(asked["config"], Setup(**{**setup, "targets": tuple(setup["targets"])}))))


if __name__ == "__main__":
    main()
