"""Processes of the project's modules as copies of the test's own process, which has imported what each would import.

They are processes like others: with numbers, parents, sessions, signals, locks, streams and a command line of their
own. What they do not show is what a module imports, which takes them 7 s of a core each.
"""

import atexit
import contextlib
import ctypes
import gc
import importlib
import logging
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

from sft_recipes.children import Spare

# What most of them would import.
IMPORTED = (
    "sft_recipes.train.train",
    "sft_recipes.cli.commands",
    "sft_recipes.report.pages",
    "accelerate.commands.launch",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
)
_begin = subprocess._fork_exec  # type: ignore[attr-defined]


def _module(words: Sequence[str]) -> list[str]:
    """Of a command line that runs a module of the project: the module, and its arguments."""
    words = [os.fsdecode(word) for word in words]
    if words[0] != sys.executable or "-m" not in words[1:3]:
        return []
    module = words[words.index("-m") + 1 :]
    return module if module[0].partition(".")[0] == "sft_recipes" else []


def _copied(
    words: Sequence[str], executables: Any, close: bool, kept: Sequence[int], folder: Any, variables: Any, *rest: Any
) -> int:
    """As `subprocess` begins a process, by a copy of this one where that is all that it needs."""
    *streams, _, told, _, session, group, _, _, _, _, before, _ = rest
    module = _module(words)
    if not module or before:
        return _begin(words, executables, close, kept, folder, variables, *rest)
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        # Python 3.12 warns where there are threads, as pytest-xdist has one.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child:
        return child
    try:
        here = (streams[0], streams[3], streams[5])
        inherited = [os.dup(number if given < 0 else given) for number, given in enumerate(here)]
        _own_descriptors({*kept, *inherited} - {told}, all_others=close)
        for number, descriptor in enumerate(inherited):
            os.dup2(descriptor, number)
            os.close(descriptor)
        if session:
            os.setsid()
        if group >= 0:
            os.setpgid(0, group)
        if folder is not None:
            os.chdir(folder)
        if variables is not None:
            os.environ.clear()
            os.environ.update(os.fsdecode(each).split("=", 1) for each in variables)
        _named([os.fsdecode(word) for word in words])
        _run(*module)
    finally:
        os._exit(1)


def _own_descriptors(kept: set[int], *, all_others: bool) -> None:
    """Have nothing open that was not given: what objects of this process would close later is open on nothing."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in [int(each.name) for each in Path("/proc/self/fd").iterdir()]:
        with contextlib.suppress(OSError):
            if number > 2 and number not in kept and (all_others or not os.get_inheritable(number)):
                os.dup2(nothing, number)


def _named(words: list[str]) -> None:
    """The command line that others see, in the place of that of the process which was copied."""
    start, end = map(int, Path("/proc/self/stat").read_text().rpartition(")")[2].split()[45:47])
    # Where it is longer, the system shows it up to its end, and as one word: that is how processes rename themselves.
    longer = len(" ".join(words).encode()) >= end - start
    text = (" " if longer else "\0").join(words).encode() + b"\0"
    assert len(text) < end - start + len(Path("/proc/self/environ").read_bytes())
    ctypes.memset(start, 0, end - start)
    ctypes.memmove(start, text, len(text))


def _run(module: str, *arguments: str) -> NoReturn:
    """`python -m module arguments`, with nothing of the tests' own state."""
    gc.freeze()
    atexit._clear()
    warnings.simplefilter("ignore")
    logging.getLogger().handlers.clear()
    Spare._waiting.clear()
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if callable(signal.getsignal(number)) or number == signal.SIGPIPE:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState, PartialState

        AcceleratorState._reset_state(reset_partial_state=True)
        PartialState._reset_state()
    sys.stdin, sys.stdout, sys.stderr = (open(number, mode, closefd=False) for number, mode in enumerate("rww"))  # noqa: SIM115
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr  # type: ignore[misc]
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code: Any = 0
    except SystemExit as ended:
        code = ended.code
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever starts a module of the project by `python -m`, here and in what is started so, gets a copy of this."""
    for name in IMPORTED:
        importlib.import_module(name)
    monkeypatch.setattr(subprocess, "_fork_exec", _copied)
