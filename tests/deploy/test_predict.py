"""Predictions for rows of every format, in their order, whole or to be gone on with."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import alpaca_rows, write_rows
from finished import FLOAT32

from sft_recipes.data import preparation
from sft_recipes.deploy import predict
from sft_recipes.errors import InputError
from sft_recipes.evaluate import scoring_job
from sft_recipes.launch import launch
from sft_recipes.plan import job as jobs
from sft_recipes.recipes.task import task_of
from sft_recipes.runs.run import Run

pytest_plugins = ["finished"]

Finished = Callable[..., Run]
TURNS = [{"role": "user", "content": "red cat"}, {"role": "assistant", "content": "odd"}]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def predict_here(scoring_here: Any) -> Callable[..., list[dict[str, Any]]]:
    """Predict without a process of its own, and give what was predicted."""

    def predict_here(*arguments: Any) -> list[dict[str, Any]]:
        with scoring_here():
            code, out = predict.predict(*arguments)
        assert code == 0
        return read(out)

    return predict_here


def test_rows_keep_their_order_and_columns_and_get_a_class_with_probabilities(
    finished: Finished, project: Path, scoring_here: Any
) -> None:
    """With rows that have no answers."""
    finished(**FLOAT32)
    rows = [{"id": f"é{n}", **row} for n, row in enumerate(alpaca_rows(12, seed=5))]
    for row in rows:
        row.pop("output")
    write_rows(project / "new.jsonl", rows)
    with scoring_here():
        code, out = predict.predict("tuned", Path("new.jsonl"))
    assert (code, out) == (0, Path("new.predictions.jsonl"))
    predicted = read(out)
    assert [{key: row[key] for key in ("id", "instruction", "input")} for row in predicted] == rows
    for row in predicted:
        assert row.keys() - {"id", "instruction", "input"} == {"prediction", "probabilities"}
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-4)
        assert row["prediction"] == max(row["probabilities"], key=row["probabilities"].__getitem__)
    assert {row["prediction"] for row in predicted} <= {"even", "odd"}
    assert not list(project.glob(".new*"))
    with pytest.raises(InputError, match=r"new.predictions.jsonl exists and is never overwritten"):
        predict.predict("tuned", Path("new.jsonl"))


def test_rows_are_asked_by_the_columns_that_training_recognised(project: Path) -> None:
    lines = (f"row {number},{('even', 'odd')[number % 2]}\n" for number in range(60))
    (project / "mine.csv").write_text("text,label\n" + "".join(lines))
    (project / "new.csv").write_text("question,text\nwhat,is asked\n")
    job = jobs.check("tiny", overrides={"data": "mine.csv"})
    run = launch.create(job, "of_csv")
    ((row, asked),) = predict.rows_to_answer(Path("new.csv"), run.facts(), Path("out.jsonl"))
    assert asked == [{"role": "user", "content": "is asked"}] and row["question"] == "what"
    by_generation = task_of(
        run.facts()["own"] | {"task": "classification", "predict_by": "generation"}, ["odd", "even"]
    )
    answered = predict.answer(row, by_generation, {"row": 1, "text": "neither", "finished": True})
    assert answered == row | {"prediction": None, "prediction_text": "neither", "finished": True}
    (project / "other.csv").write_text("sentence\nis asked\n")
    with pytest.raises(
        InputError, match="'text' is missing, the row has 'sentence': name the columns as those of the"
    ):
        predict.rows_to_answer(Path("other.csv"), run.facts(), Path("out.jsonl"))


def test_without_a_task_the_prediction_is_a_text(finished: Finished, project: Path, predict_here: Any) -> None:
    finished("texts", **FLOAT32 | {"task": "generation", "max_new_tokens": 12})
    (project / "new.csv").write_text('instruction,input,n\nCount the word red.,"red, cat",1\nCount.,,2\n')
    predicted = predict_here("texts", Path("new.csv"), Path("out.jsonl"))
    assert [row["n"] for row in predicted] == ["1", "2"]
    assert all(isinstance(row["prediction"], str) and isinstance(row["finished"], bool) for row in predicted)
    assert predicted[0].keys() == {"instruction", "input", "n", "prediction", "finished"}


def test_an_interrupted_prediction_is_gone_on_with_and_another_is_not(
    finished: Finished, project: Path, predict_here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished(**FLOAT32)
    write_rows(project / "new.jsonl", alpaca_rows(6, seed=5))
    whole = predict_here("tuned", Path("new.jsonl"), Path("whole.jsonl"))

    class Killed:
        """Leaves what a kill between two rows leaves: a row that says what no model did, and half of another."""

        def __init__(self, command: list[str], **options: Any) -> None:
            line = json.dumps({"row": 1, "model": "tuned", "log_likelihoods": {"even": -1.0, "odd": -1.0}})
            (Path(command[-1]) / "outputs.jsonl").write_text(f"{line}\n{line[:20]}")

        def wait(self) -> int:
            return -9

    def kill() -> None:
        with monkeypatch.context() as context:
            context.setattr(scoring_job.subprocess, "Popen", Killed)
            assert predict.predict("tuned", Path("new.jsonl"), Path("parts.jsonl")) == (1, Path("parts.jsonl"))

    kill()
    assert not Path("parts.jsonl").exists()
    parts = predict_here("tuned", Path("new.jsonl"), Path("parts.jsonl"))
    assert parts[0]["probabilities"] == {"even": 0.5, "odd": 0.5}
    assert parts[1:] == whole[1:]
    Path("parts.jsonl").unlink()
    kill()
    write_rows(project / "new.jsonl", alpaca_rows(5, seed=6))
    assert predict_here("tuned", Path("new.jsonl"), Path("parts.jsonl"))[0]["probabilities"]["even"] != 0.5


def test_all_wrong_rows_are_named_at_once_and_nothing_is_written(finished: Finished, project: Path) -> None:
    run = finished(**FLOAT32)
    rows: list[dict[str, Any]] = [{"instruction": "a", "input": "b"}, {"instruction": 3}, {"input": "b"}]
    write_rows(project / "new.jsonl", rows)
    (project / "new.jsonl").write_text((project / "new.jsonl").read_text() + "{not json}\n")
    with pytest.raises(InputError) as refused:
        predict.predict("tuned", Path("new.jsonl"))
    problems = refused.value.problems
    assert [problem.split(": ")[0] for problem in problems] == ["new.jsonl:2", "new.jsonl:3", "new.jsonl:4"]
    assert "instruction holds the number 3; write a string" in problems[0]
    write_rows(project / "new.jsonl", [{"instruction": "a", "prediction": "b"}])
    with pytest.raises(InputError, match="the column prediction would be overwritten"):
        predict.predict("tuned", Path("new.jsonl"))
    with pytest.raises(InputError, match="nowhere is no directory"):
        predict.predict("tuned", Path("new.jsonl"), Path("nowhere/out.jsonl"))
    os.truncate(run.adapter / "adapter_model.safetensors", 100)
    with pytest.raises(InputError, match=r"is not what was trained: adapter_model\.safetensors has 100 bytes instead"):
        predict.predict("tuned", Path("new.jsonl"))
    assert sorted(path.name for path in project.glob("*new*")) == ["new.jsonl"]


ASKED = [{"role": "user", "content": "red cat"}]
FORMATS: dict[str, tuple[str, bool, dict[str, Any], Any]] = {
    "alpaca": ("alpaca", True, {"instruction": "red", "input": "cat"}, [{"role": "user", "content": "red\n\ncat"}]),
    "messages": ("messages", True, {"messages": TURNS[:1]}, ASKED),
    "messages answered": ("messages", True, {"messages": TURNS}, ASKED),
    "several turns": ("messages", True, {"messages": [*TURNS, *TURNS[:1]]}, [*TURNS, *ASKED]),
    "sharegpt": ("sharegpt", True, {"conversations": [{"from": "human", "value": "red cat"}]}, ASKED),
    "plain": ("prompt_completion", False, {"prompt": "red cat is"}, "red cat is"),
    "plain, answer null": ("prompt_completion", False, {"prompt": "red cat is", "completion": None}, "red cat is"),
    "turns": ("prompt_completion", True, {"prompt": ASKED}, ASKED),
    "marked": ("messages", True, {"messages": [TURNS[0], TURNS[1] | {"weight": 0}]}, ASKED),
    "dolly": ("alpaca", True, {"instruction": "red cat", "context": ""}, ASKED),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_row_of_every_format_needs_no_answer(tmp_path: Path, name: str) -> None:
    data_format, conversational, row, asked = FORMATS[name]
    write_rows(tmp_path / "rows.jsonl", [row])
    found = preparation.prompts(str(tmp_path / "rows.jsonl"), data_format, None, conversational=conversational)
    assert found == [(row, asked)]


@pytest.mark.parametrize(
    ("data_format", "conversational", "row", "problem"),
    [
        ("prompt_completion", False, {"prompt": ASKED}, "prompt holds a list of 1; write a string, as in every row"),
        ("prompt_completion", True, {"prompt": "red"}, "prompt holds the string 'red'; write a list of messages"),
        ("messages", True, {"messages": []}, "messages holds an empty list"),
        ("messages", True, {"messages": [{"role": "system", "content": "count"}]}, "is an answer to nothing"),
        ("messages", True, {"messages": [*ASKED, *ASKED]}, "is a second user turn in a row"),
        ("alpaca", True, {"instruction": " "}, "instruction is blank"),
        (
            "alpaca",
            True,
            {"text": "red"},
            "'instruction' is missing, the row has 'text': name the columns as those of the training rows",
        ),
        (
            "prompt_completion",
            True,
            {"promt": ASKED},
            r"'prompt' is missing \(nearest: 'promt'\), the row has 'promt': name",
        ),
    ],
)
def test_a_row_that_asks_nothing_is_refused(
    tmp_path: Path, data_format: str, conversational: bool, row: dict[str, Any], problem: str
) -> None:
    write_rows(tmp_path / "rows.jsonl", [row])
    with pytest.raises(InputError, match=problem):
        preparation.prompts(str(tmp_path / "rows.jsonl"), data_format, None, conversational=conversational)


def test_columns_of_other_names_are_read_as_in_training(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"text": "red cat"}])
    columns = {"instruction": "text", "output": "label"}
    found = preparation.prompts(str(tmp_path / "rows.jsonl"), "alpaca", columns, conversational=True)
    assert found == [({"text": "red cat"}, ASKED)]
