"""The turns of a row: read from the keys and types that conversations come in, and which answers are to be learnt.

A prepared turn has `role` and `content`, and where the row has them `reasoning_content`, `tool_calls`, and of a tool's
result `name` and `tool_call_id`. The `arguments` of a call are JSON in a text there: Arrow, through which TRL reads
rows, gives every object the keys of all others, and rounds numbers (`templates.decoded` makes objects of them again).
"""

import ast
import contextlib
import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from sft_recipes.errors import closest, listed, shown
from sft_recipes.recipes.task import THOUGHT, as_class

Row = dict[str, Any]

ROLES = {"system": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
SHAREGPT_ROLES = ROLES | {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant"}
# Turns that are a call, or several, in their content: of LLaMA-Factory, and of ms-swift.
CALL_ROLES = ("function_call", "tool_call")
# OpenAI's older name, and those of LLaMA-Factory and ms-swift.
RESULT_ROLES = ("function", "observation", "tool_response")
_TOOL_ROLES = dict.fromkeys(CALL_ROLES, "assistant") | dict.fromkeys(RESULT_ROLES, "tool")
REASONING = ("reasoning_content", "reasoning", "thinking")
CALLS = ("tool_calls", "function_call")
# What marks a turn to be learnt or not: of OpenAI and mistral-finetune, Axolotl, ms-swift, and torchtune (where true
# means not).
MARKS = {"weight": True, "train": True, "training": True, "trainable": True, "loss": True, "masked": False}
# What a model would have to see, and no row that is trained on has: refused where it holds something.
_PARTS = "rows are text: delete the row, or this of it where the text is right without it"
_SOME_TOKENS = "a turn is learnt whole or not at all; mark it by weight: 1 or weight: 0"
REFUSED: dict[str, str] = {
    **dict.fromkeys(("images", "image", "videos", "video", "audios", "audio"), _PARTS),
    **dict.fromkeys(("train_detail", "training_detail", "loss_scale"), _SOME_TOKENS),
}
# What a "\ud800" in JSON becomes.
_SURROGATE = re.compile("[\ud800-\udfff]")
_NOTHING: tuple[Any, ...] = (None, "", "[]", "{}", [], {})
_DROPPED = "reasoning: left out of the assistant's turns, as drop_reasoning says"
_A_CALL = 'write {"name": ..., "arguments": {...}}'


class Turn(NamedTuple):
    """A turn that is right for itself."""

    place: str
    role: str
    content: str
    learnt: bool | None = None  # what its mark says; None without one
    more: Mapping[str, Any] = {}  # its calls, its reasoning, and whose result it is

    @property
    def message(self) -> Row:
        """The turn as a prepared row has it."""
        return {"role": self.role, "content": self.content, **self.more}


class Reader:
    """Reads turns and texts, and keeps what was decided while it did.

    Args:
        classes: whether answers that are numbers or truth values are classes.
        answers: whether rows must have answers; of those that need none, what is there is not looked at.
        drop_reasoning: whether what an assistant thinks before it answers is left out.
    """

    def __init__(self, *, classes: bool = False, answers: bool = True, drop_reasoning: bool = False) -> None:
        self.classes, self.answers, self.drop_reasoning = classes, answers, drop_reasoning
        self.sharegpt = False  # whether turns may have ShareGPT's keys and roles
        self.columnar = False
        """Whether rows are from Parquet or the Hub, where an object has a null for each key that another one has."""
        self.unused: set[str] = set()
        self.notes: dict[str, None] = {}  # in the order in which they were found

    def note(self, decision: str) -> None:
        """Keep a decision, once."""
        self.notes[decision] = None

    def text(self, value: Any, place: str, faults: list[str], *, answer: bool = False, blank: bool = False) -> str:
        """A text: of a class that is a number or a truth value, as JSON writes it."""
        if answer and isinstance(value, (bool, int, float)):
            if self.classes:
                self.note("labels: answers that are numbers, true or false are the classes that JSON writes so")
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
        found: list[Turn] = []
        for index, given in enumerate(value):
            turn = self._turn(given, f"{column}[{index}]", column, faults)
            if turn is None:
                continue
            if found and _is_call(given) and _is_call(value[index - 1]):
                # Calls at one time, which ms-swift writes as a turn each.
                before = found.pop()
                calls = [*before.more.get("tool_calls", ()), *turn.more.get("tool_calls", ())]
                turn = before._replace(more={**before.more, "tool_calls": calls})
            found.append(turn)
        return found

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
        role = self._role(turn, place, role_key, column, faults)
        more = self._more(turn, place, role, faults)
        others = {key for key, held in turn.items() if held is not None} - REFUSED.keys() - MARKS.keys()
        used = {role_key, content_key, *REASONING, *CALLS, *(("name", "tool_call_id") if role == "tool" else ())}
        self.unused.update(f"{column}[].{key}" for key in others - used)
        learnt = self._learnt(turn, place, faults) if self.answers else None
        where, value = f"{place}.{content_key}", turn.get(content_key)
        if turn.get(role_key) in CALL_ROLES:
            self.note("calls: turns that are a call, read as the assistant's")
            return Turn(place, role, "", learnt, {**more, "tool_calls": self._calls(value, where, faults)})
        if value in (None, "") and "tool_calls" in more:
            return Turn(place, role, "", learnt, more)
        if content_key not in turn:
            faults.append(f"{where} is missing; write the text of the turn")
            return None
        if role == "tool" and value is not None and not isinstance(value, str) and not (value and _is_parts(value)):
            self.note("results of tools: what is no text, as JSON writes it")
            value = json.dumps(value, ensure_ascii=False)
        content = self._content(value, where, role, faults)
        if role == "assistant":
            content, more = self._thought(content, more, where, faults)
        return Turn(place, role, content, learnt, more)

    def _more(self, turn: Row, place: str, role: str, faults: list[str]) -> Row:
        """What a turn holds beside its text."""
        said = {key: turn[key] for key in (*REASONING, *CALLS) if turn.get(key) not in _NOTHING}
        if said and role not in ("assistant", ""):
            faults.append(f"{place}.{next(iter(said))} is in a turn of the {role}; write it into one of the assistant")
            return {}
        thoughts, calls = ([key for key in keys if key in said] for keys in (REASONING, CALLS))
        for several in (thoughts, calls):
            if len({json.dumps(said[key], sort_keys=True) for key in several}) > 1:
                faults.append(f"{place} has {listed(several)} that differ; keep one")
        more: Row = {}
        if thoughts and not self.drop_reasoning:
            more["reasoning_content"] = self.text(said[thoughts[0]], f"{place}.{thoughts[0]}", faults)
        if thoughts and self.drop_reasoning:
            self.note(_DROPPED)
        if calls:
            more["tool_calls"] = self._calls(said[calls[0]], f"{place}.{calls[0]}", faults)
        if role == "tool":
            its = {key: turn[key] for key in ("name", "tool_call_id") if isinstance(turn.get(key), str)}
            more |= {key: self.text(held, f"{place}.{key}", faults, blank=True) for key, held in its.items()}
        return more

    def _thought(self, content: str, more: Row, place: str, faults: list[str]) -> tuple[str, Row]:
        """The content of an answer and what is beside it, where the content may begin with a block of reasoning."""
        block = THOUGHT.match(content)
        if block and self.drop_reasoning:
            self.note(_DROPPED)
            content = content[block.end() :]
            if not content.strip() and "tool_calls" not in more:
                faults.append(f"{place} holds nothing behind its reasoning; write the answer, or delete the row")
        elif block and "reasoning_content" in more:
            faults.append(f"{place} begins with reasoning, and the turn has it in a field of its own too; keep one")
        return content, more

    def _calls(self, value: Any, place: str, faults: list[str]) -> list[Row]:
        """The calls of a turn: a list of them, or one, as OpenAI has them or flat, also as JSON in a text."""
        value = from_json(value)
        found = value if isinstance(value, list) else [value]
        return [self._call(each, f"{place}[{n}]" if value is found else place, faults) for n, each in enumerate(found)]

    def _call(self, call: Any, place: str, faults: list[str]) -> Row:
        call = from_json(call)
        function = call.get("function") or call if isinstance(call, dict) else {}
        function = function if isinstance(function, dict) else {}
        name, arguments = function.get("name"), from_json(function.get("arguments", function.get("parameters")))
        # A call without arguments.
        arguments = {} if arguments in (None, "") else arguments
        if not isinstance(name, str) or not name.strip() or not isinstance(arguments, dict):
            faults.append(f"{place} holds {shown(call)}, which is no call of a tool; {_A_CALL}")
            return {}
        if self.columnar and not isinstance(function.get("arguments"), str) and has_null(arguments):
            faults.append(f"{place}.arguments {filled('arguments')}")
        its = {"id": call["id"]} if isinstance(call.get("id"), str) and call["id"] else {}
        text = json.dumps(arguments, ensure_ascii=False)
        found = {**its, "type": "function", "function": {"name": name, "arguments": text}}
        self.text(json.dumps(found, ensure_ascii=False), place, faults)
        return found

    def _role(self, turn: Row, place: str, key: str, column: str, faults: list[str]) -> str:
        roles = SHAREGPT_ROLES if self.sharegpt else ROLES
        role = turn.get(key)
        if isinstance(role, str) and role in (known := roles | _TOOL_ROLES):
            return known[role]
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
        parts = value if _is_parts(value) else []
        if strange := [part.get("type") for part in parts if part.get("type") != "text"]:
            faults.append(f"{place} has a part of the type {strange[0]!r}; {_PARTS}")
            return ""
        if parts and all(isinstance(part.get("text"), str) for part in parts):
            self.note("content: parts of text, joined")
            value = "".join(part["text"] for part in parts)
        return self.text(value, place, faults, answer=role == "assistant", blank=role in ("system", "tool"))


def meant(role: str) -> str | None:
    """The role of a turn in any of the formats, or None."""
    return (SHAREGPT_ROLES | _TOOL_ROLES).get(role)


def refused(row: Row, names: Mapping[str, str], place: str = "") -> list[str]:
    """What a row or a turn holds that carries meaning and is not trained on, with what to do instead."""
    if names.keys().isdisjoint(row):
        return []
    return [f"{place}{key} is not supported; {names[key]}" for key in names if row.get(key) not in _NOTHING]


def from_json(value: Any) -> Any:
    """What stands in a text as JSON; everything else as it is."""

    def no_constant(name: str) -> None:
        raise ValueError(name)

    if isinstance(value, str):
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(value, parse_constant=no_constant)
    return value


def has_null(value: Any) -> bool:
    """Whether a null is anywhere in it."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return value is None or any(map(has_null, parts))


def filled(what: str) -> str:
    """What is said of objects that Parquet may have filled up."""
    return (
        "hold null, as Parquet writes for each key that the objects of other rows have, and which were there is not "
        f"known; write {what} as JSON in a text, e.g. by json.dumps"
    )


def _is_call(turn: Any) -> bool:
    return isinstance(turn, dict) and (turn.get("role") or turn.get("from")) in CALL_ROLES


def _is_parts(value: Any) -> bool:
    """Whether content stands in parts: objects, each of a type."""
    return isinstance(value, list) and all(isinstance(part, dict) and "type" in part for part in value)


def _are_turns(value: Any) -> bool:
    keys = ("role", "from")
    return isinstance(value, list) and all(
        isinstance(each, dict) and any(key in each for key in keys) for each in value
    )


def _sharegpt_remedy(column: str) -> str:
    return f"set data_format: sharegpt and data_columns: {{conversations: {column}}}"
