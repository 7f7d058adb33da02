"""What keeps the libraries from calling home and from talking about themselves, here and in child processes."""

import contextlib
import gc
import importlib.util
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Objects in the collector's care that are made more than freed while rows pass, before it looks: about 20 MB.
YOUNG = 100_000


def quiet_environment(*, on_cpu: bool, one_gpu: bool = False, compiles: bool = False) -> dict[str, str]:
    """This environment, with what keeps upstream from calling home and from talking about itself.

    Args:
        on_cpu: Hide every GPU.
        one_gpu: Show the first visible GPU alone; transformers would spread a model over all that it sees.
        compiles: Whether something there is to be compiled by torch.
    """
    defaults = {
        "DS_LOG_LEVEL": "error",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "GLOO_LOG_LEVEL": "ERROR",
        # CUDA's own order is another than nvidia-smi's where GPUs are of several kinds.
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        # bitsandbytes asks torch to compile functions in whose place its own kernels for the CPU are called, and torch
        # imports its compiler at once, which takes seconds of each process.
        **({"TORCHDYNAMO_DISABLE": "1"} if on_cpu and not compiles else {}),
    }
    first_gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    changes = {
        # DeepSpeed builds its operations with ninja, which is beside this Python, whether or not its environment is
        # active.
        "PATH": os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)]),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        # Whatever a library asks for: what torch reads here may be anybody's.
        "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1",
        # A notebook's is a module that need not be installed beside this Python, and nothing is drawn on a screen.
        "MPLBACKEND": "agg",
        # A GPU in sight is taken by some of the libraries, whatever the accelerate config says.
        **({"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""} if on_cpu else {}),
        **({"CUDA_VISIBLE_DEVICES": first_gpu} if one_gpu and not on_cpu else {}),
    }
    return defaults | dict(os.environ) | changes


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Import the libraries without Python's collector, which would look for garbage among all that they define.

    What they define stays until the process ends, so the collector leaves it out afterwards too.
    """
    if "transformers" in sys.modules:
        # They are imported already, and what else there is by now may become garbage.
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextlib.contextmanager
def rows_passing() -> Iterator[None]:
    """Have Python's collector look seldom while rows pass: it would look at each again and again, and find nothing.

    What is made of a row is free without it, but for what a chat template's macros leave, which is not kept for long.
    """
    before = gc.get_threshold()
    gc.set_threshold(YOUNG, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def debugging() -> bool:
    """Whether somebody wants to see tracebacks: SFT_RECIPES_DEBUG=1."""
    return os.environ.get("SFT_RECIPES_DEBUG", "") not in ("", "0")


def importable_backend() -> None:
    """Forget a notebook's MPLBACKEND where it is a module of another Python's: matplotlib could not be imported."""
    name, _, module = os.environ.get("MPLBACKEND", "").partition("://")
    if name == "module" and importlib.util.find_spec(module.partition(".")[0]) is None:
        del os.environ["MPLBACKEND"]


def _warn_once() -> None:
    """Print each warning of a library once: Python forgets what it has printed whenever filters change, as they do."""
    show, printed = warnings.showwarning, set()

    def show_once(message: Warning | str, category: type[Warning], *place: Any, **named: Any) -> None:
        if (category, str(message)) not in printed:
            printed.add((category, str(message)))
            show(message, category, *place, **named)

    warnings.showwarning = show_once


def quiet() -> None:
    """Silence what upstream says about itself, some of it while it is imported; what matters to a run is said here.

    Warnings about what a run computes (`UserWarning`) stay: one of them has told of gradients that were lost.
    """
    # Deprecations that upstream's own calls of upstream raise. Our tests make them errors, which come before the last.
    warnings.filterwarnings("ignore", category=FutureWarning, append=True)
    _warn_once()
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
