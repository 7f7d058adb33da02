"""The evaluation of a run: which rows are asked, what is refused, and what is written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import MadeOnce, alpaca_rows, write_rows
from finished import restate

from sft_recipes import cli
from sft_recipes.data import preparation
from sft_recipes.errors import InputError
from sft_recipes.evaluate import evaluate, questions
from sft_recipes.plan import job as jobs
from sft_recipes.recipes import recipe as recipes
from sft_recipes.recipes import task
from sft_recipes.runs.run import Run


def rows_to_ask() -> list[dict[str, str]]:
    """Rows that are no training rows, in groups by their length."""
    known = {row["input"] for row in alpaca_rows(64, seed=1)}
    rows = [row for row in alpaca_rows(40, seed=3) if row["input"] not in known][:24]
    return [{**row, "length": str(len(row["input"].split()) // 5)} for row in rows]


@pytest.fixture
def with_task(project: Path) -> Path:
    """The project with a recipe that names a task, and test rows in groups."""
    path = project / "recipes" / "tiny.yaml"
    keys = "task: classification\ntest_file: data/test.jsonl\ngroup_column: length\n"
    path.write_text(path.read_text(encoding="utf-8") + keys, encoding="utf-8")
    write_rows(project / "data" / "test.jsonl", rows_to_ask())
    return project


@pytest.fixture
def one(with_task: Path, train_here: Callable[..., Run], made_once: MadeOnce) -> Run:
    """A finished run of that name."""
    run = Run(Path("runs/one"))
    shutil.copytree(made_once("evaluated", lambda kept: train_here(name="one").directory.rename(kept)), run.directory)
    return run


def checked(*overrides: str) -> questions.Asked:
    job = jobs.check("tiny", overrides=overrides)
    asked = questions.check(job.recipe, job.prepared)
    assert asked is not None
    return asked


def problems(*overrides: str) -> list[str]:
    with pytest.raises(InputError) as raised:
        jobs.check("tiny", overrides=overrides)
    return raised.value.problems


def test_every_test_row_is_asked_with_its_class_and_group(with_task: Path) -> None:
    asked = checked()
    assert [(question.reference, question.group) for question in asked.questions] == [
        (row["output"], row["length"]) for row in rows_to_ask()
    ]
    assert asked.task.labels == ("even", "odd")
    assert asked.task.candidates == {"even": "even", "odd": "odd"}
    assert len(asked.training()) == 64
    assert asked.training()[0] == (f"Count the word red.\n\n{alpaca_rows(1, seed=1)[0]['input']}", "even")


def test_without_test_rows_those_of_the_validation_are_asked(with_task: Path) -> None:
    asked = checked("test_file=null group_column=null")
    assert (asked.split, len(asked.questions)) == ("validation", 8)


def test_a_leaked_row_is_known_by_its_prompt_whatever_its_case_and_spacing(with_task: Path) -> None:
    rows = rows_to_ask()
    known = alpaca_rows(1, seed=1)[0]
    rows[3] |= {"input": f"  {known['input'].upper()}!", "output": "odd"}
    write_rows(with_task / "data" / "test.jsonl", rows)
    assert [question.row for question in checked().questions if question.leaked] == [4]


def test_labels_of_test_rows_are_checked_before_training_costs_anything(with_task: Path) -> None:
    rows = rows_to_ask()
    rows[1]["output"], rows[5]["output"] = "Even", "three"
    write_rows(with_task / "data" / "test.jsonl", rows)
    first, second = problems()
    assert first.startswith(
        "data/test.jsonl, row 2: the answer the string 'Even' is none of the 2 classes ('even' but for case, spaces or"
    )
    assert second.startswith("data/test.jsonl, row 6: the answer the string 'three' is none of the 2 classes; correct")


def test_a_column_of_ids_is_no_group(with_task: Path) -> None:
    write_rows(
        with_task / "data" / "test.jsonl",
        [{**row, "length": str(number)} for number, row in enumerate(alpaca_rows(60, seed=3))],
    )
    assert "group_column length has 60 values" in problems()[0]


def test_other_rows_need_no_groups_of_the_recipes_own(with_task: Path, capsys: pytest.CaptureFixture) -> None:
    of_run = {"group_column": "length", "test_file": "data/test.jsonl"}
    other = of_run | {"test_file": "data/validation.jsonl"}
    assert evaluate._groups_of(other, {"own": of_run}) == other | {"group_column": None}
    assert "none: data/validation.jsonl has no length, by which the recipe divides" in capsys.readouterr().out
    Path("data/more.jsonl").write_text(Path("data/test.jsonl").read_text())
    # What the rows have, what is the recipe's own, and what was asked for stay.
    for asked in (other | {"test_file": "data/more.jsonl"}, of_run, other | {"group_column": "tone"}):
        assert evaluate._groups_of(asked, {"own": of_run}) == asked


def test_of_several_answers_the_last_is_asked(with_task: Path) -> None:
    def turns(row: dict[str, str]) -> dict[str, Any]:
        said = [("user", "Hello"), ("assistant", "Hello."), ("user", row["input"]), ("assistant", row["output"])]
        return {"messages": [{"role": role, "content": text} for role, text in said]}

    for name, number in (("train", 20), ("validation", 8), ("test", 8)):
        write_rows(with_task / "data" / f"{name}.jsonl", [turns(row) for row in alpaca_rows(number, seed=number)])
    question = checked("group_column=null").questions[0]
    row = alpaca_rows(1, seed=8)[0]
    assert (question.text, question.reference) == (row["input"], row["output"])
    assert [turn["role"] for turn in question.prompt] == ["user", "assistant", "user"]


def test_a_run_is_evaluated_with_its_base_and_never_twice(
    one: Run, scoring_here: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run = one
    with scoring_here():
        code, path = evaluate.evaluate("one")
    assert (code, path) == (0, run.metrics("test"))
    first = json.loads(run.metrics("test").read_text())
    assert list(first["models"]) == ["tuned"]
    tuned = [json.loads(line)["tuned"] for line in run.predictions("test").read_text().splitlines()]

    took = first["measured"]
    assert took["process_seconds"] > took["load_seconds"] + took["models"]["tuned"]["seconds"] > 0
    assert [*evaluate.speeds({**took, "load_seconds": 0.427, "process_seconds": 71})][1:] == [
        "loaded in 0.43 s",
        "1 min 11 s in all",
    ]

    with scoring_here():
        assert cli.main(["evaluate", "one", "--base"]) == 0
    metrics = json.loads(run.metrics("test").read_text())
    lines = [json.loads(line) for line in run.predictions("test").read_text().splitlines()]
    assert [line["tuned"] for line in lines] == tuned
    assert metrics["models"]["tuned"] == first["models"]["tuned"]
    assert metrics["measured"]["models"]["tuned"] == first["measured"]["models"]["tuned"]
    assert sorted(metrics["measured"]["models"]) == ["base", "tuned"]
    assert sorted(metrics["models"]) == ["base", "tuned"]
    assert metrics["rows"] == metrics["scored"] == 24
    assert [line["gold"] for line in lines] == [row["output"] for row in rows_to_ask()]
    for line in lines:
        for model in ("base", "tuned"):
            probabilities = line[model]["probabilities"]
            assert sum(probabilities.values()) == pytest.approx(1, abs=1e-5)
            assert line[model]["prediction"] == max(probabilities, key=probabilities.get)
    right = sum(line["tuned"]["prediction"] == line["gold"] for line in lines)
    assert metrics["models"]["tuned"]["accuracy"]["value"] == pytest.approx(right / 24)
    # Twenty-four rows tell nothing, and that is what is said.
    assert metrics["verdict"]["outcome"] == "none"
    assert run.report.is_file()

    written = (run.directory / ".evaluation-test" / "outputs.jsonl").read_bytes()
    capsys.readouterr()
    with scoring_here():
        assert evaluate.evaluate("one")[0] == 0
    assert (run.directory / ".evaluation-test" / "outputs.jsonl").read_bytes() == written
    again = json.loads(run.metrics("test").read_text())
    assert sorted(again["models"]) == ["base", "tuned"] and again["measured"] == metrics["measured"]
    assert "verdict" in capsys.readouterr().out


def test_an_adapter_that_is_not_the_one_trained_is_refused(one: Run, train_here: Callable[..., Run]) -> None:
    other = train_here(name="other", seed=7)
    weights = one.adapter / "adapter_model.safetensors"
    kept = weights.read_bytes()
    shutil.copy(other.adapter / "adapter_model.safetensors", weights)
    with pytest.raises(InputError, match="train the run again"):
        evaluate.evaluate("one")
    weights.write_bytes(kept[:-1])
    with pytest.raises(InputError, match="train the run again"):
        evaluate.evaluate("one")


def test_what_cannot_be_evaluated_is_refused(with_task: Path, one: Run) -> None:
    run = one
    for overrides, message in (
        (["learning_rate=1"], "learning_rate: a finished run cannot be changed"),
        (["task=null group_column=null"], "names no task"),
        (["task=sorting"], "task: sorting is not one of"),
        (["task=generation predict_by=likelihood"], "likelihood chooses among labels"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate.evaluate("one", overrides=overrides)
    with pytest.raises(InputError, match="no run 'two'"):
        evaluate.evaluate("two")
    train = with_task / "data" / "train.jsonl"
    write_rows(train, alpaca_rows(64, seed=9))
    with pytest.raises(InputError, match=r"train\.jsonl has changed since"):
        evaluate.evaluate("one")
    run.update(rehearsal=True)
    with pytest.raises(InputError, match="is a rehearsal"):
        evaluate.evaluate("one")
    restate(run, rehearsal=False, status="interrupted")
    with pytest.raises(InputError, match="make resume NAME=one"):
        evaluate.evaluate("one")


def test_the_fingerprint_is_of_the_rows_and_of_how_they_are_asked(
    with_task: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipes.load("tiny")
    prepared = preparation.prepare(**preparation.source_of(recipe), cache=preparation.CACHE)
    found = questions.check(recipe, prepared)
    assert found is not None
    # The rows are read once.
    with monkeypatch.context() as unread:
        unread.setattr(questions, "_rows", lambda *_: pytest.fail("the rows are read again"))
        assert questions.check(recipe, prepared) == found
    (kept,) = (prepared.directory / ".asked").iterdir()
    kept.write_text(kept.read_text(encoding="utf-8")[:-20], encoding="utf-8")
    assert questions.check(recipe, prepared) == found
    other = recipes.load("tiny", {"labels": [*reversed(found.task.labels)]})
    assert questions.check(other, prepared).task.labels == found.task.labels[::-1]  # type: ignore[union-attr]
    ids = {question.id for question in checked().questions}
    assert len(ids) == len({row["input"] for row in rows_to_ask()})


def test_generated_answers_are_checked_against_a_schema_and_thought_is_not_the_answer(
    with_task: Path, one: Run, scoring_here: Any
) -> None:
    (with_task / "answer.json").write_text('{"type": "object", "required": ["label"]}')
    keys = "task=generation json_schema=answer.json group_column=null max_new_tokens=4"
    with scoring_here():
        code, path = evaluate.evaluate("one", base=True, overrides=[keys])
    assert code == 0 and path is not None
    metrics = json.loads(path.read_text())
    assert (metrics["primary"], metrics["predict_by"], metrics["labels"]) == ("valid_json", "generation", None)
    lines = [json.loads(line) for line in Run(path.parent).predictions("test").read_text().splitlines()]
    exact = [line["tuned"]["prediction"] == line["reference"] for line in lines]
    assert metrics["models"]["tuned"]["exact_match"]["value"] == pytest.approx(sum(exact) / len(exact))
    # No answer of this data is JSON.
    assert metrics["models"]["tuned"]["valid_json"]["value"] == 0
    found = task.task_of({**dict.fromkeys(task.KEYS), "task": "generation"}, [])
    said = evaluate.said(found, {"text": "<think>hm</think>\n\n odd", "finished": True})
    assert (said["prediction"], said["text"]) == ("odd", "<think>hm</think>\n\n odd")


def test_what_was_cut_off_is_gone_on_with_by_the_command_that_is_said(
    one: Run, scoring_here: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run = one
    (run.directory / "adapter" / "tokenizer.json").rename(run.directory / "kept")
    facts = run.facts()
    del facts["measured"]["saved"]["tokenizer.json"]
    run.write(facts)
    overrides = ["predict_by=generation max_new_tokens=4"]
    # Wrong input found by the scoring process is a message, and none of its files is taken for a result.
    with scoring_here(), pytest.raises(InputError, match="tokenizer"):
        evaluate.evaluate("one", overrides=overrides)
    assert not run.metrics("test").exists()
    with pytest.MonkeyPatch.context() as context:
        context.setattr(evaluate.scoring_job, "score", lambda *arguments: 3)
        assert evaluate.evaluate("one", split="test", base=True, overrides=overrides) == (3, None)
    said = "make evaluate RUN=one BASE=1 SPLIT=test SET='predict_by=generation max_new_tokens=4'"
    assert said in capsys.readouterr().out
