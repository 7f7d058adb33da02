"""The run directory: names, whole files and the lock."""

import subprocess
import sys
from pathlib import Path

import pytest
from finished import BARE, bare

from sft_recipes.errors import InputError
from sft_recipes.files import write_whole
from sft_recipes.runs.run import Run

BAD_NAMES = ["../up", "/tmp/x", "a/b", ".hidden", "", "x; touch pwned", "-rf", "a b", "a\n", "ü", "a" * 300]  # noqa: S108


def empty(directory: Path) -> dict[str, str]:
    """No file for a new run."""
    return {}


# Names


def test_a_run_is_a_new_directory_with_the_name_that_was_asked_for(tmp_path: Path) -> None:
    run = Run.create("first", "default", empty, tmp_path / "runs")
    assert (run.name, run.directory) == ("first", tmp_path / "runs" / "first")
    assert run.directory.is_dir()


def test_without_a_name_a_run_is_named_after_recipe_and_time(tmp_path: Path) -> None:
    stem, day, time = Run.create(None, "quick_test", empty, tmp_path).name.rsplit("-", 2)
    assert stem == "quick_test"
    assert (len(day), len(time), (day + time).isdigit()) == (8, 6, True)


def test_an_existing_run_is_never_overwritten(tmp_path: Path) -> None:
    kept = Run.create("first", "default", empty, tmp_path).directory / "loss.png"
    kept.write_text("old")
    with pytest.raises(InputError, match=r"never overwritten; choose another NAME=.* make resume NAME=first"):
        Run.create("first", "default", empty, tmp_path)
    assert kept.read_text() == "old"


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_bad_name_creates_and_opens_nothing(name: str, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    with pytest.raises(InputError):
        Run.create(name, "default", empty, runs)
    with pytest.raises(InputError):
        Run.open(name, runs)
    assert list(tmp_path.rglob("*")) == [runs]


def test_opening_an_unknown_run_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no run 'x' in .*; there are none"):
        Run.open("x", tmp_path)
    for name in ("b", "a"):
        bare(name, tmp_path)
    (tmp_path / "no_run").mkdir()
    with pytest.raises(InputError, match=r"no run 'x' in .*; there are a, b$"):
        Run.open("x", tmp_path)
    assert Run.open("a", tmp_path).directory == tmp_path / "a"


# Files


def test_facts_are_written_and_updated_and_no_temporary_is_left(tmp_path: Path) -> None:
    run = bare("first", tmp_path)
    run.update(status="finished", measured={"step": 5})
    facts = run.facts()
    assert (facts.pop("status"), facts.pop("measured")) == ("finished", {"step": 5})
    (event,) = facts.pop("journal")
    assert (event["status"], event["step"]) == ("finished", 5)
    assert facts == {key: value for key, value in (BARE | {"name": "first"}).items() if key != "status"}
    assert sorted(path.name for path in run.directory.iterdir()) == [".reserve", "run.json"]


@pytest.mark.promise("disk", "a write that fails on the way")
def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_whole(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "new \ud800")
    assert path.read_text() == "old"


@pytest.mark.promise("one-writer", "a second holder of a run, and SIGKILL of the first")
def test_a_run_is_locked_until_the_process_that_trains_it_ends_even_by_a_kill(tmp_path: Path) -> None:
    run = Run.create("first", "default", empty, tmp_path)
    code = (
        "import sys, time; from pathlib import Path; from sft_recipes.runs.run import Run\n"
        "with Run(Path(sys.argv[1])).locked():\n    print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(run.directory)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="is in use by another process"), run.locked():
            pass
    finally:
        holder.kill()
        holder.wait()
    with run.locked(), pytest.raises(InputError, match="another process"), run.locked():
        pass
    with run.locked():
        pass
