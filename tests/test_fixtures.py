"""The fixtures that tests share."""

import os
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from conftest import MadeOnce

pytest_plugins = ["forks"]


@pytest.mark.parametrize("capture", ["capsys", "capfd"])
def test_what_is_said_while_something_shared_is_made_is_in_no_test_s_capture(
    made_once: MadeOnce, shared: Path, request: pytest.FixtureRequest, capture: str
) -> None:
    """Whichever test comes first makes it."""
    captured = request.getfixturevalue(capture)

    def fill(directory: Path) -> None:
        directory.mkdir()
        print("from a function")
        print("an error", file=sys.stderr)
        subprocess.run([sys.executable, "-c", "print('from a child')"], check=True)

    print("before")
    made_once(f"said-{capture}", fill)
    print("after")
    assert captured.readouterr() == ("before\nafter\n", "")
    said = (shared / f"said-{capture}.txt").read_text(encoding="utf-8")
    assert sorted(said.splitlines()) == ["an error", "from a child", "from a function"]


@pytest.mark.usefixtures("forks")
def test_a_copy_is_waited_for_and_killed_as_the_process_it_stands_for(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sft_recipes"]
    environment = {**os.environ, "NO_COLOR": "1"}
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert (done.returncode, done.stdout.split(), done.stderr) == (
        0,
        ["sft-recipes", metadata.version("sft-recipes")],
        "",
    )
    wrong = subprocess.run([*command, "plan", "nothing"], capture_output=True, text=True, cwd=tmp_path)
    assert wrong.returncode == 2 and "nothing" in wrong.stderr
    worker = [sys.executable, "-u", "-m", "sft_recipes.benchmark.worker"]
    with subprocess.Popen(worker, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert os.getsid(0) != process.pid and process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == -signal.SIGTERM
