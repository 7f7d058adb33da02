"""What a recipe's answers are: which class an answer names, and what is no task."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from sft_recipes.errors import InputError
from sft_recipes.recipes import schema, task


def own(**values: Any) -> dict[str, Any]:
    return {key: entry["default"] for key, entry in schema.own().items()} | {"task": "classification"} | values


def read(answer: str, **values: Any) -> str | None:
    """The class that a task with the labels yes and no reads from an answer."""
    wrap: Any = {"label_field": '{{"label": "{}"}}', "label_pattern": "Verdict: {}"}
    shape = next((wrap[key] for key in values if key in wrap), "{}")
    return task.task_of(own(**values), [shape.format("yes"), shape.format("no")]).label(answer)


def test_a_class_is_the_whole_answer_and_never_a_part_of_it() -> None:
    assert read("yes") == "yes"
    assert read(" no\n") == "no"
    for answer in ("yes.", "Yes", "yes and no", "the answer is yes", "", "maybe"):
        assert read(answer) is None


def test_a_class_in_a_field_of_json() -> None:
    assert read('{"label": "yes", "why": "no"}', label_field="label") == "yes"
    for answer in ('{"why": "yes"}', '["yes"]', '{"label": "maybe"}', '{"label": "yes"', "yes", '{"label": null}'):
        assert read(answer, label_field="label") is None


def test_a_class_that_is_no_text_is_written_as_json() -> None:
    found = task.task_of(own(label_field="hate"), ['{"hate": true}', '{"hate": false}'])
    assert found.labels == ("false", "true")
    assert found.label('{"hate": true}') == "true"


def test_a_class_by_a_pattern_is_one_class_or_none() -> None:
    pattern = r"Verdict: (\w+)"
    assert read("Well. Verdict: yes", label_pattern=pattern) == "yes"
    assert read("Verdict: yes. Verdict: yes", label_pattern=pattern) == "yes"
    for answer in ("Verdict: yes. Verdict: no", "yes", "Verdict: maybe"):
        assert read(answer, label_pattern=pattern) is None


def test_thought_before_an_answer_is_not_the_answer() -> None:
    assert task.answer_of("<think>\nyes or no\n</think>\n\nno") == "no"
    assert task.answer_of("no <think>yes</think>") == "no <think>yes</think>"


def test_labels_are_those_of_the_training_answers_or_of_the_recipe() -> None:
    assert task.task_of(own(), ["b", "a", "b"]).labels == ("a", "b")
    found = task.task_of(own(labels=["b", "a", "c"]), ["b", "a", "b"])
    assert found.labels == ("b", "a", "c")
    assert found.candidates == {"b": "b", "a": "a", "c": "c"}


def test_likelihood_scores_each_label_by_the_answer_that_training_wrote() -> None:
    assert task.task_of(own(), [" a", " b", " a"]).candidates == {"a": " a", "b": " b"}
    answers = ['{"label": "a"}', '{"label": "b"}']
    found = task.task_of(own(label_field="label"), answers)
    assert found.by == "likelihood"
    assert found.candidates == {"a": answers[0], "b": answers[1]}


def test_labels_with_many_answers_are_generated_and_that_is_said() -> None:
    answers = [json.dumps({"label": label, "why": why}) for label in "ab" for why in ("x", "y")]
    found = task.task_of(own(label_field="label"), answers)
    assert (found.by, found.candidates) == ("generation", {})
    assert "likelihood needs one answer for each label" in found.decisions[0]
    with pytest.raises(InputError, match="set predict_by: generation"):
        task.task_of(own(label_field="label", predict_by="likelihood"), answers)
    assert task.task_of(own(label_field="label", predict_by="generation"), answers).by == "generation"


@pytest.mark.parametrize(
    ("answers", "values", "message"),
    [
        (["a"] * 5, {}, "all 5 training answers are the class 'a'"),
        ([f"text {number}" for number in range(200)] * 2, {}, "more than 100 different classes"),
        ([f"text {number}" for number in range(9)], {}, "are texts and no classes: 9 of 9 are different, such as"),
        ([f"text {number}" for number in range(200)], {}, "set task: generation, or null to evaluate nothing"),
        (
            ["yes", "no", "Yes"],
            {"labels": ["yes", "no"]},
            "1 training answers are none of the labels, such as 'Yes' ('yes' but for case, spaces or Unicode form)",
        ),
        (
            ["yes", "no", "Yes", "no", "y es", "caf\u00e9", "cafe\u0301"],
            {},
            "the classes 'yes' (1 row), 'Yes' (1 row), 'y es' (1 row) differ in case, spaces or Unicode form alone; "
            "write them alike, or list labels, which says that each is a class\n"
            r"the classes 'caf\xe9' (1 row), 'cafe\u0301' (1 row) differ",
        ),
        (
            ['["joy", "anger"]', '["joy"]', "joy"],
            {},
            'task: classification finds no one class in 2 of 3 training answers, such as the string \'["joy", '
            '"anger"]\'; write one in each row, or set task: generation',
        ),
        (
            ['{"label": ["joy", "anger"]}', '{"label": "joy"}'],
            {"label_field": "label"},
            "label_field label finds no one class in 1 of 2 training answers",
        ),
        (['{"label": "a"}', "b"], {"label_field": "label"}, "finds no one class in 1 of 2 training answers"),
        (["Verdict: a", "b"], {"label_pattern": "Verdict: (a|b)"}, "finds no one class in 1 of 2 training answers"),
    ],
)
def test_answers_that_are_no_classes_are_refused(answers: list[str], values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        task.task_of(own(**values), answers)


def test_labels_that_are_listed_are_classes_however_alike() -> None:
    assert task.task_of(own(labels=["US", "us"]), ["US", "us"]).labels == ("US", "us")


def test_labels_that_are_numbers_are_written_as_in_rows() -> None:
    found = task.task_of(own(labels=[0, 1, 2.5, True]), ["1", "0", "true"])
    assert found.labels == ("0", "1", "2.5", "true")
    assert task.problems(own(labels=[0, 1])) == []
    assert schema.problem("labels", [0, 1, 2]) is None
    assert (
        schema.problem("labels", [[0], 1]) == "labels: expected a list of texts, numbers, true or false, got [[0], 1]"
    )


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"task": None, "labels": ["a", "b"]}, "labels"),
        ({"task": None, "group_column": "group"}, "group_column"),
        ({"task": "generation", "label_field": "label"}, "label_field"),
        ({"task": "generation", "predict_by": "likelihood"}, "predict_by"),
        ({"json_schema": "schema.json"}, "json_schema"),
        ({"label_field": "label", "label_pattern": "(a)"}, "label_pattern"),
        ({"label_pattern": "(a"}, "label_pattern"),
        ({"label_pattern": "a"}, "label_pattern"),
        ({"label_pattern": "(a)(b)"}, "label_pattern"),
        ({"labels": ["a"]}, "labels"),
        ({"labels": ["a", "b", "a"]}, "labels"),
        ({"task": "generation", "json_schema": "missing.json"}, "json_schema"),
    ],
)
def test_keys_that_do_not_fit_together_are_named(values: dict[str, Any], key: str) -> None:
    assert key in [named for named, _ in task.problems(own(**values))]


def test_a_schema_is_checked_before_it_is_used(tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    keys = own(task="generation", json_schema=str(path))
    path.write_text('{"type": "objekt"}')
    assert "the JSON schema is not valid at $.type" in task.problems(keys)[0][1]
    path.write_text('{"type": "object"}')
    assert task.problems(keys) == []
    assert task.task_of(keys, []).schema == {"type": "object"}
