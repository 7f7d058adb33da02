"""The turns of a row: read from the keys and types that conversations come in, and which answers are to be learnt."""

import ast
import contextlib
import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from sft_recipes.errors import closest, listed, shown
from sft_recipes.recipes.task import as_class

Row = dict[str, Any]

ROLES = {"system": "system", "user": "user", "assistant": "assistant"}
SHAREGPT_ROLES = ROLES | {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant"}
# What marks a turn to be learnt or not: of OpenAI and mistral-finetune, Axolotl, ms-swift, and torchtune (where true
# means not).
MARKS = {"weight": True, "train": True, "training": True, "trainable": True, "loss": True, "masked": False}
# What a model would have to see, and no row that is trained on has: refused where it holds something.
_CALLS = "delete the row, or write the call as content"
_THOUGHT = "write it into the content as the model's chat template does, e.g. <think>...</think> before the answer"
_PARTS = "rows are text: delete the row, or this of it where the text is right without it"
_SOME_TOKENS = "a turn is learnt whole or not at all; mark it by weight: 1 or weight: 0"
REFUSED: dict[str, str] = {
    **dict.fromkeys(("tool_calls", "function_call", "tool_call_id"), _CALLS),
    **dict.fromkeys(("reasoning_content", "reasoning", "thinking"), _THOUGHT),
    **dict.fromkeys(("images", "image", "videos", "video", "audios", "audio"), _PARTS),
    **dict.fromkeys(("train_detail", "training_detail", "loss_scale"), _SOME_TOKENS),
}
# What a "\ud800" in JSON becomes.
_SURROGATE = re.compile("[\ud800-\udfff]")


class Turn(NamedTuple):
    """A turn that is right for itself."""

    place: str
    role: str
    content: str
    learnt: bool | None = None
    """What its mark says; None without one."""


class Reader:
    """Reads turns and texts, and keeps what was decided while it did.

    Args:
        sharegpt: whether turns may have ShareGPT's keys and roles.
        classes: whether answers that are numbers or truth values are classes.
        marks: whether it matters which answers are learnt.
    """

    def __init__(self, *, sharegpt: bool = False, classes: bool = False, marks: bool = True) -> None:
        self.sharegpt, self.classes, self.marks = sharegpt, classes, marks
        self.unused: set[str] = set()
        self.notes: dict[str, None] = {}
        """In the order in which they were found."""

    def note(self, decision: str) -> None:
        """Keep a decision, once."""
        self.notes[decision] = None

    def text(self, value: Any, place: str, faults: list[str], *, answer: bool = False, blank: bool = False) -> str:
        """A text: of a class that is a number or a truth value, as JSON writes it."""
        if answer and isinstance(value, (bool, int, float)):
            if self.classes:
                self.notes["labels: answers that are numbers, true or false are the classes that JSON writes so"] = (
                    None
                )
                return as_class(value)
            fix = "write a string, or set task: classification, for which it is a class"
            faults.append(f"{place} holds {shown(value)}; {fix}")
            return ""
        if not isinstance(value, str):
            faults.append(f"{place} holds {shown(value)}; write a string")
            return ""
        if surrogate := _SURROGATE.search(value):
            faults.append(f"{place} holds {surrogate[0]!r}, half of a character; write the whole character")
        elif not blank and not value.strip():
            faults.append(f"{place} is blank; write its text, or delete the row")
        return value

    def turns(self, value: Any, column: str, faults: list[str]) -> list[Turn]:
        """The turns in a column, each checked for itself."""
        value = self.decoded(value, column, faults)
        if isinstance(value, str) and faults:
            return []
        if not isinstance(value, list) or not value:
            faults.append(f'{column} holds {shown(value)}; write a list of {{"role": ..., "content": ...}} objects')
            return []
        found = (self._turn(turn, f"{column}[{index}]", column, faults) for index, turn in enumerate(value))
        return [turn for turn in found if turn is not None]

    def decoded(self, value: Any, column: str, faults: list[str]) -> Any:
        """A list of turns that stands as JSON in a text, as in a cell of CSV; everything else as it is."""
        if not isinstance(value, str) or not value.lstrip().startswith(("[{", "[ {", "[\n")):
            return value
        with contextlib.suppress(ValueError, RecursionError):
            found = json.loads(value)
            if _are_turns(found):
                self.note(f"{column}: a list of turns that stands as JSON in a text")
                return found
        with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            if _are_turns(ast.literal_eval(value.strip()[:100_000])):
                fix = f"write JSON, in pandas by df[{column!r}] = df[{column!r}].map(json.dumps)"
                faults.append(f"{column} holds a list as Python prints it; {fix}")
        return value

    def _turn(self, turn: Any, place: str, column: str, faults: list[str]) -> Turn | None:
        if not isinstance(turn, dict):
            faults.append(f'{place} holds {shown(turn)}; write {{"role": ..., "content": ...}}')
            return None
        role_key, content_key = "role", "content"
        if self.sharegpt and turn.get("role") is None:
            role_key, content_key = "from", "value"
        elif turn.get("role") is None and turn.get("from") is not None:
            faults.append(f"{place} has from and value, as in ShareGPT; {_sharegpt_remedy(column)}")
            return None
        faults += refused(turn, REFUSED, f"{place}.")
        others = {key for key, held in turn.items() if held is not None} - REFUSED.keys() - MARKS.keys()
        self.unused.update(f"{column}[].{key}" for key in others - {role_key, content_key})
        role = self._role(turn, place, role_key, column, faults)
        learnt = self._learnt(turn, place, faults) if self.marks else None
        if content_key not in turn:
            faults.append(f"{place}.{content_key} is missing; write the text of the turn")
            return None
        content = self._content(turn[content_key], f"{place}.{content_key}", role, faults)
        return Turn(place, role, content, learnt)

    def _role(self, turn: Row, place: str, key: str, column: str, faults: list[str]) -> str:
        roles = SHAREGPT_ROLES if self.sharegpt else ROLES
        role = turn.get(key)
        if isinstance(role, str) and role in roles:
            return roles[role]
        if key not in turn:
            faults.append(f"{place}.{key} is missing; write one of {listed(roles)}")
        elif isinstance(role, str) and role in SHAREGPT_ROLES:
            meant = f"write {SHAREGPT_ROLES[role]!r}, or {_sharegpt_remedy(column)}"
            faults.append(f"{place}.{key} holds {role!r}, a ShareGPT role; {meant}")
        else:
            near = closest(role.lower(), roles) if isinstance(role, str) else ""
            meant = listed([near] if near else roles)
            faults.append(f"{place}.{key} holds {shown(role)}; write {'' if near else 'one of '}{meant}")
        return ""

    def _learnt(self, turn: Row, place: str, faults: list[str]) -> bool | None:
        """What the marks of a turn say: whether it is to be learnt."""
        said = {key: turn[key] for key in MARKS if turn.get(key) is not None}
        for key, value in said.items():
            if not isinstance(value, (bool, int, float)) or value not in (0, 1):
                faults.append(f"{place}.{key} holds {shown(value)}; {_SOME_TOKENS}")
                return None
        meant = {bool(value) == MARKS[key] for key, value in said.items()}
        if len(meant) == 2:
            faults.append(f"{place} is marked to be learnt and not to be learnt, by {listed(said)}; keep one")
        return meant.pop() if meant else None

    def _content(self, value: Any, place: str, role: str, faults: list[str]) -> str:
        """The text of a turn, also where it stands in parts that are all text."""
        parts = value if isinstance(value, list) and all(isinstance(part, dict) for part in value) else []
        if strange := [part.get("type") for part in parts if part.get("type") != "text"]:
            faults.append(f"{place} has a part of the type {strange[0]!r}; {_PARTS}")
            return ""
        if parts and all(isinstance(part.get("text"), str) for part in parts):
            self.note("content: parts of text, joined")
            value = "".join(part["text"] for part in parts)
        return self.text(value, place, faults, answer=role == "assistant", blank=role == "system")


def refused(row: Row, names: Mapping[str, str], place: str = "") -> list[str]:
    """What a row or a turn holds that carries meaning and is not trained on, with what to do instead."""
    nothing: tuple[Any, ...] = (None, "", "[]", "{}", [], {})
    return [f"{place}{key} is not supported; {names[key]}" for key in names if row.get(key) not in nothing]


def _are_turns(value: Any) -> bool:
    keys = ("role", "from")
    return isinstance(value, list) and all(
        isinstance(each, dict) and any(key in each for key in keys) for each in value
    )


def _sharegpt_remedy(column: str) -> str:
    return f"set data_format: sharegpt and data_columns: {{conversations: {column}}}"
