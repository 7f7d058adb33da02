"""Work in a process of its own, on the CPU: what needs torch is asked for, and the asking process never imports it.

What follows a training would import for seconds what the training had imported. So a process that trains leaves a
copy of itself (fork), made when everything is imported and nothing computed: its `Spare`, which waits, sees nothing of
the training, and does what a process started for the work would do. Where there is a GPU there is none: the libraries
look for one while they are imported, and CUDA cannot be used in a copy.
"""

import contextlib
import json
import os
import resource
import runpy
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, ClassVar

from sft_recipes.environment import quiet_environment
from sft_recipes.errors import InputError

SPARE = "SFT_RECIPES_SPARE"
"""The variable that tells a process the descriptor by which its copy is asked for work."""
ANSWERS = 30.0
"""Seconds within which a copy takes its work."""


def call(module: str, payload: Any, *arguments: str, failure: str, **environment: str) -> str:
    """Run `python -m module arguments` with the payload as JSON on its input, and give what it prints.

    Args:
        failure: What it means if the process fails; its last line is the reason.

    Raises:
        InputError: The process failed.
    """
    done = run(module, payload, *arguments, env=quiet_environment(on_cpu=True) | environment)
    if done.returncode:
        raise InputError(f"{failure}: {reason(done)}")
    return done.stdout


def run(module: str, payload: Any, *arguments: str, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run `python -m module arguments` in an environment, with the payload as JSON on its input."""
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, input=json.dumps(payload), capture_output=True, text=True, env=env)


def reason(done: subprocess.CompletedProcess[str]) -> str:
    """Why a process failed, which is the last that it said."""
    return (done.stderr.strip().splitlines() or [f"it ended with code {done.returncode} and said nothing"])[-1]


def answers(mode: str = "w") -> IO[Any]:
    """What this process answers on; whatever else writes to its output from here on is chatter, and goes to errors."""
    kept = os.fdopen(os.dup(1), mode)
    os.dup2(2, 1)
    return kept


def kill(process: subprocess.Popen) -> None:
    """Kill a process and everything it started, without a word to it, as a crash of the machine would."""
    # Nobody else needs it, and it takes longer to import than a light command may.
    import psutil

    started: list[Any] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        started = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    for each in [process, *started]:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    process.wait()
    psutil.wait_procs(started, timeout=10)


def peak_resident() -> int:
    """The most bytes of memory that this process has had."""
    # Linux gives KiB, macOS bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Spare:
    """A copy of another process that waits for work, as those see it who give it some; in the end as a `Popen`."""

    _waiting: ClassVar[dict[Path, "Spare"]] = {}

    def __init__(self, asks: socket.socket) -> None:
        self._asks, self._stopped = asks, False

    @classmethod
    @contextlib.contextmanager
    def offered(cls, directory: Path) -> Iterator[dict[str, Any]]:
        """Arguments of `Popen` for a process that leaves a copy of itself (`leave_spare`) for a directory's work."""
        cls.dismiss(directory)
        here, there = socket.socketpair()
        with there:
            cls._waiting[directory] = cls(here)
            yield {"pass_fds": (there.fileno(),), "env": {SPARE: str(there.fileno())}}

    @classmethod
    def dismiss(cls, directory: Path) -> None:
        """Let a copy that waits for a directory's work end."""
        if spare := cls._waiting.pop(directory, None):
            spare._asks.close()

    @classmethod
    def start(
        cls, directory: Path, module: str, arguments: Sequence[str], environment: Mapping[str, str], lock: int
    ) -> "Spare | None":
        """Have the copy for a directory's work do that of `python -m module arguments`; None where there is none.

        Args:
            directory: Whose work it is.
            module: What is run.
            arguments: Of its command line.
            environment: All of its variables.
            lock: A descriptor that it keeps as long as it works.
        """
        spare = cls._waiting.pop(directory, None)
        if spare is None:
            return None
        asked = {"command": [module, *arguments], "environment": dict(environment), "folder": str(Path.cwd())}
        try:
            # Output goes where that of a process started here would.
            socket.send_fds(spare._asks, [b"\n"], [1, 2, lock])
            spare._asks.sendall(json.dumps(asked).encode() + b"\n")
            spare._asks.settimeout(ANSWERS)
            if spare._asks.recv(1):
                spare._asks.settimeout(None)
                return spare
        except OSError:
            pass
        # It was never there, has ended meanwhile, or does not answer: it will not begin any more.
        spare._asks.close()
        return None

    def stop(self) -> None:
        """As Ctrl-C, which comes from no terminal to a process that trains."""
        self._stopped = True
        with contextlib.suppress(OSError):
            self._asks.shutdown(socket.SHUT_WR)

    def wait(self) -> int:
        """Its exit code, as `Popen.wait` gives it; that of a kill where it has ended without one."""
        if code := self._asks.recv(1):
            return code[0]
        return -signal.SIGINT if self._stopped else -signal.SIGKILL


def leave_spare(*files: IO) -> None:
    """Leave a copy of this process to wait for work, where the one that started it offers to give it some.

    Args:
        files: The copy closes them at once.
    """
    number = os.environ.pop(SPARE, None)
    if number is None:
        return
    with socket.socket(fileno=int(number)) as asked:
        # Or what is not written yet would be written twice.
        sys.stdout.flush()
        sys.stderr.flush()
        try:
            copy = os.fork() == 0
        except OSError:
            # Without one, a process is started for the work.
            return
        if copy:
            try:
                _wait_for_work(asked, files)
            finally:
                os._exit(1)


def _wait_for_work(asked: socket.socket, files: Sequence[IO]) -> None:
    for file in files:
        file.close()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for output in (1, 2):
        # Those who read what the training says wait until nobody can write.
        os.dup2(nowhere, output)
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    for each in signals:
        signal.signal(each, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
    _, descriptors, *_ = socket.recv_fds(asked, 1, 3)
    if not descriptors:
        os._exit(0)
    for output, descriptor in zip((1, 2), descriptors, strict=False):
        os.dup2(descriptor, output)
    sys.stdout, sys.stderr = (open(output, "w", buffering=1, closefd=False) for output in (1, 2))  # noqa: SIM115, they stay
    with asked.makefile("rb") as lines:
        job = json.loads(lines.readline())
    os.environ.clear()
    os.environ.update(job["environment"])
    os.chdir(job["folder"])
    asked.sendall(b"\0")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_stop_with, args=(asked,), daemon=True).start()
    module, *arguments = job["command"]
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except Exception:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # What it keeps is free before anybody knows that the work is done.
    os.close(descriptors[2])
    asked.sendall(bytes([code]))
    os._exit(code)


def _stop_with(asked: socket.socket) -> None:
    """Stop as Ctrl-C does when the one who gave the work says so, or has ended."""
    asked.recv(1)
    os.kill(os.getpid(), signal.SIGINT)
