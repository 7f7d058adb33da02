"""`accelerate launch`, which says what ended a training process instead of showing its own traceback.

`python -m sft_recipes.train.accelerate_launch [accelerate's arguments] -m sft_recipes.train.process RUN LAUNCH`
"""

import contextlib
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

from sft_recipes.runs import lock
from sft_recipes.runs.run import Run


def main() -> int:
    """The exit code of the first process that failed, 0 where none did; one that was killed is named in run.json."""
    # It speaks of each process that it ends, in lines of its own format.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ[lock.LAUNCHER] = str(os.getpid())
    from accelerate.commands import launch
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        launch.main()
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        return _ended(failure.exitcode, f"process {failure.pid} (rank {rank})")
    except subprocess.CalledProcessError as error:
        return _ended(error.returncode, "the training process")
    return 0


def _ended(code: int, who: str) -> int:
    if code >= 0:
        return code
    name = str(-code)
    with contextlib.suppress(ValueError):
        name = signal.Signals(-code).name
    why = "; where nobody did it, the system was out of memory: see dmesg" if -code == signal.SIGKILL else ""
    # What the other processes then miss is only the consequence.
    Run(Path(sys.argv[-2])).fail(f"{who} was killed by {name}{why}", cause=True)
    return 128 - code


if __name__ == "__main__":
    sys.exit(main())
