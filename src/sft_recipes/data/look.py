"""What a recipe says of a file of rows that was looked at, each key with what was seen."""

import collections
import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from sft_recipes.data import preparation, survey
from sft_recipes.recipes import recipe as recipes
from sft_recipes.recipes import task
from sft_recipes.terminal import count

# Classes that a comment names with their rows.
NAMED = 6
# The share of answers in JSON from which the rows are for extracting.
MOSTLY = 0.9

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
    seen = classes(prepared, found)
    of_task = _task(seen, rows) if seen else {}
    own_task = "classification" if seen else recipes.load(base)["task"] and "generation"
    loaded = recipes.load(
        base, {"data": file, "task": own_task, **{key: value for key, (value, _) in of_task.items()}}
    )
    given = {key: item.value for key, item in loaded.values.items() if item.origin == "DATA"}
    kinds = {"prompt_completion": "a prompt and a completion", "alpaca": "a user turn and the assistant's"}
    lines: Said = {"train_file": (file, f"{rows}, each {kinds.get(prepared.format, 'a conversation')}.")}
    columns = {field: column for field, column in prepared.columns.items() if field != column}
    if columns:
        said_of = (f"{column} is the {field}" for field, column in columns.items())
        lines["data_columns"] = (columns, f"{', '.join(said_of)}.")
    lines |= of_task
    if own_task == "generation":
        distinct = train["answers"]["distinct"]
        lines["task"] = (own_task, f"{count(distinct, 'different answer')} in {rows} are texts and no classes.")
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


@dataclasses.dataclass(frozen=True)
class Classes:
    """The classes that the answers of rows are."""

    field: str | None  # the field of the JSON answers that is the class; None where the whole answer is
    rows: Mapping[str, int]  # how many rows each has, most frequent first


def kind(prepared: preparation.Prepared, found: survey.Survey) -> str:
    """What the training rows are for: conversation, classification, extraction (into JSON) or text."""
    if prepared.kind != "prompt_completion":
        return "conversation" if prepared.kind == "messages" else "text"
    if classes(prepared, found):
        return "classification"
    train = found["splits"]["train"]
    return "extraction" if train["json"]["looks"] >= MOSTLY * train["rows"] else "text"


def classes(prepared: preparation.Prepared, found: survey.Survey) -> Classes | None:
    """The classes of the training rows; None where the answers are none.

    One of several fields of a JSON answer is its class if it is called so; otherwise the others are what is asked.
    """
    field, train = found["class_field"] or None, found["splits"]["train"]
    if prepared.kind != "prompt_completion":
        return None
    if field and not survey.CLASS_NAME.search(field) and any(len(e["fields"]) > 1 for e in train["classes"].values()):
        return None
    rows = collections.Counter[str]()
    with (prepared.directory / "train.jsonl").open(encoding="utf-8", newline="\n") as lines:
        for line in lines:
            answer = json.loads(line)["completion"]
            text = answer if isinstance(answer, str) else answer[-1]["content"]
            if written := task.written(text, field, None):
                rows[written] += 1
            if len(rows) > task.MOST_LABELS:
                return None
    if len(rows) < 2 or len(rows) * survey.ROWS_PER_CLASS > train["rows"]:
        return None
    return Classes(field, dict(rows.most_common()))


def _task(found: Classes, rows: str) -> Said:
    """Task and classes, which are not listed where some are spelled alike: plan says so then, until they are."""
    named = ", ".join(f"{label} {number:,}" for label, number in [*found.rows.items()][:NAMED])
    more = ", ..." if len(found.rows) > NAMED else ""
    lines: Said = {"task": ("classification", f"{count(len(found.rows), 'class')} in {rows}: {named}{more}.")}
    if found.field:
        lines["label_field"] = (found.field, "The field of the JSON answers that tells them apart.")
    return lines if task.alike(found.rows) else lines | {"labels": (sorted(found.rows), "")}
