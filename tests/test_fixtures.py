"""The fixtures that tests share."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import MadeOnce


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
