"""What a recipe says of a file of rows that was looked at, each key with what was seen."""

import collections
import json
from typing import Any

from sft_recipes.data import preparation, survey
from sft_recipes.recipes import recipe as recipes
from sft_recipes.recipes import task
from sft_recipes.terminal import count

# Classes that a comment names with their rows.
NAMED = 6

Said = dict[str, tuple[Any, str]]
"""By key of a recipe: its value, and what was seen, empty where the key above says it."""


def said(file: str, base: str) -> Said:
    """Of the rows of a file in a recipe that extends another: columns, task, classes and what is held out.

    Raises:
        InputError: The rows are wrong, or too few to hold some of them out.
    """
    # For a classification numbers are answers too; whether it is one is seen below.
    prepared = preparation.prepare(
        train_file=file, validation_file=None, task="classification", cache=preparation.CACHE
    )
    found = survey.survey(prepared, None)
    train = found["splits"]["train"]
    rows = count(train["rows"], "row")
    of_task = _task(prepared, found["class_field"] or None, rows)
    own_task = recipes.load(base)["task"]
    kind = "classification" if of_task else own_task and "generation"
    loaded = recipes.load(base, {"data": file, "task": kind, **{key: value for key, (value, _) in of_task.items()}})
    given = {key: item.value for key, item in loaded.values.items() if item.origin == "DATA"}
    kinds = {"prompt_completion": "a prompt and a completion", "alpaca": "a user turn and the assistant's"}
    lines: Said = {"train_file": (file, f"{rows}, each {kinds.get(prepared.format, 'a conversation')}.")}
    columns = {field: column for field, column in prepared.columns.items() if field != column}
    if columns:
        said_of = (f"{column} is the {field}" for field, column in columns.items())
        lines["data_columns"] = (columns, f"{', '.join(said_of)}.")
    lines |= of_task
    if kind == "generation":
        distinct = train["answers"]["distinct"]
        lines["task"] = (kind, f"{count(distinct, 'different answer')} in {rows} are texts and no classes.")
    sizes = [key for key in given if key.endswith("_split_size")]
    replaced = {key: (value, "") for key, value in given.items() if key not in (*lines, *sizes)}
    if replaced:
        first = next(iter(replaced))
        replaced[first] = (replaced[first][0], f"{base} has rows of its own for this, and yours are one file.")
    lines |= replaced
    for key in ("validation_split_size", "test_split_size"):
        if value := loaded[key]:
            held = {"validation": "to choose a checkpoint", "test": "for the evaluation at the end"}
            lines[key] = (value, f"{100 * value:g} % of the rows, drawn by their content, {held[key.split('_')[0]]}.")
    # What is refused of the shares is refused here, and not when the recipe is first used.
    with_shares = recipes.load(base, {key: value for key, (value, _) in lines.items()})
    preparation.prepare(**preparation.source_of(with_shares), cache=preparation.CACHE)
    return lines


def _task(prepared: preparation.Prepared, field: str | None, rows: str) -> Said:
    """Task and classes; nothing where the answers are no classes."""
    if prepared.kind != "prompt_completion":
        return {}
    answers = []
    with (prepared.directory / "train.jsonl").open(encoding="utf-8", newline="\n") as lines:
        for line in lines:
            answer = json.loads(line)["completion"]
            answers.append(answer if isinstance(answer, str) else answer[-1]["content"])
    classes = collections.Counter(task.written(answer, field, None) for answer in answers)
    if len(classes) > task.MOST_LABELS or len(classes) * survey.ROWS_PER_CLASS > len(answers):
        return {}
    own = dict.fromkeys(task.KEYS) | {"task": "classification", "label_field": field}
    labels = list(task.task_of(own, answers).labels)
    named = ", ".join(f"{label} {number:,}" for label, number in classes.most_common(NAMED))
    more = ", ..." if len(classes) > NAMED else ""
    found: Said = {"task": ("classification", f"{count(len(labels), 'class')} in {rows}: {named}{more}.")}
    if field:
        found["label_field"] = (field, "The field of the JSON answers that tells them apart.")
    return found | {"labels": (labels, "")}
