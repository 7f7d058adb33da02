"""One process of a launch: `accelerate launch -m sft_recipes.process runs/NAME`.

The outcome is in run.json, because launchers do not hand exit codes through.
"""

import logging
import os
import sys
import time
import warnings
from pathlib import Path

from sft_recipes.errors import InputError
from sft_recipes.run import Run


def main() -> int:
    """Train the run; what went wrong is written down by the main process, and others raise it for the launcher."""
    run = Run(Path(sys.argv[1]))
    rank = int(os.environ.get("RANK", "0"))
    main_process = rank == 0
    if not main_process:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123, one voice; held until the process ends
    quiet()
    import torch

    from sft_recipes.train import train

    try:
        train(run)
    except InputError as error:
        # The same on every process, so each leaves quietly and the launcher reports no crash.
        if main_process:
            run.update(status="failed", problems=error.problems)
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


def quiet_environment(*, on_cpu: bool) -> dict[str, str]:
    """This environment, with what keeps upstream from calling home and from talking about itself."""
    defaults = {
        "DS_LOG_LEVEL": "error",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "GLOO_LOG_LEVEL": "ERROR",
        # CUDA's own order is another than nvidia-smi's where GPUs are of several kinds.
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }
    changes = {
        # DeepSpeed builds its operations with ninja, which is beside this Python, whether or not its environment is
        # active.
        "PATH": os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)]),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        # A GPU in sight is taken by some of the libraries, whatever the accelerate config says.
        **({"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""} if on_cpu else {}),
    }
    return defaults | dict(os.environ) | changes


def quiet() -> None:
    """Silence what upstream says about itself, some of it while it is imported; what matters to a run is said here.

    Warnings about what a run computes (`UserWarning`) stay: one of them has told of gradients that were lost.
    """
    # Deprecations that upstream's own calls of upstream raise.
    warnings.filterwarnings("ignore", category=FutureWarning)
    # That a kernel for inference, which training never calls, is not installed.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    # That DeepSpeed's accumulation is taken, which is the recipe's own; what a step takes is verified.
    logging.getLogger("accelerate.accelerator").addFilter(
        lambda record: "Gradient accumulation steps mismatch" not in record.getMessage()
    )

    import datasets
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()


if __name__ == "__main__":
    sys.exit(main())
