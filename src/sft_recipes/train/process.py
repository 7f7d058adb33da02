"""One process of a launch: `accelerate launch -m sft_recipes.train.process runs/NAME`.

The outcome is in run.json, because launchers do not hand exit codes through.
"""

import os
import sys
import time
from pathlib import Path

from sft_recipes.environment import quiet
from sft_recipes.errors import InputError
from sft_recipes.runs.run import Run


def main() -> int:
    """Train the run; what went wrong is written down by the main process, and others raise it for the launcher."""
    run = Run(Path(sys.argv[1]))
    rank = int(os.environ.get("RANK", "0"))
    main_process = rank == 0
    if not main_process:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123, one voice; held until the process ends
    quiet()
    import torch

    from sft_recipes.train.train import train

    try:
        train(run)
    except InputError as error:
        # The same on every process, so each leaves quietly and the launcher reports no crash.
        if main_process:
            run.update(problems=error.problems)
    except torch.OutOfMemoryError as error:
        # A long row can be too much for one process alone, while the main one waits for it. The first says so.
        time.sleep(rank)
        if main_process or run.facts()["status"] == "running":
            remedy = "halve per_device_train_batch_size (the global batch stays), or set a smaller max_length"
            run.update(status="failed", error=f"out of GPU memory: {error} Instead: {remedy}")
        raise
    except Exception as error:
        # Where another ran out of memory, what the main process then misses is only the consequence.
        if main_process and run.facts()["status"] == "running":
            run.update(status="failed", error=f"{type(error).__name__}: {error}")
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
