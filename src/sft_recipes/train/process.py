"""One process of a launch: `accelerate launch -m sft_recipes.train.process runs/NAME LAUNCH`.

The outcome is in run.json, because launchers do not hand exit codes through.
"""

import contextlib
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from sft_recipes.children import leave_spare
from sft_recipes.environment import debugging, importing, quiet
from sft_recipes.errors import InputError
from sft_recipes.runs import lock
from sft_recipes.runs.run import Run
from sft_recipes.terminal import outliving


def main() -> int:
    """Train the run as a process of the named launch; the first process that fails writes down why."""
    run, launch = Run(Path(sys.argv[1])), sys.argv[2]
    rank = int(os.environ.get("RANK", "0"))
    main_process = rank == 0
    if not main_process:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123, one voice; held until the process ends
    joined = lock.join(run.directory, launch)
    if joined is None:
        # The command that started this process was killed, and another one has the run.
        return 0
    with joined, outliving(run.output):
        if not lock.end_with(int(os.environ.get(lock.LAUNCHER, os.getppid()))):
            return 1
        with importing():
            quiet()
            import torch

            from sft_recipes.train.train import train

        leave_spare(joined)
        try:
            train(run, launched=True)
        except InputError as error:
            # The same on every process, so each leaves quietly and the launcher reports no crash.
            if main_process:
                run.update(problems=error.problems)
        except torch.OutOfMemoryError as error:
            # A long row can be too much for one process alone, while the main one waits for it. The first says so.
            time.sleep(rank)
            return _failed(run, f"out of GPU memory: {str(error).partition('. ')[0]}", out_of_memory=_memory())
        except Exception as error:
            # Where another one failed, what this one then misses is only the consequence.
            time.sleep(rank)
            return _failed(run, f"{type(error).__name__}: {error}")
    return 0


def _memory() -> dict[str, int]:
    """Bytes on this process's GPU: what torch had allocated at the most, what is free, all; nothing on a CPU."""
    import torch

    if not torch.cuda.is_available():
        return {}
    free, total = torch.cuda.mem_get_info()
    return {"allocated": torch.cuda.max_memory_allocated(), "free": free, "total": total}


def _failed(run: Run, reason: str, **facts: Any) -> int:
    if debugging():
        traceback.print_exc()
    # First what fits on a disk that is full.
    if run.fail(reason, **facts):
        with contextlib.suppress(OSError), run.output.open("a", encoding="utf-8") as file:
            traceback.print_exc(file=file)
    return 1


if __name__ == "__main__":
    sys.exit(main())
