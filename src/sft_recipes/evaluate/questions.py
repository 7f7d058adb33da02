"""What an evaluation asks: the rows of a split as questions, with their classes, and which of them were trained on."""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sft_recipes.data import preparation, templates, tokens
from sft_recipes.data.preparation import Prepared
from sft_recipes.data.readers import Problems
from sft_recipes.data.survey import normalised
from sft_recipes.errors import InputError, shown
from sft_recipes.files import write_whole
from sft_recipes.recipes import task
from sft_recipes.recipes.recipe import Recipe
from sft_recipes.recipes.task import Task

# More groups than these are no groups; each is a row of a table and a bar of a figure.
MOST_GROUPS = 50


# How many of the longest training answers say how long an answer can be.
LONGEST = 20
# Part of every key: raise it when other things would be seen in the same rows.
ASKED_VERSION = 1
_TUPLES = ("labels", "decisions")
# Rows that are compared with the prompts that are asked at once.
_BLOCK = 4096


@dataclass(frozen=True)
class Question:
    """A row to be evaluated."""

    row: int  # its number in the prepared split, from 1
    prompt: str | templates.Prompt  # as the model is asked: text, or the turns before the answer
    text: str  # what a person would read of it: the last turn
    reference: str  # the answer of the row without its reasoning; where it is a call, `task.calls_text` of it
    call: bool  # whether the answer is a call of a tool
    group: str | None
    leaked: bool  # whether a training row has the same prompt, case, punctuation and spacing aside

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
    leaked: int  # rows whose prompt is that of a training row, case, punctuation and spacing aside
    groups: list[str]
    longest_answers: list[str]  # of the training rows
    grouped_by: str | None
    """The column that the rows are grouped by, "source" where their sources are, None for no groups."""
    prepared: Prepared
    prompts_leaked: Set[int]  # by their hashes

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
    found, seen = _kept(own, prepared, split) or _seen(own, prepared, split)
    names = {group for group in preparation.groups(prepared, split) if group is not None}
    if len(names) > MOST_GROUPS:
        raise InputError(
            f"group_column {own['group_column']} has {len(names):,} values in {prepared.splits[split]['source']}, "
            f"such as {shown(min(names))}; name a column of at most {MOST_GROUPS} groups"
        )
    by_source = len(prepared.splits[split].get("sources", [])) > 1
    return Asked(
        found,
        split,
        rows=prepared.splits[split]["prepared_rows"],
        leaked=seen.leaked,
        groups=sorted(names),
        longest_answers=seen.longest,
        grouped_by=own["group_column"] or ("source" if by_source else None),
        prepared=prepared,
        prompts_leaked={*seen.prompts},
    )


@dataclass
class _Seen:
    """What the rows have shown beside the task."""

    leaked: int
    prompts: list[int]
    longest: list[str]


def _place(own: Mapping[str, Any], prepared: Prepared, split: str) -> Path:
    decisive = [ASKED_VERSION, split, {key: own[key] for key in task.KEYS}]
    key = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]
    # Beside the rows, whose directory is another where the content of any file of theirs is another.
    return prepared.directory / ".asked" / f"{key}.json"


def _kept(own: Mapping[str, Any], prepared: Prepared, split: str) -> tuple[Task, _Seen] | None:
    """What was seen in the same rows before, by the same keys; None if it was not."""
    try:
        facts = json.loads(_place(own, prepared, split).read_text(encoding="utf-8"))
        seen = _Seen(**facts["seen"])
        if facts["task"] is None:
            return task.task_of(own, ()), seen
        held: dict[str, Any] = facts["task"]
        return Task(**held | {key: tuple(held[key]) for key in _TUPLES}), seen
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _seen(own: Mapping[str, Any], prepared: Prepared, split: str) -> tuple[Task, _Seen]:
    """The task, and what the rows show beside it, in one pass over those of training."""
    import numpy as np

    asked = np.sort(np.fromiter((_hash(row.prompt) for row in _rows(prepared, split)), np.int64))
    leaked, longest, reasons = set[int](), list[str](), False

    def passing(rows: Iterator[_Row]) -> Iterator[_Row]:
        """The rows, of which a block after the other is looked at."""
        nonlocal longest, reasons
        while block := [*itertools.islice(rows, _BLOCK)]:
            hashes = np.fromiter((_hash(row.prompt) for row in block), np.int64, len(block))
            places = np.searchsorted(asked, hashes).clip(max=len(asked) - 1)
            leaked.update(hashes[asked[places] == hashes].tolist())
            answers = {*longest, *(row.whole for row in block)}
            longest = sorted(answers, key=lambda answer: (-len(answer), answer))[:LONGEST]
            reasons = reasons or any(row.reasons for row in block)
            yield from block

    rows = passing(_rows(prepared, "train"))
    found = task.task_of(own, (row.answer for row in rows))
    for _ in rows:
        pass
    if found.kind == "classification" and own["predict_by"] is None and reasons:
        why = "predicted by generation: training answers have reasoning, which comes before the class"
        found = dataclasses.replace(found, by="generation", decisions=(*found.decisions, why))
    _check_labels(found, _rows(prepared, split), prepared.splits[split]["source"])
    seen = _Seen(int(np.isin(asked, [*leaked]).sum()), sorted(leaked), longest)
    # That of a generation follows from its keys, and from a file.
    facts = {"task": dataclasses.asdict(found) if found.kind == "classification" else None, "seen": vars(seen)}
    path = _place(own, prepared, split)
    # Rows that cannot be written beside are read again by the next that asks.
    with contextlib.suppress(OSError):
        path.parent.mkdir(exist_ok=True)
        write_whole(path, json.dumps(facts))
    return found, seen


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
    text = normalised(*_texts(prompt)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)


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
