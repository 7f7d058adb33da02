"""Peak memory of a training step from upstream's own modules, run without a GPU and without memory for their tensors.

`memory.py` answers at once from a formula; this takes up to a minute, and knows every architecture that transformers
and PEFT know.
"""

import dataclasses
import json
import subprocess
import sys
from typing import Any

from sft_recipes.environment import quiet_environment
from sft_recipes.errors import InputError
from sft_recipes.plan.memory import Setup


def trace(config: dict[str, Any], setup: Setup) -> dict[str, int]:
    """The bytes of one optimizer step at its `peak`, of a process that holds the whole model, and of what stays there.

    What stays between micro-batches is `base`, `adapters`, `gradients` and `optimizer`.

    Args:
        config: config.json of the model.
        setup: the facts that the formula in `memory.py` reads too.

    Raises:
        InputError: The trace does not cover what is asked for, or upstream cannot build or run it.
    """
    sharded = setup.zero_stage or setup.fsdp or setup.offload_parameters or setup.offload_optimizer
    problems = {
        "adapters on experts (lora_target_parameters) are not traced; the formula estimates them": setup.parameters,
        "load_in_8bit is not traced; the formula estimates it": setup.eight_bit,
        "sharded or offloaded training is not traced; the formula estimates it, or trace ACCEL=ddp": sharded,
        f"optim: {setup.optimizer} is not traced; the formula estimates it, or trace adamw_torch": (
            not setup.optimizer.startswith(("adamw_torch", "sgd"))
        ),
    }
    if any(problems.values()):
        raise InputError(*(text for text, there in problems.items() if there))
    done = subprocess.run(
        [sys.executable, "-m", "sft_recipes.plan.fake_step"],
        input=json.dumps({"config": config, "setup": dataclasses.asdict(setup)}),
        capture_output=True,
        text=True,
        env=quiet_environment(on_cpu=True),
    )
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise InputError(f"the training step of this model cannot be traced: {reason[0]}")
    return json.loads(done.stdout.splitlines()[-1])
