"""An engine's own client program: whether it is here, and what it says of a job that it is given."""

import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence

from sft_recipes.errors import InputError


def missing(program: str, otherwise: str) -> Iterator[str]:
    """That a client is not here, with what to do instead."""
    if not shutil.which(program):
        yield f"{program} is not in PATH; {otherwise}, or write the job alone with DRY=1"


def submitted(engine: str, command: Sequence[str], reason: Callable[[str], str] = str) -> str:
    """What a client prints when it has taken a job.

    Args:
        engine: Whose it is, in words.
        command: The client with its arguments.
        reason: What of its error output says why a job is refused.

    Raises:
        InputError: It refuses the job, and says why.
    """
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = " ".join((reason(done.stderr) or done.stdout).split()) or f"code {done.returncode}"
        raise InputError(f"{engine} refuses the job: {said}; nothing was submitted")
    return done.stdout
