"""A fault of the program ends in one line that says so and where its details are."""

import json
from pathlib import Path

import pytest

from sft_recipes import cli
from sft_recipes.plan import lint
from sft_recipes.recipes import topology


def broken() -> None:
    raise KeyError("some\nwords", "hf_" + "q" * 34)


@pytest.fixture
def faulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lint, "rules", broken)
    return tmp_path


@pytest.mark.promise("secrets", "a token in the message of a fault")
def test_a_fault_is_one_line_and_its_details_are_kept(faulty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["rules"]) == 1
    said = capsys.readouterr()
    (details,) = (faulty / ".cache" / "errors").iterdir()
    assert said.out == ""
    assert said.err.startswith("error: this is a fault of sft-recipes, not of your input: KeyError: ")
    assert said.err.count("\n") == 1
    assert f".cache/errors/{details.name}" in said.err
    text = details.read_text()
    assert "in broken" in text and "transformers" in text and "command " in text
    assert "q" * 34 not in text + said.err


def test_the_traceback_is_shown_when_asked_for(
    faulty: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFT_RECIPES_DEBUG", "1")
    assert cli.main(["rules"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("Traceback") and "in broken" in said and "q" * 34 not in said


def test_with_json_a_fault_is_json_too(faulty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["rules", "--json"]) == 1
    (problem,) = json.loads(capsys.readouterr().out)["problems"]
    assert problem.startswith("this is a fault of sft-recipes")


def test_the_details_lie_in_the_temporary_folder_where_the_project_cannot_be_written(
    faulty: Path,
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.setattr("tempfile.tempdir", str(elsewhere))
    (faulty / ".cache").write_text("a file where the folder would be")
    assert cli.main(["rules"]) == 1
    (details,) = elsewhere.iterdir()
    assert str(details) in capsys.readouterr().err
    monkeypatch.setattr("tempfile.tempdir", str(details))
    assert cli.main(["rules"]) == 1
    assert "the details cannot be written, SFT_RECIPES_DEBUG=1 prints them" in capsys.readouterr().err


@pytest.mark.promise("disk", "the disk full when a plan writes")
def test_a_full_disk_is_no_fault_of_the_program(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The device of every Linux that is always full.
    monkeypatch.setattr(topology, "visible_gpus", lambda: Path("/dev/full").write_text("x"))
    assert cli.main(["plan", "tiny"]) == 1
    assert capsys.readouterr().err == (
        "error: a file cannot be written: No space left on device; make room, or work where files can be written\n"
    )
    assert not (project / ".cache" / "errors").exists()
