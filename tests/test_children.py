"""A process that leaves a copy of itself for later work, with real processes and nothing in them that takes long."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sft_recipes.children import Spare

# What it has imported, its copy has.
TRAINS = """\
import signal, sys
from pathlib import Path
from sft_recipes.children import leave_spare
import this_takes_long
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
print("before")
lock = open("held", "w")
leave_spare(lock)
print("trained")
"""
WORKS = """\
import os, sys, time
print(sys.argv[1:], os.getcwd(), os.environ["SAID"], "TRAINS" in os.environ, "this_takes_long" in sys.modules)
Path = __import__("pathlib").Path
Path("pid").write_text(str(os.getpid()))
try:
    time.sleep(float(sys.argv[1]))
except KeyboardInterrupt:
    print("stopped")
    sys.exit(3)
sys.exit(7)
"""


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """Run the process that leaves a copy, and give all that is said until nobody can say more."""
    for name, text in {"trains.py": TRAINS, "works.py": WORKS, "this_takes_long.py": ""}.items():
        (tmp_path / name).write_text(textwrap.dedent(text), encoding="utf-8")
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path)

    def train() -> str:
        with Spare.offered(Path("run")) as given:
            given["env"] |= {**os.environ, "PYTHONPATH": str(tmp_path), "TRAINS": "1"}
            process = subprocess.Popen([sys.executable, "-m", "trains"], stdout=subprocess.PIPE, text=True, **given)
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        return said

    return train


def start(seconds: float) -> Spare | None:
    read, write = os.pipe()
    os.close(read)
    try:
        return Spare.start(Path("run"), "works", [str(seconds)], {**os.environ, "SAID": "here"}, write)
    finally:
        os.close(write)


def working() -> int:
    deadline = time.monotonic() + 30
    while not (Path("pid").exists() and Path("pid").read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return int(Path("pid").read_text())


def test_the_copy_does_what_a_process_of_its_own_would(
    trained: Callable[[], str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert trained() == "before\ntrained\n"
    spare = start(0)
    assert spare is not None
    assert spare.wait() == 7
    assert capfd.readouterr().out == f"['0'] {Path.cwd()} here False True\n"
    # It is there once.
    assert start(0) is None


def test_the_copy_is_stopped_as_by_a_terminal_and_its_death_is_known(
    trained: Callable[[], str], capfd: pytest.CaptureFixture[str]
) -> None:
    trained()
    spare = start(60)
    assert spare is not None
    working()
    spare.stop()
    assert spare.wait() == 3
    assert capfd.readouterr().out.endswith("stopped\n")

    Path("pid").unlink()
    trained()
    spare = start(60)
    assert spare is not None
    os.kill(working(), signal.SIGKILL)
    assert spare.wait() == -signal.SIGKILL


def test_the_copy_ends_when_nobody_needs_it_and_another_process_takes_its_place(trained: Callable[[], str]) -> None:
    read, write = os.pipe()
    os.set_inheritable(write, True)
    with Spare.offered(Path("run")) as given:
        given["env"] |= {**os.environ, "PYTHONPATH": str(Path.cwd())}
        given["pass_fds"] += (write,)
        subprocess.run([sys.executable, "-m", "trains"], check=True, stdout=subprocess.DEVNULL, **given)
    os.close(write)
    Spare.dismiss(Path("run"))
    # The end of a pipe that the copy alone had open.
    assert os.read(read, 1) == b""
    os.close(read)
    assert start(0) is None
    # Nor is there one of a process that has failed before, or that nobody asked for one.
    with Spare.offered(Path("run")) as given:
        subprocess.run([sys.executable, "-c", ""], check=True, env=os.environ, pass_fds=given["pass_fds"])
    assert start(0) is None
