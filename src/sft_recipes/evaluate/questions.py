"""What an evaluation asks: the rows of a split as questions, with their classes, and which of them were trained on."""

import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sft_recipes.data import preparation, templates, tokens
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
# Rows that are compared with the prompts that are asked at once.
_BLOCK = 4096


@dataclass(frozen=True)
class Question:
    """A row to be evaluated."""

    row: int
    """Its number in the prepared split, from 1."""
    prompt: str | templates.Prompt
    """As the model is asked: text, or the turns before the answer."""
    text: str
    """What a person would read of it: the last turn."""
    reference: str
    """The answer of the row without its reasoning; where it is a call, `task.calls_text` of it."""
    call: bool
    """Whether the answer is a call of a tool."""
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
    rows: int
    leaked: int
    """Rows whose prompt is that of a training row, case, punctuation and spacing aside."""
    groups: list[str]
    longest_answers: list[str]
    """Of the training rows."""
    grouped_by: str | None
    """The column that the rows are grouped by, "source" where their sources are, None for no groups."""
    prepared: Prepared
    prompts_leaked: Set[int]
    """By their hashes."""

    @functools.cached_property
    def questions(self) -> list[Question]:
        """The rows, which are in memory from the first time on that somebody asks for them."""
        groups = preparation.groups(self.prepared, self.split)
        return [
            Question(
                number, row.prompt, row.text, row.answer, row.call, group, _hash(row.prompt) in self.prompts_leaked
            )
            for number, (row, group) in enumerate(zip(_rows(self.prepared, self.split), groups, strict=True), 1)
        ]

    def training(self) -> list[tuple[str, str]]:
        """Each training row as (last turn, class or answer), for what a trivial model would say."""
        return [(row.text, self.task.label(row.answer) or row.answer) for row in _rows(self.prepared, "train")]


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
        f"task: {kind}, and there are no rows to evaluate it on; set test_file or test_split_size, or hold some "
        "out by validation_file or validation_split_size"
    )


def ask(own: Mapping[str, Any], prepared: Prepared, split: str) -> Asked:
    """The task with the rows of a split.

    Raises:
        InputError: The training answers are no classes, or rows of the split have none of them.
    """
    classified = own["task"] == "classification" and own["predict_by"] is None
    reasons = classified and any(row.reasons for row in _rows(prepared, "train"))
    own = {**own, "predict_by": "generation"} if reasons else own
    found = task.task_of(own, (row.answer for row in _rows(prepared, "train")))
    if reasons:
        why = "predicted by generation: training answers have reasoning, which comes before the class"
        found = dataclasses.replace(found, decisions=(*found.decisions, why))
    _check_labels(found, _rows(prepared, split), prepared.splits[split]["source"])
    names = {group for group in preparation.groups(prepared, split) if group is not None}
    if len(names) > MOST_GROUPS:
        raise InputError(
            f"group_column {own['group_column']} has {len(names):,} values in {prepared.splits[split]['source']}, "
            f"such as {shown(min(names))}; name a column of at most {MOST_GROUPS} groups"
        )
    by_source = len(prepared.splits[split].get("sources", [])) > 1
    asked = np.fromiter((_hash(row.prompt) for row in _rows(prepared, split)), np.int64)
    leaked, longest = _trained_on(prepared, np.sort(asked))
    return Asked(
        found,
        split,
        rows=len(asked),
        leaked=int(np.isin(asked, [*leaked]).sum()),
        groups=sorted(names),
        longest_answers=longest,
        grouped_by=own["group_column"] or ("source" if by_source else None),
        prepared=prepared,
        prompts_leaked=leaked,
    )


def _trained_on(prepared: Prepared, asked: NDArray[np.int64]) -> tuple[set[int], list[str]]:
    """Which of the prompts that are asked, by their hashes in order, training rows have, and the longest answers."""
    leaked: set[int] = set()
    longest: set[str] = set()
    rows = _rows(prepared, "train")
    while block := [*itertools.islice(rows, _BLOCK)]:
        hashes = np.array([_hash(row.prompt) for row in block], np.int64)
        places = np.searchsorted(asked, hashes).clip(max=len(asked) - 1)
        leaked.update(hashes[asked[places] == hashes].tolist())
        longest = {*_longest({*longest, *(row.whole for row in block)})}
    return leaked, _longest(longest)


def _longest(answers: Iterable[str]) -> list[str]:
    return sorted(answers, key=lambda answer: (-len(answer), answer))[:LONGEST]


class _Row(NamedTuple):
    """A prepared row as it is asked; of several answers the last."""

    prompt: Any
    text: str  # the last turn of the prompt
    answer: str
    whole: str  # the answer with its reasoning
    call: bool = False

    @property
    def reasons(self) -> bool:
        return not self.call and self.whole != self.answer


def _rows(prepared: Prepared, split: str) -> Iterator[_Row]:
    """The rows of a split."""
    with (prepared.directory / f"{split}.jsonl").open(encoding="utf-8", newline="\n") as lines:
        for line in lines:
            row = json.loads(line)
            if isinstance(row.get("prompt"), str):
                yield _Row(row["prompt"], row["prompt"], row["completion"], row["completion"])
                continue
            turns = tokens.turns_of(row)
            prompt, whole = templates.prompt_of(row, turns[:-1]), templates.text_of(turns[-1])
            calls = [json.loads(templates.text_of_call(call)) for call in turns[-1].get("tool_calls", ())]
            answer = task.calls_text(calls) if calls else task.THOUGHT.sub("", turns[-1]["content"])
            yield _Row(prompt, templates.text_of(turns[-2]), answer, whole, bool(calls))


def _texts(prompt: Any) -> list[str]:
    if isinstance(prompt, str):
        return [prompt]
    told = json.dumps(templates.arguments_of(prompt), sort_keys=True) if isinstance(prompt, dict) else None
    return [*([told] if told else []), *map(templates.text_of, templates.turns_of(prompt))]


def _hash(prompt: Any) -> int:
    return hash(normalised(*_texts(prompt)))


def _check_labels(found: Task, rows: Iterable[_Row], source: str) -> None:
    """Raise an `InputError` that names every row whose answer is none of the classes."""
    if found.kind != "classification":
        return
    problems = Problems()
    for number, row in enumerate(rows, 1):
        if found.label(row.answer) is None:
            held = task.written(row.answer, found.field, found.pattern)
            near = task.meant(held, found.labels) if held else ""
            problems.add(
                f"{source}, row {number}",
                f"the answer {shown(row.answer)} is none of the {len(found.labels)} classes{near}; correct "
                "it, or list the labels in the recipe",
            )
    problems.stop()
