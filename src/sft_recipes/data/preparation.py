"""From a user's rows, in files or on the Hub, to the directory of JSON lines that TRL trains on.

Every row is read, checked and brought into one of TRL's two shapes. A row that cannot be trained on as it stands is
an error that names its place; none is dropped, cut or repaired.
"""

import difflib
import hashlib
import json
import re
import shutil
import uuid
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft_recipes.data.readers import Problems, Row, Source, file_source, hub_sources
from sft_recipes.errors import InputError, listed, nearest, shown
from sft_recipes.recipes.recipe import Recipe
from sft_recipes.terminal import count

CACHE = Path(".cache/data")
GROUPS = "groups.json"
# Part of every fingerprint: raise it when the same sources would be prepared differently.
PREPARATION_VERSION = 1

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

_TEXT: dict[str, Any] = {"encoding": "utf-8", "newline": "\n"}
_HELP = (
    f"set data_format ({', '.join(FORMATS[1:])}) or data_columns, for example {{prompt: question, completion: answer}}"
)
# Rows between two calls of a progress function.
PROGRESS_ROWS = 1000
# What a "\ud800" in JSON becomes.
_SURROGATE = re.compile("[\ud800-\udfff]")

_Turn = tuple[str, str, str]  # the place in the row, the role, the content


@dataclass(frozen=True)
class Prepared:
    """A directory that `datasets.load_dataset(str(directory))` reads, and what is known about it.

    Args:
        directory: holds `train.jsonl`, `validation.jsonl` and `test.jsonl` where there are such, and `facts.json`.
        fingerprint: SHA-256 over the sources' content and everything that decides what is made of it.
        kind: "prompt_completion" (loss on the one answer of a row) or "messages" (loss on every assistant turn).
        conversational: whether the rows are turns, which a chat template renders, or plain text.
        format: what the user's rows were in: one of `FORMATS`, never "auto".
        splits: for each split its `source`, the source's `sha256` and `rows`, and `prepared_rows`, those of the split.
        notes: one sentence for each decision that was made.
    """

    directory: Path
    fingerprint: str
    kind: str
    conversational: bool
    format: str
    splits: dict[str, dict[str, Any]]
    notes: tuple[str, ...]


_SOURCE = (
    *("train_file", "validation_file", "test_file", "dataset_name", "dataset_config"),
    *("dataset_train_split", "dataset_test_split", "data_format", "data_columns", "group_column"),
)


def source_of(recipe: Recipe) -> dict[str, Any]:
    """Where the recipe's rows come from and how they are read, as `prepare` takes it."""
    # Nothing is held out when nothing is evaluated.
    held_out = recipe["validation_split_size"] if recipe["eval_strategy"] != "no" else 0.0
    return {**{key: recipe[key] for key in _SOURCE}, "validation_split_size": held_out}


def prepare(
    *,
    train_file: str | None,
    validation_file: str | None,
    test_file: str | None = None,
    dataset_name: str | None = None,
    dataset_config: str | None = None,
    dataset_train_split: str = "train",
    dataset_test_split: str = "test",
    data_format: str = "auto",
    data_columns: Mapping[str, str] | None = None,
    group_column: str | None = None,
    validation_split_size: float = 0.0,
    cache: Path,
    on_rows: Callable[[int], None] | None = None,
) -> Prepared:
    """Check and convert the rows of `train_file` or `dataset_name` into a directory below `cache`.

    The validation rows are those of `validation_file`, or of the Hub dataset's test split, or the share
    `validation_split_size` of the training rows, or none. The rows of `test_file` decide nothing about the others.
    The values of `group_column` in the rows held out, which the evaluation goes by, are kept beside them (`groups`).
    `on_rows` is told how many rows have been read, every `PROGRESS_ROWS`; never for a directory that is there already.

    Raises:
        InputError: with everything that is wrong; nothing is left in `cache` then.
    """
    columns = dict(data_columns or {})
    rules = _Rules(_candidates(data_format, columns), columns, group_column)
    if (train_file is None) == (dataset_name is None):
        given = "neither is" if train_file is None else "both are"
        raise InputError(f"give one of train_file and dataset_name: {given} given")
    if not 0 <= validation_split_size < 1:
        raise InputError(f"validation_split_size is {validation_split_size}; write a share from 0 up to, not with, 1")

    sources: dict[str, Source] = {}
    if dataset_name is not None:
        wanted = None if validation_file else dataset_test_split
        sources = hub_sources(dataset_name, dataset_config, dataset_train_split, wanted)
    for split, file in {"train": train_file, "validation": validation_file, "test": test_file}.items():
        if file is not None:
            sources[split] = file_source(file, f"{split}_file")
    share = 0.0 if "validation" in sources else validation_split_size

    contents = {split: [source.reader, source.sha256] for split, source in sources.items()}
    decisive = [PREPARATION_VERSION, contents, data_format, columns, float(share)]
    decisive += [] if group_column is None else [group_column]
    fingerprint = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
    directory = cache / fingerprint[:16]
    facts = _complete(directory, fingerprint)
    if facts is None:
        staging = cache / f".{directory.name}.{uuid.uuid4().hex}"
        staging.mkdir(parents=True)
        try:
            facts = {"fingerprint": fingerprint, **_write(staging, sources, rules, share, on_rows)}
            (staging / "facts.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
            _publish(staging, directory, fingerprint)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    for split, split_facts in facts["splits"].items():
        # The directory may have been made from files of the same content under other names.
        split_facts["source"] = sources.get(split, sources["train"]).name
    notes = _notes(facts, share)
    if share != validation_split_size:
        name = facts["splits"]["validation"]["source"]
        notes.append(f"validation_split_size {validation_split_size} is not used: the validation rows are {name}")
    known = {key: facts[key] for key in ("kind", "conversational", "format", "splits")}
    return Prepared(directory, fingerprint, **known, notes=tuple(notes))


def groups(prepared: Prepared, split: str) -> list[str | None]:
    """The value of `group_column` in each row of a split; None where the row has none, or the split was not kept."""
    path = prepared.directory / GROUPS
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return kept.get(split) or [None] * prepared.splits[split]["prepared_rows"]


def prompts(
    name: str, data_format: str, data_columns: Mapping[str, str] | None, *, conversational: bool
) -> list[tuple[Row, Any]]:
    """The rows of a file as they are, each with what a model is asked: a text, or the turns before the answer.

    They are read and checked as training rows are, but need no answer; one that is there is not looked at.

    Args:
        name: The file.
        data_format: What the training rows were in, never "auto".
        data_columns: As in the recipe.
        conversational: Whether the training rows were turns, or plain text.

    Raises:
        InputError: With everything that is wrong.
    """
    rules = _Rules([data_format], data_columns or {}, None)
    rules.prompt_type = list if conversational else str
    problems = Problems()
    found = []
    for place, row in file_source(name).rows(problems):
        rules.recognise(name, row, problems)
        faults: list[str] = []
        answered = rules.normalise(rules.answered(row), faults)
        problems.add(place, *faults)
        if not faults:
            found.append((row, answered["messages"][:-1] if "messages" in answered else answered["prompt"]))
    if not found and not problems.count:
        problems.add(name, "has no rows; write at least one")
    problems.stop()
    return found


def _complete(directory: Path, fingerprint: str) -> dict[str, Any] | None:
    """The facts of a prepared directory, or None if it is absent or something of it is missing."""
    try:
        facts: dict[str, Any] = json.loads((directory / "facts.json").read_text(encoding="utf-8"))
        whole = facts["fingerprint"] == fingerprint
        whole &= all((directory / f"{split}.jsonl").is_file() for split in facts["splits"])
    except (OSError, ValueError, KeyError):
        return None
    return facts if whole else None


def _publish(staging: Path, directory: Path, fingerprint: str) -> None:
    try:
        staging.rename(directory)
    except OSError:
        # Another process was faster, and its directory is as good; or an old directory lost a file.
        if _complete(directory, fingerprint) is None:
            shutil.rmtree(directory)
            staging.rename(directory)


def _write(
    staging: Path,
    sources: Mapping[str, Source],
    rules: "_Rules",
    share: float,
    on_rows: Callable[[int], None] | None,
) -> dict[str, Any]:
    """Write the splits into `staging` and return the facts about them."""
    problems = Problems()
    origins = {split: split for split in sources} | ({"validation": "train"} if share else {})
    one_answer = True
    read, written = dict.fromkeys(sources, 0), dict.fromkeys(origins, 0)
    groups: dict[str, list[str | None]] = {split: [] for split in origins if split != "train"}
    evaluated = "test" if "test" in groups else "validation"
    with ExitStack() as stack:
        files = {split: stack.enter_context((staging / f"{split}.jsonl").open("w", **_TEXT)) for split in origins}
        for split, source in sources.items():
            for place, row in source.rows(problems):
                read[split] += 1
                if on_rows and not (total := sum(read.values())) % PROGRESS_ROWS:
                    on_rows(total)
                faults: list[str] = []
                rules.recognise(source.name, row, problems)
                line = json.dumps(rules.normalise(row, faults), ensure_ascii=False)
                target = "validation" if share and split == "train" and _chosen(line, share) else split
                # Rows for the evaluation at the end must have it; others may.
                group = rules.group(row, faults if target == evaluated else [])
                problems.add(place, *faults)
                if not problems.count:
                    files[target].write(line + "\n")
                    written[target] += 1
                    if target in groups:
                        groups[target].append(group)
            if not read[split] and not problems.count:
                problems.add(source.name, "has no rows; write at least one")
            if split != "test":
                one_answer = rules.one_answer
    problems.stop()
    if not all(written.values()):
        raise InputError(
            f"validation_split_size {share} puts all {read['train']:,} rows of {sources['train'].name} on one side "
            "(equal rows stay together): give a validation_file, more rows or another share"
        )
    if one_answer and rules.format != "prompt_completion":
        for split in origins:
            _split_off_answers(staging / f"{split}.jsonl")
    if rules.group_column is not None:
        (staging / GROUPS).write_text(json.dumps(groups), encoding="utf-8")
    facts: dict[str, Any] = {
        "kind": "prompt_completion" if one_answer else "messages",
        "conversational": rules.conversational,
        "format": rules.format,
        "detected": rules.detected,
        "unused": sorted(rules.unused),
        "splits": {
            split: {
                "source": sources[origin].name,
                "sha256": sources[origin].sha256,
                "rows": read[origin],
                "prepared_rows": written[split],
            }
            for split, origin in origins.items()
        },
    }
    return facts | {"notes": _notes(facts, share)}


def _chosen(line: str, share: float) -> bool:
    """Whether a row is one of the validation share: by its content alone, so equal rows stay on one side."""
    return int.from_bytes(hashlib.sha256(line.encode()).digest()[:8], "big") < share * 2**64


def _split_off_answers(path: Path) -> None:
    """Turn rows of messages into prompt and completion; TRL then needs no help of the chat template for the loss."""
    converted = path.with_suffix(".converted")
    with path.open(**_TEXT) as lines, converted.open("w", **_TEXT) as file:
        for line in lines:
            messages = json.loads(line)["messages"]
            row = {"prompt": messages[:-1], "completion": messages[-1:]}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    converted.replace(path)


def _notes(facts: dict[str, Any], share: float) -> list[str]:
    notes = [
        f"format: {facts['format']}, {'recognised by its columns' if facts['detected'] else 'as the recipe says'}"
    ]
    if facts["unused"]:
        notes.append(f"not used: {listed(facts['unused'])}")
    several = "every assistant turn, since some rows have several"
    notes.append(f"loss: on {several if facts['kind'] == 'messages' else 'the one answer that ends each row'}")
    for split, of_split in facts["splits"].items():
        prepared, rows = of_split["prepared_rows"], of_split["rows"]
        number = count(rows, "row") if prepared == rows else f"{prepared:,} of {count(rows, 'row')}"
        by_hash = f", chosen by a hash of the row (validation_split_size {share})"
        notes.append(f"{split}: {number} of {of_split['source']}{by_hash if share and split == 'validation' else ''}")
    if "validation" not in facts["splits"]:
        notes.append("validation: none (no validation file or split, and validation_split_size is 0)")
    return notes


def _candidates(data_format: str, columns: Mapping[str, str]) -> list[str]:
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


class _Rules:
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
            near = difflib.get_close_matches(role.lower(), roles, 1) if isinstance(role, str) else []
            faults.append(f"{place}.{key} holds {shown(role)}; write {listed(near) or 'one of ' + listed(roles)}")
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
