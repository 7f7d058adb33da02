"""What a row has to be: the formats that users' rows come in, and TRL's two shapes that they become."""

import contextlib
import json
from collections.abc import Mapping
from typing import Any

from sft_recipes.data import columns as names
from sft_recipes.data import turns
from sft_recipes.data.readers import Problems, Row
from sft_recipes.data.turns import Turn
from sft_recipes.errors import InputError, listed, nearest, refuse, shown

FORMATS = ("auto", "messages", "sharegpt", "prompt_completion", "alpaca")
# Keys and roles of turns, and what they are of `templates.PARTS`.
_HELD = {"tool_calls": "calls", "reasoning_content": "reasoning", "tool": "results"}
# How the chat template is to render a row: the tools that it offers, and further arguments.
_RENDERED = ("tools", "chat_template_kwargs")
_FIELDS = {
    "messages": ("messages", "system", *_RENDERED),
    "sharegpt": ("conversations", "system", *_RENDERED),
    "prompt_completion": ("prompt", "completion", "system", *_RENDERED),
    "alpaca": ("instruction", "input", "output", "system", "history", *_RENDERED),
}
# The one that holds or ends with the answer; and those that a row may leave out.
_ANSWER = {"messages": "messages", "sharegpt": "conversations", "prompt_completion": "completion", "alpaca": "output"}
_OPTIONAL = ("input", "system", "history", *_RENDERED)
# Other names of fields that a row may leave out.
_ALIASES = {"input": ("context", "passage"), "system": ("system_prompt",), "tools": ("functions",)}
# Arguments of `apply_chat_template` that are no variables of a template, or that a training sets itself.
_NO_VARIABLES = frozenset(
    (
        *("chat_template", "tools", "documents", "messages", "add_generation_prompt", "continue_final_message"),
        *("tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict", "tokenizer_kwargs"),
        *("return_assistant_tokens_mask", "sanitize_control_tokens"),
    )
)
# Columns that carry meaning where they hold something; a row that has them is not right without them.
_ONCE = "the tools stand in another column too; keep one"
_INTO_TURN = "write it into the assistant's turn that it belongs to, in rows of the format messages"
_INTO_PROMPT = "write it into the prompt where it belongs, or delete the column"
_OF_ROWS = "rows have no weights and no marks: delete the rows that are not to be learnt, and the column"
_REFUSED = {
    **{key: why for key, why in turns.REFUSED.items() if key != "loss_scale"},
    **dict.fromkeys((*turns.CALLS, *turns.REASONING), _INTO_TURN),
    "functions": _ONCE,
    **dict.fromkeys(("history", "context", "input", "passage", "choices", "options"), _INTO_PROMPT),
    **dict.fromkeys(("loss_scale", "loss_weight", "sample_weight"), _OF_ROWS),
}
# Columns that say where a row is from, and how it was rated or counted: nothing that an answer follows from.
HARMLESS = frozenset(
    (
        *("id", "_id", "idx", "index", "uid", "uuid", "guid", "row_id", "example_id", "prompt_id", "message_id"),
        *("conversation_id", "conv_id", "__index_level_0__", "hash", "md5", "sha256", "tags", "meta", "metadata"),
        *("source", "dataset", "origin", "category", "domain", "group", "language", "lang", "license", "author"),
        *("url", "link", "date", "timestamp", "created", "created_at", "updated_at", "version", "model", "model_name"),
        *("score", "rating", "quality", "length", "num_tokens", "token_count", "num_turns"),
    )
)

_HELP = (
    f"set data_format ({', '.join(FORMATS[1:])}) or data_columns, for example {{prompt: question, completion: answer}}"
)


def candidates(data_format: str, columns: Mapping[str, str]) -> list[str]:
    """The formats that the recipe leaves open: one if `data_format` or the fields in `data_columns` decide it."""
    if data_format not in FORMATS:
        raise InputError(f"data_format is {data_format!r}{nearest(data_format, FORMATS)}; write {', '.join(FORMATS)}")
    formats = list(_FIELDS) if data_format == "auto" else [data_format]
    known = list(dict.fromkeys(field for name in formats for field in _FIELDS[name]))
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
    refuse(problems)
    return fitting


class Rules:
    """What a row of one format has to be, the same for every split; `columns` are of the fields with other names."""

    def __init__(
        self, candidates: list[str], columns: Mapping[str, str], group_column: str | None, reader: turns.Reader
    ) -> None:
        self.candidates = candidates
        self.detected = len(candidates) > 1
        self.format = ""
        self.columns = dict(columns)
        self.group_column = group_column
        self.reader = reader
        self.answers = reader.answers
        self.needed: list[str] = []
        self.known: set[str | None] = set()
        self.refused: dict[str, str] = {}  # columns that are refused where they hold something, and why
        self.marks: list[str] = []
        self.holds: set[str] = set()
        """What the rows hold that not every chat template renders, of `templates.PARTS`."""
        self.variables: dict[str, type] = {}  # what they set of the chat template, and of which type
        self.settled: dict[str, str] = {}  # the column of each field that all rows have
        self.source = self.first = ""
        """The source that is read, and the one whose first row has settled all this."""
        self.several: str | None = None  # the first row with several answers to learn
        self.masked: str | None = None
        """The first row with an answer before the last one that is not to be learnt."""
        self.shortened = 0  # rows that end before what follows their last answer to learn
        self.prompt_type: type | None = None  # of prompts and completions; None until the first row

    @property
    def conversational(self) -> bool:
        """Whether rows are turns: all but prompts and completions that are strings."""
        return self.prompt_type is not str

    def recognise(self, source: str, row: Row, problems: Problems) -> None:
        """Settle the format by the columns of the first row of all."""
        self.source = source
        if self.format:
            return
        given, self.first = dict(self.columns), source
        fitting = [name for name in self.candidates if all(self._column(key, row) in row for key in _required(name))]
        ways = [] if fitting or "alpaca" not in self.candidates else names.readings(row)
        if len(ways) == 1:
            fitting, self.columns = ["alpaca"], {**ways[0], **self.columns}
        elif not self.detected:
            fitting = self.candidates
        if len(fitting) > 1:
            problems.add(source, f"the columns {listed(row)} fit the formats {', '.join(fitting)}; {_HELP}")
        elif not fitting or (self.answers and len(ways) > 1):
            problems.add(source, names.unknown(row, self.columns))
        problems.stop()
        self.format = fitting[0]
        self.reader.sharegpt = self.format == "sharegpt"
        fields = _FIELDS[self.format]
        required = {*_required(self.format), *self.columns}
        if not self.answers:
            required -= {_ANSWER[self.format]} - {"messages", "conversations"}
        self.columns = {field: self._column(field, row) for field in fields}
        self.settled = {field: self.columns[field] for field in fields if field in required}
        self.needed = [*self.settled.values()]
        used = {*self.columns.values(), self.group_column}
        # The same class in numbers.
        used |= {"label"} if "label_text" in used else set()
        self.known = used | _REFUSED.keys() | turns.MARKS.keys()
        self.refused = {key: why for key, why in _REFUSED.items() if key not in used}
        self.marks = [key for key in turns.MARKS if key not in used]
        if told := {column: field for field, column in self.settled.items() if column != given.get(field, field)}:
            said = ", ".join(f"{column} as {field}" for column, field in told.items())
            self.reader.note(f"columns: {said}, recognised by their names")

    def _column(self, field: str, row: Row) -> str:
        """The recipe's column for a field, or the row's, whatever its case."""
        there = {column.lower(): column for column in row}
        known = (name for name in (field, *_ALIASES.get(field, ())) if name in there)
        found = field if field in row else there.get(next(known, ""), field)
        return self.columns.get(field, found)

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

    def _answered(self, row: Row) -> Row:
        """The row with an answer that stands in for the one it may lack, so that it can be checked like any other."""
        column = self.columns[_ANSWER[self.format]]
        turn = {"role": "assistant", "content": "answer"}
        if self.format in ("alpaca", "prompt_completion"):
            return {**row, column: "answer" if self.format == "alpaca" or self.prompt_type is str else [turn]}
        held = self.reader.decoded(row.get(column), column, [])
        last = held[-1] if isinstance(held, list) and held else None
        if isinstance(last, dict) and turns.meant(str(last.get("role") or last.get("from"))) != "assistant":
            return {**row, column: [*held, turn]}
        return row

    def normalise(self, row: Row, faults: list[str], place: str = "") -> Row:
        """The row of a place in TRL's shape: right if nothing was added to `faults`."""
        faults += turns.refused(row, self.refused)
        faults += [f"{key} is not supported; {_OF_ROWS}" for key in self.marks if key in row and _marks(row, key)]
        self.reader.unused.update(row.keys() - self.known)
        if missing := [column for column in self.needed if column not in row]:
            near = "".join(nearest(column, row) for column in missing[:1])
            are = "is" if len(missing) == 1 else "are"
            have = f"the row has {listed(row)}"
            faults.append(f"{listed(missing)} {are} missing{near}, {have}: {self._instead(row)}")
        if faults:
            return {}
        row = row if self.answers else self._answered(row)
        return self._turns_of(row, faults, place) | self._rendered(row, faults)

    def _turns_of(self, row: Row, faults: list[str], place: str) -> Row:
        if self.format == "alpaca":
            return {"messages": self._conversation(self._alpaca(row, faults), "the row", faults, place)}
        if self.format == "prompt_completion":
            return self._prompt_completion(row, faults, place)
        column = self.columns[_ANSWER[self.format]]
        found = self._with_system(row, self.reader.turns(row[column], column, faults), faults)
        return {"messages": self._conversation(found, column, faults, place)}

    def _rendered(self, row: Row, faults: list[str]) -> Row:
        """How the chat template is to render a row, as TRL takes it: the tools as JSON in a text."""
        found: Row = {}
        if tools := self._tools(row, faults):
            text = json.dumps(tools, ensure_ascii=False)
            found["tools"] = self.reader.text(text, self.columns["tools"], faults)
            self.holds.add("tools")
        if kwargs := self._template_kwargs(row, faults):
            found["chat_template_kwargs"] = kwargs
        if found and not self.conversational:
            columns = listed(self.columns[field] for field in found)
            fix = "write prompt and completion as lists of turns, which a chat template renders"
            faults.append(f"{columns} stands beside a prompt that is plain text; {fix}")
        return found

    def _tools(self, row: Row, faults: list[str]) -> list[Any]:
        """The tools of a row as JSON schemas, each as templates take it: `{"type": "function", "function": ...}`."""
        column = self.columns["tools"]
        if row.get(column) is None:
            return []
        value = given = turns.from_json(row.get(column))
        value = [] if value in (None, "", {}) else [value] if isinstance(value, dict) else value
        tools = [turns.from_json(each) for each in value] if isinstance(value, list) else [None]
        tools = [each if not _is_tool(each) else {"type": "function", "function": each} for each in tools]
        wrong = [each for each in tools if not isinstance(each, dict) or not _is_tool(each.get("function"))]
        if wrong:
            held = shown(given if wrong == [None] else wrong[0])
            schema = '{"type": "function", "function": {"name": ..., "description": ..., "parameters": {...}}}'
            faults.append(f"{column} holds {held}; write a list of JSON schemas, each as {schema}")
            return []
        if self.reader.columnar and not isinstance(row.get(column), str) and turns.has_null(tools):
            faults.append(f"{column} {turns.filled(column)}")
        return tools

    def _template_kwargs(self, row: Row, faults: list[str]) -> Row:
        """The arguments of a row for its chat template, of one type in all rows, as Arrow needs them."""
        column = self.columns["chat_template_kwargs"]
        value = turns.from_json(row.get(column))
        if value in (None, ""):
            return {}
        if not isinstance(value, dict):
            faults.append(f'{column} holds {shown(value)}; write an object, such as {{"enable_thinking": false}}')
            return {}
        kwargs = {key: held for key, held in value.items() if held is not None}
        for key, held in kwargs.items():
            if key in _NO_VARIABLES:
                faults.append(f"{column}.{key} is not for a row to say; delete it")
            elif isinstance(held, str):
                self.reader.text(held, f"{column}.{key}", faults, blank=True)
            elif not isinstance(held, (bool, int, float)):
                faults.append(f"{column}.{key} holds {shown(held)}; write true, false, a number or a text")
            if self.variables.setdefault(key, type(held)) is not type(held):
                faults.append(
                    f"{column}.{key} holds {shown(held)}, of another type than in earlier rows; write one type"
                )
        return kwargs

    def _instead(self, row: Row) -> str:
        """What to write where columns are missing."""
        if not self.answers:
            return "name the columns as those of the training rows"
        if self.source != self.first:
            return f"name them as in {self.first}, or train with DATA={self.first}, which holds out rows of its own"
        if self.format != "alpaca":
            return f"write it, or {_HELP}"
        example = names.guess(row)
        return f"write it, or for example {names.setting(example)}" if example else "write it, or delete the row"

    def _optional(self, field: str, row: Row, faults: list[str]) -> str:
        column = self.columns[field]
        value = row.get(column)
        return "" if value is None else self.reader.text(value, column, faults, blank=True)

    def _with_system(self, row: Row, found: list[Turn], faults: list[str]) -> list[Turn]:
        """The turns after that of the row's system column, if it has one."""
        system, column = self._optional("system", row, faults), self.columns["system"]
        if not system.strip():
            return found
        self.reader.note(f"{column}: the system turn of its row")
        if found and found[0].role == "system":
            if found[0].content != system:
                faults.append(f"{column} and {found[0].place} are two system turns; keep one")
            return found
        return [Turn(column, "system", system), *found]

    def _alpaca(self, row: Row, faults: list[str]) -> list[Turn]:
        asked, extra, answer = self.columns["instruction"], self.columns["input"], self.columns["output"]
        prompt, more = self.reader.text(row[asked], asked, faults), self._optional("input", row, faults)
        if more.strip():
            prompt = f"{prompt}\n\n{more}"
            if extra != "input":
                self.reader.note(f"{extra}: joined to {asked}")
        found = [*self._history(row, faults), Turn(asked, "user", prompt)]
        answered = self.reader.text(row[answer], answer, faults, answer=True)
        return self._with_system(row, [*found, Turn(answer, "assistant", answered)], faults)

    def _history(self, row: Row, faults: list[str]) -> list[Turn]:
        """The rounds before a row of Alpaca's, as LLaMA-Factory has them: pairs of question and answer."""
        column = self.columns["history"]
        rounds = row.get(column)
        if not rounds:
            return []
        if isinstance(rounds, str):
            # A cell of CSV.
            with contextlib.suppress(ValueError, RecursionError):
                rounds = json.loads(rounds)
        if not isinstance(rounds, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in rounds):
            faults.append(f"{column} holds {shown(rounds)}; write a list of [question, answer] pairs")
            return []
        if rounds:
            self.reader.note(f"{column}: rounds before {self.columns['instruction']}, whose answers are learnt too")
        return [
            Turn(place, role, self.reader.text(text, place, faults))
            for number, pair in enumerate(rounds)
            for place, role, text in zip((f"{column}[{number}]",) * 2, ("user", "assistant"), pair, strict=True)
        ]

    def _prompt_completion(self, row: Row, faults: list[str], place: str) -> Row:
        asked, answer = (self.columns[field] for field in ("prompt", "completion"))
        values = {column: self.reader.decoded(row[column], column, faults) for column in (asked, answer)}
        if self.prompt_type is None and isinstance(values[asked], (str, list)):
            self.prompt_type = type(values[asked])
        if self.prompt_type is str and isinstance(values[answer], (bool, int, float)):
            values[answer] = self.reader.text(values[answer], answer, faults, answer=True)
        for column, value in values.items():
            if self.prompt_type is None or not isinstance(value, self.prompt_type):
                fix = "a list of messages" if self.prompt_type is list else "a string"
                faults.append(f"{column} holds {shown(value)}; write {fix}, as in every row")
        if faults:
            return {}
        if self.prompt_type is str:
            if self._optional("system", row, faults).strip():
                fix = "write it into the prompt, or write prompt and completion as lists of turns"
                faults.append(f"{self.columns['system']} stands beside a prompt that is plain text; {fix}")
            found = {"prompt": self.reader.text(values[asked], asked, faults)}
            return found | {"completion": self.reader.text(values[answer], answer, faults)}
        prompt, completion = (self.reader.turns(value, column, faults) for column, value in values.items())
        prompt = self._with_system(row, prompt, faults)
        if len(completion) > 1:
            faults.append(
                f"{answer} holds {len(completion)} turns; write the one assistant turn to learn, "
                "or use the format messages to learn several"
            )
        messages = self._conversation(prompt + completion, answer, faults, place, len(prompt))
        return {"prompt": messages[:-1], "completion": messages[-1:]}

    def _conversation(
        self, found: list[Turn], column: str, faults: list[str], place: str, asked: int = 0
    ) -> list[dict[str, str]]:
        """Check the order of the turns, once each of them is right for itself; the first ones are `asked` alone."""
        if faults:
            return []
        roles = [turn.role for turn in found]
        start = 1 if roles[0] == "system" else 0
        if "assistant" not in roles:
            faults.append(f"{column} has no assistant turn; add the answer to learn, or delete the row")
            return []
        for index, (where, role, *_) in enumerate(found):
            if role == "system" and index:
                faults.append(f"{where} is a system turn; move it to the front, where the one system turn belongs")
            elif role == "assistant" and index == start:
                faults.append(f"{where} is an answer to nothing; put a user turn before it")
            elif role == "tool" and not _follows_call(found[:index]):
                faults.append(f"{where} is the result of no call; put an assistant turn with tool_calls before it")
            elif index and role == roles[index - 1] and role != "tool":
                faults.append(f"{where} is a second {role} turn in a row; join the two, or add the turn between them")
        if roles[-1] != "assistant":
            faults.append(
                f"{found[-1].place} is the last turn, but of the {roles[-1]}; end with the assistant's answer"
            )
        return self._learnt(found, column, faults, place, asked)

    def _learnt(
        self, found: list[Turn], column: str, faults: list[str], place: str, asked: int
    ) -> list[dict[str, str]]:
        """The turns up to the last answer that is to be learnt; what follows it has no part in any loss."""
        answers = [index for index, turn in enumerate(found) if turn.role == "assistant" and index >= asked]
        faults += [
            f"{turn.place} is marked to be learnt, and the loss is on answers alone; delete the mark"
            for index, turn in enumerate(found)
            if turn.learnt and index not in answers
        ]
        learnt = [index for index in answers if found[index].learnt is not False]
        if not learnt:
            faults.append(f"{column} marks no answer to be learnt; delete the row")
            return []
        kept = found[: learnt[-1] + 1]
        if learnt != answers[: len(learnt)]:
            self.masked = self.masked or place
            if len(learnt) > 1:
                fix = "write the row once for each answer to learn, ending with it"
                faults.append(f"{column} has several answers to be learnt and others not; {fix}")
        elif len(learnt) > 1:
            self.several = self.several or place
        self.shortened += len(kept) < len(found)
        if "tool_calls" in kept[-1].more:
            self.holds.add("call answers")
        for turn in kept:
            if turn.more or turn.role in _HELD:
                self.holds.update(_HELD[key] for key in (*turn.more, turn.role) if key in _HELD)
        return [turn.message for turn in kept]


def _is_tool(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("name"), str) and bool(value["name"])


def _follows_call(before: list[Turn]) -> bool:
    return bool(before) and (before[-1].role == "tool" or "tool_calls" in before[-1].more)


def _required(name: str) -> list[str]:
    return [field for field in _FIELDS[name] if field not in _OPTIONAL]


def _marks(row: Row, key: str) -> bool:
    """Whether a row says of itself that it counts otherwise than others."""
    value = row.get(key)
    return isinstance(value, (bool, int, float)) and value != turns.MARKS[key]
