"""What an evaluation asks: the rows of a split as questions, with their classes, and which of them were trained on."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any

from sft_recipes.data import preparation
from sft_recipes.data.preparation import Prepared
from sft_recipes.data.readers import Problems
from sft_recipes.data.survey import normalised
from sft_recipes.errors import InputError, shown
from sft_recipes.recipes import task
from sft_recipes.recipes.recipe import Recipe
from sft_recipes.recipes.task import Task

# More groups than these are no groups; each is a row of a table and a bar of a figure.
MOST_GROUPS = 50


# How many of the longest training answers say how long an answer can be.
LONGEST = 20


@dataclass(frozen=True)
class Question:
    """A row to be evaluated."""

    row: int
    """Its number in the prepared split, from 1."""
    prompt: str | list[dict[str, str]]
    """As the model is asked: text, or the turns before the answer."""
    text: str
    """What a person would read of it: the last turn."""
    reference: str
    """The answer of the row."""
    group: str | None
    leaked: bool
    """Whether a training row has the same prompt, case, punctuation and spacing aside."""

    @property
    def id(self) -> str:
        """The first 16 hexadecimal digits of the SHA-256 of the prompt, as canonical JSON."""
        text = json.dumps(self.prompt, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Asked:
    """A task with its questions."""

    task: Task
    split: str
    questions: list[Question]
    longest_answers: list[str]
    """Of the training rows."""
    grouped_by: str | None
    """The column that the rows are grouped by, "source" where their sources are, None for no groups."""
    prepared: Prepared

    def training(self) -> list[tuple[str, str]]:
        """Each training row as (last turn, class or answer), for what a trivial model would say."""
        return [(text, self.task.label(answer) or answer) for _, text, answer in _rows(self.prepared, "train")]


def check(recipe: Recipe, prepared: Prepared) -> Asked | None:
    """What will be asked when the recipe is trained, so that nothing about it is wrong only afterwards.

    Raises:
        InputError: The task cannot be evaluated on these rows.
    """
    own = recipe.own()
    if own["task"] is None:
        return None
    return ask(own, prepared, default_split(prepared, own["task"]))


def default_split(prepared: Prepared, kind: str) -> str:
    """The test rows, or the validation rows where there are none.

    Raises:
        InputError: There are neither.
    """
    for split in ("test", "validation"):
        if split in prepared.splits:
            return split
    raise InputError(
        f"task: {kind}, and there are no rows to evaluate it on; set test_file, or hold some out by validation_file "
        "or validation_split_size"
    )


def ask(own: Mapping[str, Any], prepared: Prepared, split: str) -> Asked:
    """The task with the rows of a split.

    Raises:
        InputError: The training answers are no classes, or rows of the split have none of them.
    """
    found = task.task_of(own, (answer for _, _, answer in _rows(prepared, "train")))
    groups = preparation.groups(prepared, split)
    asked = list(_rows(prepared, split))
    hashes = [_hash(prompt) for prompt, _, _ in asked]
    leaked, longest = _trained_on(prepared, set(hashes))
    questions = [
        Question(number, prompt, text, answer, group, hashed in leaked)
        for number, ((prompt, text, answer), group, hashed) in enumerate(zip(asked, groups, hashes, strict=True), 1)
    ]
    _check_labels(found, questions, prepared.splits[split]["source"])
    if len(names := {group for group in groups if group is not None}) > MOST_GROUPS:
        raise InputError(
            f"group_column {own['group_column']} has {len(names):,} values in {prepared.splits[split]['source']}, "
            f"such as {shown(min(names))}; name a column of at most {MOST_GROUPS} groups"
        )
    by_source = len(prepared.splits[split].get("sources", [])) > 1
    grouped_by = own["group_column"] or ("source" if by_source else None)
    return Asked(found, split, questions, longest, grouped_by, prepared)


def _trained_on(prepared: Prepared, asked: Set[int]) -> tuple[set[int], list[str]]:
    """Which of the prompts that are asked, by their hashes, are those of training rows, and the longest answers."""
    leaked: set[int] = set()
    longest: set[str] = set()
    for prompt, _, answer in _rows(prepared, "train"):
        if (hashed := _hash(prompt)) in asked:
            leaked.add(hashed)
        longest.add(answer)
        if len(longest) > 50 * LONGEST:
            longest = {*_longest(longest)}
    return leaked, _longest(longest)


def _longest(answers: Iterable[str]) -> list[str]:
    return sorted(answers, key=lambda answer: (-len(answer), answer))[:LONGEST]


def _rows(prepared: Prepared, split: str) -> Iterator[tuple[Any, str, str]]:
    """The rows of a split as (prompt, last turn of it, answer); of several answers the last."""
    with (prepared.directory / f"{split}.jsonl").open(encoding="utf-8", newline="\n") as lines:
        for line in lines:
            row = json.loads(line)
            if isinstance(row.get("prompt"), str):
                yield row["prompt"], row["prompt"], row["completion"]
                continue
            turns = row["messages"] if "messages" in row else row["prompt"] + row["completion"]
            yield turns[:-1], turns[-2]["content"], turns[-1]["content"]


def _texts(prompt: Any) -> list[str]:
    return [prompt] if isinstance(prompt, str) else [turn["content"] for turn in prompt]


def _hash(prompt: Any) -> int:
    return hash(normalised(*_texts(prompt)))


def _check_labels(found: Task, questions: Iterable[Question], source: str) -> None:
    """Raise an `InputError` that names every row whose answer is none of the classes."""
    if found.kind != "classification":
        return
    problems = Problems()
    for question in questions:
        if found.label(question.reference) is None:
            held = task.written(question.reference, found.field, found.pattern)
            near = task.meant(held, found.labels) if held else ""
            problems.add(
                f"{source}, row {question.row}",
                f"the answer {shown(question.reference)} is none of the {len(found.labels)} classes{near}; correct "
                "it, or list the labels in the recipe",
            )
    problems.stop()
