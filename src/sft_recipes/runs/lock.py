"""Who may write a run: one command, and the training processes that it started, until the last of them has ended.

The command holds `.lock` alone. Each training process shares `.ranks`, because what lies between it and the command
(accelerate, torchrun) closes the descriptors that it would inherit. Both locks are the system's, so neither outlives
the processes that hold it. `.ranks` begins with the name of the launch: a process of an earlier one does not join.
Where several machines train a run, each further one has a command and a pair of files of its own (`.lock-1`,
`.ranks-1`), so that no machine needs to see the locks of another.
"""

import contextlib
import ctypes
import fcntl
import os
import secrets
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from sft_recipes.errors import InputError
from sft_recipes.files import locked

LOCK, RANKS = ".lock", ".ranks"
LAUNCHER = "SFT_RECIPES_LAUNCHER"
"""The variable that tells training processes the number of the process which starts them."""


MACHINE = "GROUP_RANK"
"""The variable in which torchrun tells its processes which machine of a run they are on."""


def this_machine() -> int:
    """Which machine of a run a training process is on; 0 where there is one."""
    return int(os.environ.get(MACHINE, "0"))


def _of(directory: Path, name: str, machine: int) -> Path:
    return directory / (f"{name}-{machine}" if machine else name)


@contextlib.contextmanager
def hold(directory: Path, machine: int = 0) -> Iterator[int]:
    """Hold a run for this process and those that inherit the descriptor given, on one of its machines.

    Raises:
        InputError: Another command holds it, training processes of one that was killed have not ended yet, or it
            cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            descriptor = stack.enter_context(locked(_of(directory, LOCK, machine), wait=False))
            _begin(directory, machine)
        except BlockingIOError:
            raise InputError(f"{directory} is in use by another process; wait for it, or stop it") from None
        except OSError as error:
            raise InputError(f"{directory} cannot be written: {error.strerror}; make room or give access") from None
        try:
            yield descriptor
        finally:
            # A process that was started and gets to work only now finds nobody to work for.
            with contextlib.suppress(OSError, InputError):
                _begin(directory, machine)


def _begin(directory: Path, machine: int) -> None:
    """Name a new launch, from which on no process of an earlier one can join."""
    path = _of(directory, RANKS, machine)
    try:
        with locked(path, wait=False):
            path.write_text(secrets.token_hex(8) + "\n", encoding="ascii")
    except BlockingIOError:
        pids = ", ".join(map(str, ranks(directory, machine))) or "unknown"
        raise InputError(
            f"{directory} is still written by the training processes of a command that was killed (process {pids}); "
            "they save a checkpoint and end after the step they are at: try again then"
        ) from None


def launch_name(directory: Path, machine: int = 0) -> str:
    """The name of the launch that the holder of the run may begin, which its training processes join by."""
    return _of(directory, RANKS, machine).read_text(encoding="ascii").partition("\n")[0]


def join(directory: Path, launch: str) -> IO | None:
    """Share the run as a training process of a launch, until the file given is closed or the process ends.

    None where another launch has begun since, and nothing may be written.
    """
    file = _of(directory, RANKS, this_machine()).open("a+", encoding="ascii")
    fcntl.flock(file, fcntl.LOCK_SH)
    file.seek(0)
    if file.readline().strip() != launch:
        file.close()
        return None
    # One write, at the end of the file whoever else writes.
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def end_with(parent: int | None) -> bool:
    """Have the system kill this process as soon as its parent has ended (prctl(2)); None ends that.

    So it is until it trains: processes that have not met yet would wait for the launcher, which brings them together,
    long after that is gone; and nothing is lost.

    Returns:
        Whether the parent is there: it may have ended before this was asked for.
    """
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL if parent else 0)
    return parent in (None, os.getppid())


def ranks(directory: Path, machine: int = 0) -> list[int]:
    """The process numbers of the last launch's training processes that have not ended."""
    with contextlib.suppress(OSError, ValueError):
        text = _of(directory, RANKS, machine).read_text(encoding="ascii")
        pids = [int(line) for line in text.splitlines()[1:]]
        return [pid for pid in pids if _trains(pid, directory)]
    return []


def _trains(pid: int, directory: Path) -> bool:
    # Nobody else needs it, and it takes longer to import than a light command may.
    import psutil

    # The number may be somebody else's by now.
    try:
        return str(directory) in psutil.Process(pid).cmdline()
    except psutil.Error:
        return False


def alone(directory: Path, machine: int = 0) -> bool:
    """Whether no training process shares the run."""
    try:
        with locked(_of(directory, RANKS, machine), wait=False):
            return True
    except BlockingIOError:
        return False


def held(directory: Path) -> bool:
    """Whether a command or training processes hold the run, as those who only read it ask."""
    for name in (LOCK, RANKS):
        try:
            with (directory / name).open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            continue
    return False


def command_gone(directory: Path) -> bool:
    """Whether the command that holds the run has ended, as its training processes ask."""
    with _of(directory, LOCK, this_machine()).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
