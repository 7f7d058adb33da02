"""A run again from its directory alone: the same to the bit, or what is not the same."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import alpaca_rows, write_rows
from finished import restate

from sft_recipes.errors import InputError
from sft_recipes.launch import launch, reproduce
from sft_recipes.plan import job as jobs

pytest_plugins = ["finished"]


@pytest.fixture
def trained(finished: Any, launch_here: None) -> Any:
    return finished("tuned")


@pytest.mark.promise("reproducible", "the recipe deleted")
def test_a_run_comes_out_the_same_to_the_bit_without_its_recipe(trained: Any, capsys: pytest.CaptureFixture) -> None:
    Path("recipes/tiny.yaml").unlink()
    code, run = reproduce.reproduce("tuned")
    said = capsys.readouterr().out
    assert (code, run.name) == (launch.FINISHED, "tuned-again")
    assert run.facts()["reproduces"] == {"run": "tuned", "differences": [], "other_files": [], "same": True}
    assert "not the same: nothing known of" in said
    assert "runs/tuned-again/adapter and runs/tuned/adapter are the same to the bit" in said
    weights = "adapter_model.safetensors"
    assert (run.adapter / weights).read_bytes() == (trained.adapter / weights).read_bytes()
    assert run.values()["output_dir"] == "runs/tuned-again"


@pytest.mark.promise("reproducible", "other rows, Python and torch than those of the run")
def test_what_is_not_the_same_is_said_before_and_the_weights_are_compared_after(
    trained: Any, capsys: pytest.CaptureFixture
) -> None:
    write_rows(Path("data/train.jsonl"), alpaca_rows(64, seed=9))
    facts = trained.facts()
    restate(trained, versions={**facts["versions"], "torch": "1.0"}, python="2.7")
    code, run = reproduce.reproduce("tuned", "second")
    found = run.facts()["reproduces"]
    assert (code, run.name, found["same"]) == (launch.FAILED, "second", False)
    assert found["other_files"] == ["adapter_model.safetensors"]
    torch = facts["versions"]["torch"]
    assert [text for text in found["differences"] if not text.startswith("Python 2.7 -> 3.")] == [
        "the data have changed",
        f"torch 1.0 -> {torch}",
    ]
    said = capsys.readouterr().out
    assert said.index("not the same: the data have changed") < said.index("finished ")
    assert "are not the same: 'adapter_model.safetensors'" in said


def test_what_cannot_be_reproduced_is_refused(project: Path) -> None:
    run = launch.create(jobs.check("tiny"), "begun")
    with pytest.raises(
        InputError, match="runs/begun was killed before it had finished; finish it first: make resume NAME=begun"
    ):
        reproduce.reproduce("begun")
    restate(run, rehearsal=True)
    with pytest.raises(InputError, match="is a rehearsal"):
        reproduce.reproduce("begun")
    restate(run, rehearsal=False, status="finished", measured={"step": 1, "saved": {"a": {"bytes": 1, "sha256": ""}}})
    launch.create(jobs.check("tiny"), "begun-again")
    with pytest.raises(InputError, match="runs/begun-again exists and is never overwritten"):
        reproduce.reproduce("begun")
    assert json.loads((run.directory / "run.json").read_text())["status"] == "finished"
