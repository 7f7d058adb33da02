"""`accelerate launch`, which trains in its own process where there is one, and says what ended one of several.

`python -m sft_recipes.train.accelerate_launch [accelerate's arguments] -m sft_recipes.train.process RUN LAUNCH`
"""

import argparse
import logging
import os
import sys
from pathlib import Path

from sft_recipes.environment import importing
from sft_recipes.runs import lock
from sft_recipes.runs.run import Run
from sft_recipes.train import process


def main() -> int:
    """The exit code of the first process that failed, 0 where none did; one that was killed is named in run.json."""
    command = os.getppid()
    # It speaks of each process that it ends, in lines of its own format.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    with importing():
        from accelerate.commands import launch
        from accelerate.utils.launch import prepare_simple_launcher_cmd_env
        from torch.distributed import DistError
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    def train_here(arguments: argparse.Namespace) -> None:
        # With the environment of the second Python that accelerate would start, which would import everything again.
        _, environment = prepare_simple_launcher_cmd_env(arguments)
        os.environ.update(environment | {lock.LAUNCHER: str(command)})
        sys.argv = [process.__file__, *arguments.training_script_args]
        sys.exit(process.main())

    launch.simple_launcher = train_here
    os.environ[lock.LAUNCHER] = str(os.getpid())
    try:
        launch.main()
    except ChildFailedError as error:
        # Of several that are found dead at once torchrun knows the second alone: those that failed miss a killed one.
        rank, failure = min(error.failures.items(), key=lambda each: (each[1].exitcode >= 0, each[1].timestamp))
        # Its last arguments are those of the training process.
        return Run(Path(sys.argv[-2])).killed(failure.exitcode, f"process {failure.pid} (rank {rank})")
    except (DistError, ConnectionError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        Run(Path(sys.argv[-2])).fail(f"the machines did not meet: {reason}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
