"""What the answers of a recipe are, and how a class is read from one: exactly, or not at all."""

import collections
import contextlib
import dataclasses
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

from sft_recipes.errors import InputError, listed, nearest, refuse, shown
from sft_recipes.recipes.schema import DATA, as_yaml
from sft_recipes.terminal import count

KEYS: tuple[str, ...] = tuple(DATA["of_a_task"])
# More classes than these are no classification that a table of classes could show; they are ids, or free text.
MOST_LABELS = 100
# Training rows from which answers that are all different are no classes.
FEW_ROWS = 8
# The block in which a reasoning model thinks, or says that it does not; what follows is the answer.
THOUGHT = re.compile(r"\A\s*<think>.*?</think>\s*", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Task:
    """A task as the evaluation goes by it."""

    kind: str  # classification or generation
    by: str  # likelihood or generation
    labels: tuple[str, ...]  # the classes in their order; none for generation
    field: str | None
    pattern: str | None
    candidates: dict[str, str]  # by likelihood: the answer that stands for each label, as training wrote it
    max_new_tokens: int | None
    schema: dict[str, Any] | None
    decisions: tuple[str, ...]  # what was decided where the recipe leaves it open, in sentences

    def label(self, answer: str) -> str | None:
        """The class that an answer names, or None where it names none, or more than one."""
        found = written(answer, self.field, self.pattern)
        return found if found in self.labels else None


def answer_of(text: str) -> str:
    """A generated text without the block of thought before the answer."""
    return THOUGHT.sub("", text).strip()


def calls_in(text: str) -> list[dict[str, Any]]:
    """The calls of tools in a generated text: objects of JSON with a `name` and `arguments`, or `parameters`.

    So the templates of Qwen, Hermes, Llama 3, Mistral and others write them, whatever is around the objects.
    """
    found, place = [], text.find("{")
    while place >= 0:
        end = place + 1
        with contextlib.suppress(ValueError, RecursionError):
            value, after = json.JSONDecoder().raw_decode(text, place)
            arguments = value.get("arguments", value.get("parameters"))
            if isinstance(value.get("name"), str) and isinstance(arguments, (dict, str)):
                arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
                found.append({"name": value["name"], "arguments": arguments})
                end = after
        place = text.find("{", end)
    return found


def calls_text(calls: Iterable[Mapping[str, Any]]) -> str:
    """Calls, each a `name` and `arguments`, as a text that is the same where they are equal as JSON."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(held) for key, held in value.items()}
        if isinstance(value, list):
            return [plain(each) for each in value]
        return int(value) if isinstance(value, float) and value.is_integer() else value

    return json.dumps([plain(dict(call)) for call in calls], ensure_ascii=False, sort_keys=True)


def as_class(value: str | bool | int | float) -> str:
    """A class by its text: of a number, true or false, as JSON writes it."""
    return value if isinstance(value, str) else json.dumps(value)


def written(answer: str, field: str | None, pattern: str | None) -> str | None:
    """What stands where the class should: in the field, in the pattern's group, or the whole answer."""
    if field is not None:
        try:
            value = json.loads(answer)
        except (ValueError, RecursionError):
            return None
        held = value.get(field) if isinstance(value, dict) else None
        return None if isinstance(held, (type(None), list, dict)) else as_class(held).strip()
    if pattern is not None:
        found = {match[1].strip() for match in re.finditer(pattern, answer) if match[1] is not None}
        return found.pop() if len(found) == 1 else None
    return None if _is_list(answer) else answer.strip()


def _is_list(answer: str) -> bool:
    """Whether an answer is several classes, as a list in JSON."""
    with contextlib.suppress(ValueError, RecursionError):
        return answer.lstrip().startswith("[") and isinstance(json.loads(answer), list)
    return False


def _folded(label: str) -> str:
    """Without case, spaces, Unicode form, and characters that no reader sees."""
    text = unicodedata.normalize("NFKC", label).casefold()
    return "".join(char for char in text if not char.isspace() and unicodedata.category(char) != "Cf")


def alike(rows: Mapping[str, int]) -> list[str]:
    """Classes, by how many rows have them, that differ in case, spaces or Unicode form alone: those of each group."""
    groups: dict[str, list[str]] = collections.defaultdict(list)
    for label in rows:
        groups[_folded(label)].append(label)
    told = []
    for group in groups.values():
        # Forms of one character look alike.
        show = repr if len({unicodedata.normalize("NFC", label) for label in group}) == len(group) else ascii
        told += [", ".join(f"{show(label)} ({count(rows[label], 'row')})" for label in group)] if group[1:] else []
    return told


def meant(found: str, labels: Iterable[str]) -> str:
    """Which of the labels something that is none of them may have meant, to be put behind it."""
    twin = next((label for label in labels if _folded(label) == _folded(found)), None)
    return nearest(found, labels) if twin is None else f" ({twin!r} but for case, spaces or Unicode form)"


def problems(own: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is wrong with the keys of a task among themselves, before any row is read, as (key, problem)."""
    kind = own["task"]
    if kind is None:
        return [
            (key, f"{key} says how a task is evaluated, and there is none; set task: classification or generation")
            for key in KEYS
            if own[key] is not None and key not in ("task", "test_file")
        ]
    found: list[tuple[str, str]] = []

    def wrong(key: str, problem: str) -> None:
        found.append((key, problem))

    labels, pattern = own["labels"] and [as_class(each) for each in own["labels"]], own["label_pattern"]
    if kind == "generation":
        for key in ("labels", "label_field", "label_pattern"):
            if own[key] is not None:
                wrong(key, f"{key} belongs to task: classification; drop it, or set that task")
        if own["predict_by"] == "likelihood":
            wrong("predict_by", "predict_by: likelihood chooses among labels; drop it")
    elif own["json_schema"] is not None:
        wrong("json_schema", "json_schema belongs to task: generation; label_field names a class inside JSON")
    if pattern is not None:
        if own["label_field"] is not None:
            wrong("label_pattern", "label_field and label_pattern are both set; keep one")
        try:
            if (groups := re.compile(pattern).groups) != 1:
                instead = "put the class into one, and write others as (?:...)"
                wrong("label_pattern", f"label_pattern: {pattern} has {groups} groups; {instead}")
        except re.error as error:
            wrong("label_pattern", f"label_pattern: {pattern} is not a regular expression: {error}")
    if labels is not None and (len(labels) < 2 or len(set(labels)) < len(labels)):
        wrong("labels", f"labels: {as_yaml(labels)}: write two or more different classes")
    if own["json_schema"] is not None:
        from sft_recipes.recipes import json_schemas

        try:
            json_schemas.read(own["json_schema"])
        except InputError as error:
            found += [("json_schema", problem) for problem in error.problems]
    return found


def task_of(own: Mapping[str, Any], answers: Iterable[str]) -> Task:
    """The task of a recipe on its training answers.

    Args:
        own: Our own keys with their values; `task` is set and `problems` finds nothing.
        answers: Those of the training rows; read only for a classification.

    Raises:
        InputError: The answers are no classes, or likelihood is asked for and a class has no one answer.
    """
    rest = {"field": own["label_field"], "pattern": own["label_pattern"], "max_new_tokens": own["max_new_tokens"]}
    if own["task"] == "generation":
        from sft_recipes.recipes import json_schemas

        schema = json_schemas.read(own["json_schema"]) if own["json_schema"] else None
        return Task("generation", "generation", (), candidates={}, schema=schema, decisions=(), **rest)
    whole = own["label_field"] is None and own["label_pattern"] is None
    rows: collections.Counter[str] = collections.Counter()
    texts: dict[str, set[str]] = collections.defaultdict(set)
    unread, example = 0, ""
    for answer in answers:
        found = written(answer, own["label_field"], own["label_pattern"])
        if not found:
            unread, example = unread + 1, example or answer
            continue
        rows[found] += 1
        # A second text says already that a class has no one answer.
        if len(texts[found]) < 2:
            texts[found].add(answer)
        # Enough to tell more classes than there may be from texts.
        if own["labels"] is None and len(rows) > 20 * MOST_LABELS:
            break
    if own["labels"] is None and sum(rows.values()) >= FEW_ROWS:
        _refuse_texts(rows, whole)
    if own["labels"] is None and len(rows) > MOST_LABELS:
        raise InputError(
            f"task: classification, and the training answers have more than {MOST_LABELS} different classes, such "
            f"as {shown(next(iter(rows)))}; say where the class stands by label_field or label_pattern, list the "
            "labels, or set task: generation"
        )
    labels = tuple(as_class(each) for each in own["labels"] or sorted(rows))
    _read(own, labels, rows, unread, example)
    candidates = {label: min(texts[label], default=label) for label in labels}
    if whole or all(len(texts[label]) == 1 for label in labels):
        by = own["predict_by"] or "likelihood"
        return Task("classification", by, labels, candidates=candidates, schema=None, decisions=(), **rest)
    bad = next(label for label in labels if len(texts[label]) != 1)
    told = f"{bad!r} stands in {'several different answers' if texts[bad] else 'none'} of the training rows"
    if own["predict_by"] == "likelihood":
        raise InputError(
            f"predict_by: likelihood needs one answer for each label, and {told}; set predict_by: generation"
        )
    decision = f"predicted by generation: likelihood needs one answer for each label, and {told}"
    return Task("classification", "generation", labels, candidates={}, schema=None, decisions=(decision,), **rest)


def _refuse_texts(rows: Mapping[str, int], whole: bool) -> None:
    """Raise an `InputError` if most answers are like no other, as texts are and classes are not."""
    if whole and 2 * len(rows) > sum(rows.values()):
        raise InputError(
            f"task: classification, and the training answers are texts and no classes: {len(rows):,} of "
            f"{sum(rows.values()):,} are different, such as {shown(next(iter(rows)))}; set task: generation, or null "
            "to evaluate nothing"
        )


def _read(own: Mapping[str, Any], labels: tuple[str, ...], rows: Mapping[str, int], unread: int, example: str) -> None:
    """Raise an `InputError` if the training answers are not the classes."""
    total = sum(rows.values()) + unread
    found = []
    if unread:
        key = next((key for key in ("label_field", "label_pattern") if own[key]), None)
        where = f"{key} {own[key]}" if key else "task: classification"
        found.append(
            f"{where} finds no one class in {unread:,} of {total:,} training answers, such as {shown(example)}; write "
            "one in each row, or set task: generation"
        )
    if own["labels"] is None:
        found += [
            f"the classes {classes} differ in case, spaces or Unicode form alone; write them alike, or list labels, "
            "which says that each is a class"
            for classes in alike(rows)
        ]
    strange = [label for label in rows if label not in labels]
    if strange:
        found.append(
            f"{sum(rows[label] for label in strange):,} training answers are none of the labels, such as "
            f"{strange[0]!r}{meant(strange[0], labels)}; correct the rows, or add them to labels"
        )
    if len(labels) < 2 and not found:
        found.append(f"all {total:,} training answers are the class {listed(labels)}; two are needed to tell apart")
    refuse(found)
