"""Peak memory of a training step from upstream's own modules, run without a GPU and without memory for their tensors.

`memory.py` answers at once from a formula; this takes up to a minute, and knows every architecture that transformers
and PEFT know.
"""

import dataclasses
import json
from typing import Any

from sft_recipes import children
from sft_recipes.errors import refuse
from sft_recipes.plan.memory import Setup


def trace(config: dict[str, Any], setup: Setup) -> dict[str, int]:
    """The bytes of one optimizer step at its `peak`, of a process that holds the whole model, and of what stays there.

    What stays between micro-batches is `base`, `adapters`, `gradients` and `optimizer`.

    Raises:
        InputError: The trace does not cover what is asked for, or upstream cannot build or run it.
    """
    sharded = setup.zero_stage or setup.fsdp or setup.offload_parameters or setup.offload_optimizer
    problems = {
        "load_in_8bit is not traced; the formula estimates it": setup.eight_bit,
        "sharded or offloaded training is not traced; the formula estimates it, or trace ACCEL=ddp": sharded,
        f"optim: {setup.optimizer} is not traced; the formula estimates it, or trace adamw_torch": (
            not setup.optimizer.startswith(("adamw_torch", "sgd"))
        ),
    }
    refuse(text for text, there in problems.items() if there)
    asked = {"config": config, "setup": dataclasses.asdict(setup)}
    answer = children.call(
        "sft_recipes.plan.fake_step", asked, failure="the training step of this model cannot be traced"
    )
    return json.loads(answer.splitlines()[-1])
