"""Processes of this package as copies (fork) of the one that tests, which has imported what they would.

Each has its number, session, streams, signals and environment, and is waited for as any other; what it would import
takes longer than most of what tests have it do. That they start from nothing too, other tests show.
"""

import contextlib
import importlib
import inspect
import os
import runpy
import signal
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest

PACKAGE = "sft_recipes"
# By one or another of its processes.
IMPORTED = (
    "sft_recipes.train.train",
    "accelerate.commands.launch",
    "sft_recipes.cli.commands",
    "sft_recipes.report.pages",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
)


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is started as `python -m sft_recipes...` is a copy of this process."""
    import torch

    # CUDA cannot be used in a copy.
    if not torch.cuda.is_available():
        monkeypatch.setattr(subprocess.Popen, "_execute_child", _copied_or(subprocess.Popen._execute_child))  # type: ignore[attr-defined]


def _copied_or(execute: Any) -> Any:
    for name in IMPORTED:
        importlib.import_module(name)
    signature = inspect.signature(execute)

    def copied(self: subprocess.Popen, *arguments: Any) -> None:
        given = signature.bind(self, *arguments).arguments
        module = _module(given["args"])
        if module is None:
            execute(self, *arguments)
            return
        for stream in (sys.stdout, sys.stderr):
            # Or what is not written yet would be written twice.
            stream.flush()
        with warnings.catch_warnings():
            # Python 3.12 warns where there are threads, as pytest-xdist has one.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if not self.pid:
            try:
                _become(module, given)
            finally:
                os._exit(1)
        self._child_created = True  # type: ignore[attr-defined]
        pipes = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        self._close_pipe_fds(*(given[pipe] for pipe in pipes))  # type: ignore[attr-defined]

    return copied


def _module(command: Any) -> list[str] | None:
    """The module of this package that a command runs, with its arguments."""
    if isinstance(command, (str, bytes)) or command[0] != sys.executable:
        return None
    option, module, *arguments = [word for word in command[1:] if word != "-u"] + ["", ""]
    if option != "-m" or module.split(".")[0] != PACKAGE:
        return None
    return [module, *arguments[:-2]]


def _become(command: Sequence[str], given: dict[str, Any]) -> NoReturn:
    """Do in a copy what a process of that command would."""
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    if given["start_new_session"]:
        os.setsid()
    for stream, number in (("p2cread", 0), ("c2pwrite", 1), ("errwrite", 2)):
        if given[stream] not in (-1, number):
            os.dup2(given[stream], number)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
        # Closed, it would be given to another file, which those who have it here would close.
        if number > 2 and number not in (nowhere, *given["pass_fds"]):
            os.dup2(nowhere, number)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115, it stays
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
    if given["cwd"]:
        os.chdir(given["cwd"])
    if given["env"] is not None:
        os.environ.clear()
        os.environ.update(given["env"])
    warnings.resetwarnings()
    for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", category)
    # That the module is imported already.
    warnings.filterwarnings("ignore", module="runpy")
    warnings.showwarning = _say_warning
    from accelerate.state import AcceleratorState, PartialState

    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()
    module, *sys.argv[1:] = command
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _say_warning(message: Warning | str, category: type[Warning], name: str, line: int, *more: Any) -> None:
    with contextlib.suppress(OSError):
        sys.stderr.write(warnings.formatwarning(message, category, name, line))
