"""What a row has to be: the formats that users' rows come in, and TRL's two shapes that they become."""

import re
from collections.abc import Mapping
from typing import Any

from sft_recipes.data.readers import Problems, Row
from sft_recipes.errors import InputError, closest, listed, nearest, shown

FORMATS = ("auto", "messages", "sharegpt", "prompt_completion", "alpaca")
_FIELDS = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "prompt_completion": ("prompt", "completion"),
    "alpaca": ("instruction", "input", "output", "system"),
}
# The one that holds or ends with the answer; and those that a row may leave out.
_ANSWER = {"messages": "messages", "sharegpt": "conversations", "prompt_completion": "completion", "alpaca": "output"}
_OPTIONAL = ("input", "system")
_ROLES = {"system": "system", "user": "user", "assistant": "assistant"}
_SHAREGPT_ROLES = _ROLES | {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant"}

_HELP = (
    f"set data_format ({', '.join(FORMATS[1:])}) or data_columns, for example {{prompt: question, completion: answer}}"
)
# What a "\ud800" in JSON becomes.
_SURROGATE = re.compile("[\ud800-\udfff]")

_Turn = tuple[str, str, str]  # the place in the row, the role, the content


def candidates(data_format: str, columns: Mapping[str, str]) -> list[str]:
    """The formats that the recipe leaves open: one if `data_format` or the fields in `data_columns` decide it."""
    if data_format not in FORMATS:
        raise InputError(f"data_format is {data_format!r}{nearest(data_format, FORMATS)}; write {', '.join(FORMATS)}")
    formats = list(_FIELDS) if data_format == "auto" else [data_format]
    known = [field for name in formats for field in _FIELDS[name]]
    problems = [
        f"data_columns: {field!r} is no field of data_format {data_format}{nearest(field, known)}; "
        f"write one of {listed(known)}"
        for field in columns
        if field not in known
    ]
    if len(set(columns.values())) < len(columns):
        problems.append(f"data_columns: {dict(columns)} names one column twice; give each field its own")
    fitting = [name for name in formats if set(columns) <= set(_FIELDS[name])]
    if not fitting and not problems:
        problems.append(f"data_columns: no one format has the fields {listed(columns)}; {_HELP}")
    if problems:
        raise InputError(*problems)
    return fitting


class Rules:
    """What a row of one format has to be, the same for every split."""

    def __init__(self, candidates: list[str], columns: Mapping[str, str], group_column: str | None) -> None:
        self.candidates = candidates
        self.detected = len(candidates) > 1
        self.format = ""
        self.columns = dict(columns)
        self.group_column = group_column
        self.needed: list[str] = []
        self.one_answer = True
        self.unused: set[str] = set()
        self.prompt_type: type | None = None
        """Of prompts and completions; None until the first row."""

    @property
    def conversational(self) -> bool:
        """Whether rows are turns: all but prompts and completions that are strings."""
        return self.prompt_type is not str

    def recognise(self, source: str, row: Row, problems: Problems) -> None:
        """Settle the format by the columns of the first row of all."""
        if self.format:
            return
        fitting = self.candidates
        if self.detected:
            fitting = [name for name in fitting if all(self.columns.get(key, key) in row for key in _required(name))]
        if len(fitting) != 1:
            which = f"the formats {', '.join(fitting)}" if fitting else "no format"
            problems.add(source, f"the columns {listed(row)} fit {which}; {_HELP}")
            problems.stop()
        self.format = fitting[0]
        fields = _FIELDS[self.format]
        required = {*_required(self.format), *self.columns}
        self.columns = {field: self.columns.get(field, field) for field in fields}
        self.needed = [self.columns[field] for field in fields if field in required]

    def group(self, row: Row, faults: list[str]) -> str | None:
        """The row's value of `group_column`; a row may say null, but not leave the column out."""
        if self.group_column is None:
            return None
        if self.group_column not in row:
            faults.append(f"group_column {self.group_column} is missing{nearest(self.group_column, row)}; write it")
        value = row.get(self.group_column)
        if isinstance(value, (dict, list)):
            faults.append(f"{self.group_column} holds {shown(value)}; write one text or number, the row's group")
            return None
        return None if value is None or value == "" else str(value)

    def answered(self, row: Row) -> Row:
        """The row with an answer that stands in for the one it may lack, so that it can be checked like any other."""
        column = self.columns[_ANSWER[self.format]]
        turn = {"role": "assistant", "content": "answer"}
        if self.format in ("alpaca", "prompt_completion"):
            return {**row, column: "answer" if self.format == "alpaca" or self.prompt_type is str else [turn]}
        turns = row.get(column)
        last = turns[-1] if isinstance(turns, list) and turns else None
        if isinstance(last, dict) and _SHAREGPT_ROLES.get(str(last.get("role") or last.get("from"))) != "assistant":
            return {**row, column: [*(turns or []), turn]}
        return row

    def normalise(self, row: Row, faults: list[str]) -> Row:
        """The row in TRL's shape: right if nothing was added to `faults`."""
        self.unused.update(row.keys() - self.columns.values() - {self.group_column})
        faults += [
            f"{column} is missing{nearest(column, row)}, the row has {listed(row)}: write it, or {_HELP}"
            for column in self.needed
            if column not in row
        ]
        if faults:
            return {}
        if self.format == "alpaca":
            return self._alpaca(row, faults)
        if self.format == "prompt_completion":
            return self._prompt_completion(row, faults)
        column = self.columns[_ANSWER[self.format]]
        return {"messages": self._conversation(self._turns(row[column], column, faults), column, faults)}

    def _alpaca(self, row: Row, faults: list[str]) -> Row:
        def text(field: str) -> str:
            value, optional = row.get(self.columns[field]), field in _OPTIONAL
            return "" if value is None and optional else _text(value, self.columns[field], faults, optional)

        prompt, extra, system = text("instruction"), text("input"), text("system")
        messages = [{"role": "system", "content": system}] if system.strip() else []
        messages.append({"role": "user", "content": f"{prompt}\n\n{extra}" if extra.strip() else prompt})
        return {"messages": [*messages, {"role": "assistant", "content": text("output")}]}

    def _prompt_completion(self, row: Row, faults: list[str]) -> Row:
        values = {field: row[self.columns[field]] for field in ("prompt", "completion")}
        for field, value in values.items():
            if self.prompt_type is None and isinstance(value, (str, list)):
                self.prompt_type = type(value)
            if self.prompt_type is None or not isinstance(value, self.prompt_type):
                fix = "a list of messages" if self.prompt_type is list else "a string"
                faults.append(f"{self.columns[field]} holds {shown(value)}; write {fix}, as in every row")
        if faults:
            return {}
        if self.prompt_type is str:
            return {field: _text(value, self.columns[field], faults) for field, value in values.items()}
        prompt, completion = (self._turns(value, self.columns[field], faults) for field, value in values.items())
        if len(completion) > 1:
            faults.append(
                f"{self.columns['completion']} holds {len(completion)} turns; write the one assistant turn to learn, "
                "or use the format messages to learn several"
            )
        messages = self._conversation(prompt + completion, self.columns["completion"], faults)
        return {"prompt": messages[:-1], "completion": messages[-1:]}

    def _turns(self, value: Any, column: str, faults: list[str]) -> list[_Turn]:
        if not isinstance(value, list) or not value:
            faults.append(f'{column} holds {shown(value)}; write a list of {{"role": ..., "content": ...}} objects')
            return []
        turns: list[_Turn] = []
        for index, turn in enumerate(value):
            place = f"{column}[{index}]"
            if not isinstance(turn, dict):
                faults.append(f'{place} holds {shown(turn)}; write {{"role": ..., "content": ...}}')
                continue
            role_key, content_key = "role", "content"
            if self.format == "sharegpt" and turn.get("role") is None:
                role_key, content_key = "from", "value"
            elif turn.get("role") is None and turn.get("from") is not None:
                faults.append(f"{place} has from and value, as in ShareGPT; {_sharegpt_remedy(column)}")
                continue
            if turn.get("tool_calls"):
                faults.append(f"{place}.tool_calls is not supported; delete the row, or write the call as content")
            others = {key for key, held in turn.items() if held is not None} - {role_key, content_key, "tool_calls"}
            self.unused.update(f"{column}[].{key}" for key in others)
            role = self._role(turn, place, role_key, column, faults)
            if content_key not in turn:
                faults.append(f"{place}.{content_key} is missing; write the text of the turn")
                continue
            content = _text(turn[content_key], f"{place}.{content_key}", faults, may_be_blank=role == "system")
            turns.append((place, role, content))
        return turns

    def _role(self, turn: Row, place: str, key: str, column: str, faults: list[str]) -> str:
        roles = _SHAREGPT_ROLES if self.format == "sharegpt" else _ROLES
        role = turn.get(key)
        if isinstance(role, str) and role in roles:
            return roles[role]
        if key not in turn:
            faults.append(f"{place}.{key} is missing; write one of {listed(roles)}")
        elif isinstance(role, str) and role in _SHAREGPT_ROLES:
            meant = f"write {_SHAREGPT_ROLES[role]!r}, or {_sharegpt_remedy(column)}"
            faults.append(f"{place}.{key} holds {role!r}, a ShareGPT role; {meant}")
        else:
            near = closest(role.lower(), roles) if isinstance(role, str) else ""
            meant = listed([near] if near else roles)
            faults.append(f"{place}.{key} holds {shown(role)}; write {'' if near else 'one of '}{meant}")
        return ""

    def _conversation(self, turns: list[_Turn], column: str, faults: list[str]) -> list[dict[str, str]]:
        """Check the order of the turns, once each of them is right for itself."""
        if faults:
            return []
        roles = [role for _, role, _ in turns]
        start = 1 if roles[0] == "system" else 0
        if "assistant" not in roles:
            faults.append(f"{column} has no assistant turn; add the answer to learn, or delete the row")
            return []
        for index, (place, role, _) in enumerate(turns):
            if role == "system" and index:
                faults.append(f"{place} is a system turn; move it to the front, where the one system turn belongs")
            elif role == "assistant" and index == start:
                faults.append(f"{place} is an answer to nothing; put a user turn before it")
            elif index and role == roles[index - 1]:
                faults.append(f"{place} is a second {role} turn in a row; join the two, or add the turn between them")
        if roles[-1] != "assistant":
            faults.append(f"{turns[-1][0]} is the last turn, but of the {roles[-1]}; end with the assistant's answer")
        # Where the user has marked the answer, the assistant turns before it are not to be learnt.
        self.one_answer &= roles.count("assistant") == 1 or self.format == "prompt_completion"
        return [{"role": role, "content": content} for _, role, content in turns]


def _required(name: str) -> list[str]:
    return [field for field in _FIELDS[name] if field not in _OPTIONAL]


def _text(value: Any, place: str, faults: list[str], may_be_blank: bool = False) -> str:
    if not isinstance(value, str):
        faults.append(f"{place} holds {shown(value)}; write a string")
        return ""
    if surrogate := _SURROGATE.search(value):
        faults.append(f"{place} holds {surrogate[0]!r}, half of a character; write the whole character")
    elif not may_be_blank and not value.strip():
        faults.append(f"{place} is blank; write its text, or delete the row")
    return value


def _sharegpt_remedy(column: str) -> str:
    return f"set data_format: sharegpt and data_columns: {{conversations: {column}}}"
