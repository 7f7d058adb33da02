"""The data a run is trained on: what is accepted, what it becomes, and what is refused with which words."""

import gzip
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from sft_recipes.data import preparation
from sft_recipes.data.preparation import Prepared, prepare
from sft_recipes.errors import InputError
from sft_recipes.files import publish
from sft_recipes.recipes.recipe import parse_overrides


def turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def talk(question: Any = "2 + 2?", answer: Any = "4") -> dict[str, Any]:
    return {"messages": [turn("user", question), turn("assistant", answer)]}


A_CLASS = "write a string, or set task: classification, for which it is a class"
UNKNOWN = "write it into the prompt if an answer follows from it"


def pair(question: str = "2 + 2?", answer: str = "4") -> dict[str, Any]:
    return {"prompt": [turn("user", question)], "completion": [turn("assistant", answer)]}


LONG_TALK = [turn("system", "Be brief."), turn("user", "Hi"), turn("assistant", "Hello"), *talk()["messages"]]


class Workplace:
    """A directory with the user's files and the cache."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.cache = root / "cache"

    def write(self, name: str, content: bytes | str | list[Any]) -> str:
        if isinstance(content, list):
            content = "".join(json.dumps(row) + "\n" for row in content)
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    def prepare(self, train: bytes | str | list[Any], name: str = "train.jsonl", **options: Any) -> Prepared:
        options = {"validation_file": None, **options}
        return prepare(train_file=self.write(name, train), cache=self.cache, **options)

    def rows(self, train: bytes | str | list[Any], name: str = "train.jsonl", **options: Any) -> list[Any]:
        return read(self.prepare(train, name, **options))

    def problems(self, train: bytes | str | list[Any], name: str = "train.jsonl", **options: Any) -> list[str]:
        """The problems that are found, with paths relative to the root; nothing may be left of the attempt."""
        with pytest.raises(InputError) as raised:
            self.prepare(train, name, **options)
        assert not self.cache.exists() or not list(self.cache.iterdir())
        return [problem.replace(f"{self.root}/", "") for problem in raised.value.problems]

    def problem(self, train: bytes | str | list[Any], name: str = "train.jsonl", **options: Any) -> str:
        (only,) = self.problems(train, name, **options)
        return only


def read(prepared: Prepared, split: str = "train") -> list[Any]:
    text = (prepared.directory / f"{split}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n")[:-1]]


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    return Workplace(tmp_path)


# Formats


def test_messages_with_one_answer_become_prompt_and_completion(place: Workplace) -> None:
    system = {"messages": [turn("system", ""), *talk()["messages"]]}
    prepared = place.prepare([talk("naïve 你好", "\u2028 ok"), system])
    assert (prepared.kind, prepared.format) == ("prompt_completion", "messages")
    assert read(prepared) == [
        pair("naïve 你好", "\u2028 ok"),
        {"prompt": [turn("system", ""), turn("user", "2 + 2?")], "completion": [turn("assistant", "4")]},
    ]
    assert "你好" in (prepared.directory / "train.jsonl").read_text(encoding="utf-8")


def test_one_row_with_several_answers_keeps_all_rows_as_messages(place: Workplace) -> None:
    validation = place.write("validation.jsonl", [{"messages": LONG_TALK}])
    prepared = place.prepare([talk()], validation_file=validation)
    assert prepared.kind == "messages"
    assert read(prepared) == [talk()]
    assert read(prepared, "validation") == [{"messages": LONG_TALK}]


@pytest.mark.parametrize("several", [False, True])
def test_rows_are_held_out_by_their_messages_however_they_are_written(place: Workplace, several: bool) -> None:
    rows = [talk(f"What is {number}?") for number in range(60)] + [{"messages": LONG_TALK}] * several
    rows[7]["chat_template_kwargs"] = {"formal": True}

    def drawn(row: Any) -> bool:
        digest = hashlib.sha256(json.dumps(row, ensure_ascii=False).encode()).digest()
        return int.from_bytes(digest[:8], "big") < 0.3 * 2**64

    def written(row: Any) -> Any:
        parts = row if several else {"prompt": row["messages"][:-1], "completion": row["messages"][-1:], **row}
        return {key: parts[key] for key in parts if several or key != "messages"} | {
            "chat_template_kwargs": row.get("chat_template_kwargs", {})
        }

    prepared = place.prepare(rows, validation_split_size=0.3)
    assert read(prepared, "validation") == [written(row) for row in rows if drawn(row)]
    assert read(prepared) == [written(row) for row in rows if not drawn(row)]
    assert 5 < prepared.splits["validation"]["prepared_rows"] < 30


def grouped(group: Any, question: str = "2 + 2?") -> dict[str, Any]:
    return {**talk(question), "style": group}


def test_the_groups_of_held_out_rows_are_kept_beside_them(place: Workplace) -> None:
    test = place.write("test.jsonl", [grouped("formal"), grouped(7), grouped(None)])
    validation = place.write("validation.jsonl", [talk(), grouped("casual")])
    prepared = place.prepare([talk()], validation_file=validation, test_file=test, group_column="style")
    assert preparation.groups(prepared, "test") == ["formal", "7", None]
    assert preparation.groups(prepared, "validation") == [None, "casual"]
    assert read(prepared, "test") == [pair()] * 3
    assert not any("style" in note for note in prepared.notes)
    assert preparation.groups(place.prepare([talk()], test_file=test), "test") == [None] * 3


def test_groups_do_not_decide_which_rows_are_held_out(place: Workplace) -> None:
    rows = [grouped(str(number), f"What is {number}?") for number in range(40)]
    with_groups = place.prepare(rows, validation_split_size=0.3, group_column="style")
    without = place.prepare(rows, validation_split_size=0.3)
    for split in ("train", "validation"):
        assert read(with_groups, split) == read(without, split)
    numbers = [row["prompt"][0]["content"].removeprefix("What is ").rstrip("?") for row in read(without, "validation")]
    assert preparation.groups(with_groups, "validation") == numbers
    assert with_groups.fingerprint != without.fingerprint


def test_a_test_row_without_its_group_is_named(place: Workplace) -> None:
    test = place.write("test.jsonl", [{**talk(), "styel": "formal"}, grouped(["formal"])])
    assert place.problems([talk()], test_file=test, group_column="style") == [
        "test.jsonl:1: group_column style is missing (nearest: 'styel'); write it",
        "test.jsonl:2: style holds a list of 1; write one text or number, the row's group",
    ]


def test_sharegpt(place: Workplace) -> None:
    row = {
        "conversations": [
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "Hi", "weight": 0, "mood": "mild"},
            {"from": "gpt", "value": "Hello"},
            turn("user", "2 + 2?"),
            {"from": "assistant", "value": "4"},
        ]
    }
    prepared = place.prepare([row])
    assert (prepared.kind, prepared.format) == ("messages", "sharegpt")
    assert read(prepared) == [{"messages": LONG_TALK}]
    assert f"not used: 'conversations[].mood'; {UNKNOWN}" in prepared.notes


def test_prompt_and_completion_as_text_are_kept(place: Workplace) -> None:
    rows = [{"prompt": "2 + 2 =", "completion": " 4", "id": 1}, {"prompt": "3 + 3 =", "completion": " 6"}]
    prepared = place.prepare(rows)
    assert (prepared.kind, prepared.format) == ("prompt_completion", "prompt_completion")
    assert read(prepared) == [{"prompt": "2 + 2 =", "completion": " 4"}, rows[1]]


def test_prompt_and_completion_as_turns_keep_the_marked_answer(place: Workplace) -> None:
    row = {"prompt": LONG_TALK[:-1], "completion": LONG_TALK[-1:]}
    prepared = place.prepare([row, pair()])
    assert prepared.kind == "prompt_completion"
    assert read(prepared) == [row, pair()]


def test_alpaca(place: Workplace) -> None:
    rows = [
        {"instruction": "Add.", "input": "2 + 2", "output": "4"},
        {"instruction": "Say hi.", "input": "", "output": "Hi", "system": "Be kind."},
        {"instruction": "Say hi.", "input": None, "output": "Hi", "system": " "},
        {"instruction": "Say hi.", "output": "Hi"},
    ]
    prepared = place.prepare(rows)
    assert (prepared.kind, prepared.format) == ("prompt_completion", "alpaca")
    assert read(prepared) == [
        pair("Add.\n\n2 + 2", "4"),
        {"prompt": [turn("system", "Be kind."), turn("user", "Say hi.")], "completion": [turn("assistant", "Hi")]},
        pair("Say hi.", "Hi"),
        pair("Say hi.", "Hi"),
    ]


@pytest.mark.parametrize(
    ("columns", "row", "expected"),
    [
        ({"messages": "chat"}, {"chat": talk()["messages"]}, pair()),
        (
            {"conversations": "messages"},
            {"messages": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]},
            pair(),
        ),
        ({"prompt": "q", "completion": "a"}, {"q": "x", "a": "y"}, {"prompt": "x", "completion": "y"}),
        ({"completion": "a"}, {"prompt": "x", "a": "y"}, {"prompt": "x", "completion": "y"}),
        ({"instruction": "text", "output": "label"}, {"text": "2 + 2?", "label": "4"}, pair()),
    ],
)
def test_data_columns_decide_the_format(place: Workplace, columns: Any, row: Any, expected: Any) -> None:
    assert place.rows([row], data_columns=columns) == [expected]


def test_data_format_decides_between_two_that_fit(place: Workplace) -> None:
    row = talk() | {"prompt": "x", "completion": "y"}
    assert place.problem([row]) == (
        "train.jsonl: the columns 'messages', 'prompt', 'completion' fit the formats messages, prompt_completion; "
        "set data_format (messages, sharegpt, prompt_completion, alpaca) or data_columns, for example "
        "{prompt: question, completion: answer}"
    )
    assert place.rows([row], data_format="messages") == [pair()]
    assert place.rows([row], data_format="prompt_completion") == [{"prompt": "x", "completion": "y"}]


def test_columns_that_fit_no_format(place: Workplace) -> None:
    said = "train.jsonl: the columns 'v1', 'my text' fit no format; say which is which, for example "
    assert place.problem([{"v1": "ham", "my text": "a longer one"}]) == (
        said + 'SET="data_columns={instruction: my text, output: v1}"'
    )
    assert 'for example SET="data_columns={messages: talk}"' in place.problem([{"talk": [USER, ANSWER]}])
    assert "no question and answer stand apart in the columns 'text'" in place.problem([{"text": "a"}])
    assert "fit the formats messages, alpaca" in place.problem([talk() | {"instruction": "a", "output": "b"}])


# Rows as the Hub's most used sets have them, and what becomes of them.
KNOWN: dict[str, tuple[dict[str, Any], tuple[str, str]]] = {
    "gsm8k": ({"question": "a", "answer": "b"}, ("a", "b")),
    "MetaMathQA": ({"query": "a", "original_question": "c", "response": "b", "type": "d"}, ("a", "b")),
    "OpenOrca": ({"id": 1, "system_prompt": "", "question": "a", "response": "b"}, ("a", "b")),
    "medical-o1": ({"Question": "a", "Response": "b"}, ("a", "b")),
    "sql-create-context": ({"answer": "b", "question": "a", "context": "c"}, ("a\n\nc", "b")),
    "boolq": ({"question": "a", "passage": "c", "answer": "b"}, ("a\n\nc", "b")),
    "Magicoder": ({"problem": "a", "solution": "b", "lang": "c"}, ("a", "b")),
    "HelpSteer2": ({"prompt": "a", "response": "b", "quality": 4}, ("a", "b")),
    "self-oss-instruct": ({"instruction": "a", "input": "c", "response": "b"}, ("a\n\nc", "b")),
    "imdb": ({"text": "a", "label": "b"}, ("a", "b")),
    "sst2": ({"sentence": "a", "label": "b", "idx": 0}, ("a", "b")),
    "SetFit": ({"text": "a", "label": 0, "label_text": "b"}, ("a", "b")),
    "mnli": ({"premise": "a", "hypothesis": "c", "label": "b"}, ("a\n\nc", "b")),
    "qnli": ({"question": "a", "sentence": "c", "label": "b"}, ("a\n\nc", "b")),
    "amazon_polarity": ({"label": "b", "title": "a", "content": "c"}, ("a\n\nc", "b")),
    "clinc_oos": ({"text": "a", "intent": "b"}, ("a", "b")),
    "samsum": ({"id": 1, "dialogue": "a", "summary": "b"}, ("a", "b")),
    "cnn_dailymail": ({"article": "a", "highlights": "b", "id": 1}, ("a", "b")),
}


@pytest.mark.parametrize("name", KNOWN)
def test_the_columns_of_much_used_sets_are_recognised(place: Workplace, name: str) -> None:
    row, (asked, answer) = KNOWN[name]
    assert place.rows([row]) == [{"prompt": [turn("user", asked)], "completion": [turn("assistant", answer)]}]
    prepared = place.prepare([row])
    assert prepared.columns["output"] in row
    assert any(note.startswith("columns: ") for note in prepared.notes)
    # What was recognised is what would have been written.
    assert place.rows([row], data_columns=prepared.columns) == place.rows([row])


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"prompt": "a", "chosen": "b", "rejected": "c"},
            'alone, write SET="data_columns={instruction: prompt, output: chosen}"',
        ),
        ({"chosen": talk()["messages"], "rejected": []}, 'write SET="data_columns={messages: chosen}"'),
        (
            {"problem": "a", "solution": "b", "answer": "c"},
            'can be read in 2 ways; write SET="data_columns={instruction: ',
        ),
        (
            {"text": "a", "label": "b", "intent": "c"},
            'output: label}" or SET="data_columns={instruction: text, output: intent}"',
        ),
        ({"question": "a", "answer": "b", "choices": ["c"]}, "choices is not supported; write it into the prompt"),
    ],
)
def test_what_is_in_doubt_is_not_guessed(place: Workplace, row: Any, expected: str) -> None:
    problem = place.problem([row])
    assert expected in problem
    for words in re.findall(r'SET="([^"]*)"', problem):
        # The advice works as it is typed.
        columns = parse_overrides(words)["data_columns"].value
        assert place.rows([row], data_columns=columns)


def test_ids_of_classes_are_read_by_their_names(place: Workplace, datasets: Any, tmp_path: Path) -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
    )
    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    rows.to_parquet(tmp_path / "rows.parquet")
    prepared = prepare(train_file=str(tmp_path / "rows.parquet"), validation_file=None, cache=place.cache)
    said = (prepared.directory / "train.jsonl").read_text()
    assert '"content": "pos"' in said and '"content": "neg"' in said
    assert "labels: ids in label are read by the names that the set has, 0 is 'neg'" in prepared.notes
    (tmp_path / "set").mkdir()
    (tmp_path / "rows.parquet").rename(tmp_path / "set" / "train.parquet")
    of_set = prepare(train_file=None, dataset_name=str(tmp_path / "set"), validation_file=None, cache=place.cache)
    assert (of_set.directory / "train.jsonl").read_text() == said


def test_unused_columns_are_named(place: Workplace) -> None:
    notes = place.prepare([talk() | {"text": "x", "prompt": "y", "id": 1, "source": "web", "images": None}]).notes
    assert notes[1:3] == ("not used: 'id', 'source'", f"not used: 'prompt', 'text'; {UNKNOWN}")


# Files that are odd but right


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + json.dumps(talk()).encode(),
        json.dumps(talk()) + "\r\n",
        json.dumps(talk()) + "\r",
        "\n \n" + json.dumps(talk()) + "\n\n",
        json.dumps([talk()], indent=2),
        b"\xef\xbb\xbf\r\n" + json.dumps([talk()]).encode(),
    ],
    ids=["bom", "crlf", "cr", "blank lines", "array", "array with bom"],
)
@pytest.mark.parametrize("name", ["train.jsonl", "train.json", "train.NDJSON"])
def test_odd_json_files(place: Workplace, name: str, content: bytes | str) -> None:
    assert place.rows(content, name) == [pair()]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_divide_rows(place: Workplace, end: str) -> None:
    assert place.rows(end.join(json.dumps(talk(q)) for q in "abc")) == [pair(q) for q in "abc"]


def test_other_columns_may_change_their_type_or_appear_late(place: Workplace) -> None:
    rows = [{"id": 1, **talk()}, {"id": "b", **talk()}, {**talk(), "meta": {"k": [1]}}, {**talk(), "meta": "s"}]
    assert place.rows(rows) == [pair()] * 4


def test_content_is_not_interpreted(place: Workplace) -> None:
    text = 'a\0b <|im_end|> \U0001f600 {"role": "x"}\r\n\t'
    assert place.rows([talk(text)]) == [pair(text)]


# CSV and Parquet


def test_csv(place: Workplace) -> None:
    text = '\ufeffprompt,completion,id\r\n"a, ""b""\nc",d,1\r\n\r\ne,f,2\r\n'
    assert place.rows(text, "train.csv") == [
        {"prompt": 'a, "b"\nc', "completion": "d"},
        {"prompt": "e", "completion": "f"},
    ]


def test_csv_with_old_line_ends_and_a_long_cell(place: Workplace) -> None:
    long = "x" * 200_000
    assert place.rows(f"instruction,output\r{long},4\r", "train.csv") == [pair(long)]


def test_tsv(place: Workplace) -> None:
    assert place.rows("prompt\tcompletion\na,b\tc\n", "train.tsv") == [{"prompt": "a,b", "completion": "c"}]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            'prompt,completion\n"a\nb",c\nd,e,f\n',
            "train.csv:4: 3 cells, but the header names 2; put a cell that holds ',' or a line end in double quotes",
        ),
        ("prompt,completion\na,\n", "train.csv:2: completion is blank; write its text, or delete the row"),
        ("prompt,completion\n", "train.csv: has no rows; write at least one"),
        ("prompt;completion\na;b;c\n", "train.csv:2: 3 cells, but the header names 2; put a cell that holds ';'"),
        (
            "prompt,prompt\na,b\n",
            "train.csv:1: the header 'prompt', 'prompt' has an empty or repeated name; name each",
        ),
        (
            'prompt,completion\na,b\nc,"d\ne,f\n',
            "train.csv:3: not CSV: unexpected end of data; put a cell in double quotes and double those inside it",
        ),
        (
            b"prompt,completion\na,b\ncaf\xe9,d\n",
            "train.csv:3: byte 0xE9 is not UTF-8; convert the file, e.g. with: iconv -f LATIN1 -t UTF-8",
        ),
        (
            "messages\nhello\n",
            'train.csv:2: messages holds the string \'hello\'; write a list of {"role": ..., "content": ...} objects',
        ),
    ],
)
def test_csv_refusals(place: Workplace, text: bytes | str, expected: str) -> None:
    assert place.problem(text, "train.csv").startswith(expected)


@pytest.mark.parametrize(("name", "by"), [("train.csv", ";"), ("train.csv", "\t"), ("train.tsv", ",")])
def test_columns_are_separated_as_in_the_header(place: Workplace, name: str, by: str) -> None:
    prepared = place.prepare(f"prompt{by}completion\na. b{by}c\n", name)
    assert read(prepared) == [{"prompt": "a. b", "completion": "c"}]
    assert f"columns: separated by {by!r}, as the header is" in prepared.notes


def cell(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def test_turns_in_a_cell_are_read_out_of_its_json(place: Workplace) -> None:
    turns = json.dumps(talk()["messages"])
    prepared = place.prepare(f"messages,id\n{cell(turns)},1\n", "train.csv")
    assert read(prepared) == [pair()]
    assert "messages: a list of turns that stands as JSON in a text" in prepared.notes
    both = f"{cell(json.dumps([turn('user', 'a')]))},{cell(json.dumps([turn('assistant', 'b')]))}"
    assert place.rows(f"prompt,completion\n{both}\n", "train.csv") == [pair("a", "b")]


def test_turns_in_a_cell_as_python_prints_them_are_refused_once(place: Workplace) -> None:
    python = cell(str(talk()["messages"]))
    assert place.problem(f"messages\n{python}\n{python}\n", "train.csv") == (
        "train.csv:2: messages holds a list as Python prints it; write JSON, in pandas by "
        "df['messages'] = df['messages'].map(json.dumps) (in 2 rows)"
    )


def write_parquet(place: Workplace, rows: list[Any], name: str = "train.parquet") -> bytes:
    path = place.root / name
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)
    return path.read_bytes()


def test_parquet(place: Workplace) -> None:
    rows = [talk(f"question {number}") | {"score": 0.5} for number in range(5)]
    # A column of structs holds the union of the keys, absent ones as null.
    rows[0]["messages"][0]["name"] = None
    rows[0]["messages"][0]["tool_calls"] = None
    prepared = place.prepare(write_parquet(place, rows), "train.parquet")
    assert read(prepared) == [pair(f"question {number}") for number in range(5)]
    assert "not used: 'score'" in prepared.notes


def test_parquet_refusals(place: Workplace) -> None:
    content = write_parquet(place, [{"prompt": "a", "completion": 1}, {"prompt": None, "completion": 2}])
    assert place.problems(content, "train.parquet") == [
        f"train.parquet row 1: completion holds the number 1; {A_CLASS} (in 2 rows)",
        "train.parquet row 2: prompt holds null; write a string, as in every row",
    ]
    broken = place.problem(content[:-40] + b"\0" * 40, "train.parquet")
    assert broken.startswith("train.parquet after row 0: not readable as Parquet (")
    assert broken.endswith("write the file again")


# Refused files


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("train.jsonl", b"", "train.jsonl is empty; write at least one row"),
        ("train.jsonl", b"\n\n", "train.jsonl: has no rows; write at least one"),
        ("train.json", b"[ ]\n", "train.json: has no rows; write at least one"),
        (
            "train.jsonl",
            json.dumps(talk()).encode("utf-16"),
            "train.jsonl is UTF-16; convert it with: iconv -f UTF-16 -t UTF-8",
        ),
        (
            "train.jsonl",
            json.dumps(talk()).encode("utf-16-le"),
            "train.jsonl is UTF-16; convert it with: iconv -f UTF-16 -t UTF-8",
        ),
        (
            "train.gz",
            gzip.compress(b"{}", mtime=0),
            "train.gz is compressed, and its name does not say what is in it; name it such as rows.jsonl.gz",
        ),
        (
            "train.parquet",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\n",
            "train.parquet is a git-LFS pointer and not the data; fetch the data with: git lfs pull",
        ),
        (
            "train.csv",
            b"\n<!DOCTYPE html><html>401 Unauthorized</html>\n",
            "train.csv is a web page, perhaps an error or login page; download the data itself",
        ),
        ("train.parquet", b"{}\n", "train.parquet is not a Parquet file"),
        ("train.jsonl", b"PAR1...", "train.jsonl is a Parquet file; name it .parquet"),
        (
            "train.txt",
            b"hello\n",
            "train.txt has the suffix '.txt'; the supported ones are .jsonl, .ndjson, .json, .csv, .tsv, .parquet, "
            ".arrow, and those of text with .gz or .zst behind them",
        ),
    ],
)
def test_files_that_are_no_data(place: Workplace, name: str, content: bytes, expected: str) -> None:
    assert place.problem(content, name) == expected


def test_missing_file(place: Workplace) -> None:
    place.write("data/train.jsonl", [talk()])
    with pytest.raises(
        InputError, match=r"data/trian.jsonl: no such file \(nearest: 'train.jsonl'\); correct the path"
    ):
        prepare(train_file=str(place.root / "data/trian.jsonl"), validation_file=None, cache=place.cache)
    with pytest.raises(InputError, match=r"no_such/x.jsonl: no such file; correct the path"):
        prepare(train_file="no_such/x.jsonl", validation_file=None, cache=place.cache)


GOOD = json.dumps(talk())


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            GOOD.replace("2 + 2?", "caf\u00e9").encode("latin-1").replace(b"\\u00e9", b"\xe9"),
            "train.jsonl:2: byte 0xE9 is not UTF-8; convert the file, e.g. with: iconv -f LATIN1 -t UTF-8",
        ),
        (
            GOOD[:-20],
            "train.jsonl:2: the JSON ends too early: the file was cut off, or an object covers several lines",
        ),
        (GOOD[:-5], "train.jsonl:2: the JSON ends too early: the file was cut off, or an object covers several lines"),
        (GOOD + ",", "train.jsonl:2: a comma follows the last item; delete it"),
        (GOOD[:-1] + ",}", "train.jsonl:2: a comma follows the last item; delete it"),
        (str(talk()), "train.jsonl:2: single quotes, as Python prints a dict, are not JSON; write double quotes"),
        (GOOD.replace('"4"', "NaN"), "train.jsonl:2: NaN is not JSON; write null, a number or a string"),
        (GOOD.replace('"4"', "-Infinity"), "train.jsonl:2: -Infinity is not JSON; write null, a number or a string"),
        (
            GOOD[:-1] + ', "messages": []}',
            "train.jsonl:2: the key 'messages' occurs twice in an object; keep one",
        ),
        (
            GOOD.replace("4", "\\ud800"),
            "train.jsonl:2: messages[1].content holds '\\ud800', half of a character; write the whole character",
        ),
        ('{"messages": x}', "train.jsonl:2: not JSON: Expecting value at column 14; write one object a line"),
        ('{"a": 1} {"b": 2}', "train.jsonl:2: not JSON: Extra data at column 10; write one object a line"),
        ('["a"]', "train.jsonl:2: a row holds a list of 1; write an object with named columns"),
        ("[" * 100_000, "train.jsonl:2: "),
        ('{"id": ' + "1" * 5000 + "}", "train.jsonl:2: "),
    ],
)
def test_lines_that_are_no_json(place: Workplace, line: bytes | str, expected: str) -> None:
    content = line if isinstance(line, bytes) else line.encode()
    assert place.problem(GOOD.encode() + b"\n" + content + b"\n").startswith(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"[{GOOD},\n {GOOD},\n]", "train.json:3: a comma follows the last item; delete it"),
        (f"[{GOOD},\n {GOOD}\n", "train.json:2: the JSON ends too early"),
        (f"[{GOOD},\n {GOOD[:-2]}", "train.json:2: the JSON ends too early"),
        (f"[{GOOD}\n {GOOD}]", "train.json:1: not JSON: Expecting ',' delimiter at column 94"),
        (f"[{GOOD}]\n[{GOOD}]", "train.json:2: not JSON: Extra data at column 1"),
        (f"[{GOOD}, 5]", "train.json row 2: a row holds the number 5; write an object with named columns"),
        (
            f"[{GOOD}, {GOOD.replace('user', 'usr')}]",
            "train.json row 2: messages[0].role holds the string 'usr'; write 'user'",
        ),
        (f"[{GOOD}, {GOOD.replace(chr(34) + '4' + chr(34), 'NaN')}]", "train.json row 2: NaN is not JSON"),
        (b'[{"prompt": "a",\n"completion": "\xff"}]', "train.json:2: byte 0xFF is not UTF-8"),
        ('{\n  "messages": []\n}', "train.json row 1: messages holds an empty list; write a list of"),
        (f"{json.dumps(talk(), indent=2)}\n" * 2 + "{", "train.json:25: the JSON ends too early"),
        (f"{json.dumps(talk(), indent=2)},\n" * 2, "train.json:12: a comma follows the last item; delete it"),
    ],
)
def test_json_arrays_that_are_refused(place: Workplace, text: bytes | str, expected: str) -> None:
    assert place.problems(text, "train.json")[0].startswith(expected)


ALPACA = [{"instruction": "a", "output": "b"}, {"instruction": "c", "output": "d"}]
COLUMNS = {column: [row[column] for row in ALPACA] for column in ALPACA[0]}


@pytest.mark.parametrize(
    ("document", "note"),
    [
        ({"train": ALPACA}, "rows: the list 'train' of its one object"),
        (
            {"version": "1", "data": ALPACA, "license": "none"},
            "rows: the list 'data' of its one object, without 'license', 'version' beside it",
        ),
        (
            {column: {str(index): text for index, text in enumerate(texts)} for column, texts in COLUMNS.items()},
            "rows: as pandas writes them with orient='columns'",
        ),
        (
            {"columns": [*COLUMNS], "index": [0, 1], "data": [list(row.values()) for row in ALPACA]},
            "rows: as pandas writes them with orient='split'",
        ),
        (dict(zip("01", ALPACA, strict=True)), "rows: as pandas writes them with orient='index'"),
        (COLUMNS, "rows: one list for each column"),
        (
            {"schema": {"fields": [{"name": "instruction"}]}, "data": ALPACA},
            "rows: the list 'data' of its one object, without 'schema' beside it",
        ),
    ],
    ids=lambda value: value.split("=")[-1] if isinstance(value, str) else "",
)
@pytest.mark.parametrize("indent", [None, 2])
def test_rows_in_one_object(place: Workplace, document: Any, note: str, indent: int | None) -> None:
    prepared = place.prepare(json.dumps(document, indent=indent), "train.json")
    assert read(prepared) == [pair("a", "b"), pair("c", "d")]
    assert note in prepared.notes


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (
            {"train": ALPACA, "test": ALPACA},
            "train.json: holds lists of rows under 'train', 'test', and one file is one split; write each into a file "
            "of its own, e.g. with: jq -c '.train[]' FILE > train.jsonl",
        ),
        (
            {"a": ALPACA[0], "b": ALPACA[1]},
            "train.json: holds objects by 'a', 'b', and it is not told whether these are rows or columns; write one "
            'row a line, with pandas: df.to_json("rows.jsonl", orient="records", lines=True)',
        ),
        (
            {"columns": ["instruction"], "data": [["a", "b"]]},
            "train.json: holds columns and data of other lengths; write one row a line, with pandas: "
            'df.to_json("rows.jsonl", orient="records", lines=True)',
        ),
    ],
)
def test_one_object_that_is_in_doubt(place: Workplace, document: Any, expected: str) -> None:
    assert place.problem(json.dumps(document), "train.json") == expected


def test_one_row_is_no_file_of_rows(place: Workplace) -> None:
    row = talk() | {"passages": [{"text": "a"}, {"text": "b"}]}
    assert place.rows([row]) == [pair()]


def test_pretty_printed_objects_are_rows(place: Workplace) -> None:
    text = "\n".join(json.dumps(talk(question), indent=2) for question in "ab")
    assert place.rows(text) == [pair("a"), pair("b")]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.jsonl,b.jsonl", "2 files; write them as a list, e.g. train_file: [a.jsonl, b.jsonl]"),
        ("a.jsonl b.jsonl.gz", "2 files; write them as a list, e.g. train_file: [a.jsonl, b.jsonl.gz]"),
        ("a.csv, b.csv", "2 files; write them as a list, e.g. train_file: [a.csv, b.csv]"),
    ],
)
def test_a_name_of_several_files(place: Workplace, name: str, expected: str) -> None:
    with pytest.raises(InputError) as raised:
        prepare(train_file=name, validation_file=None, cache=place.cache)
    assert str(raised.value).startswith(f"{name}: {expected}")


# Refused rows

USER, ANSWER = turn("user", "a"), turn("assistant", "b")


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        (None, 'messages holds null; write a list of {"role": ..., "content": ...} objects'),
        ([], 'messages holds an empty list; write a list of {"role": ..., "content": ...} objects'),
        (5, 'messages holds the number 5; write a list of {"role": ..., "content": ...} objects'),
        (True, 'messages holds true; write a list of {"role": ..., "content": ...} objects'),
        ({"a": 1}, 'messages holds an object; write a list of {"role": ..., "content": ...} objects'),
        (
            "user: " + "x" * 50,
            f"messages holds the string 'user: {'x' * 34}'...; write a list of "
            '{"role": ..., "content": ...} objects',
        ),
        (["hi", ANSWER], 'messages[0] holds the string \'hi\'; write {"role": ..., "content": ...}'),
        (
            [{"content": "a"}, ANSWER],
            "messages[0].role is missing; write one of 'system', 'user', 'assistant', 'tool'",
        ),
        ([{"role": "user"}, ANSWER], "messages[0].content is missing; write the text of the turn"),
        ([turn("user", None), ANSWER], "messages[0].content holds null; write a string"),
        ([turn("user", 5), ANSWER], "messages[0].content holds the number 5; write a string"),
        ([turn("user", [{"type": "text"}]), ANSWER], "messages[0].content holds a list of 1; write a string"),
        ([USER, turn("asistant", "b")], "messages[1].role holds the string 'asistant'; write 'assistant'"),
        ([USER, turn("Assistant", "b")], "messages[1].role holds the string 'Assistant'; write 'assistant'"),
        (
            [USER, turn("robot", "b")],
            "messages[1].role holds the string 'robot'; write one of 'system', 'user', 'assistant', 'tool'",
        ),
        (
            [USER, turn(1, "b")],  # type: ignore[arg-type]
            "messages[1].role holds the number 1; write one of 'system', 'user', 'assistant', 'tool'",
        ),
        (
            [USER, turn("gpt", "b")],
            "messages[1].role holds 'gpt', a ShareGPT role; write 'assistant', or set data_format: sharegpt and "
            "data_columns: {conversations: messages}",
        ),
        (
            [USER, {"from": "gpt", "value": "b"}],
            "messages[1] has from and value, as in ShareGPT; set data_format: sharegpt and "
            "data_columns: {conversations: messages}",
        ),
        (
            [USER, {**ANSWER, "tool_calls": [{"arguments": {}}]}],
            'messages[1].tool_calls[0] holds an object, which is no call of a tool; write {"name": ..., "arguments": '
            "{...}}",
        ),
        (
            [USER, {**ANSWER, "function_call": {"name": "f", "arguments": "[1]"}}],
            'messages[1].function_call holds an object, which is no call of a tool; write {"name": ..., "arguments": '
            "{...}}",
        ),
        (
            [USER, {**ANSWER, "tool_calls": [{"name": "f", "arguments": {"a": "\ud800"}}]}],
            "messages[1].tool_calls[0] holds '\\ud800', half of a character; write the whole character",
        ),
        (
            [{**USER, "tool_calls": [{"name": "f"}]}, ANSWER],
            "messages[0].tool_calls is in a turn of the user; write it into one of the assistant",
        ),
        (
            [USER, {**ANSWER, "reasoning": "a", "thinking": "b"}],
            "messages[1] has 'reasoning', 'thinking' that differ; keep one",
        ),
        (
            [USER, {**turn("assistant", "<think>a</think>b"), "reasoning_content": "a"}],
            "messages[1].content begins with reasoning, and the turn has it in a field of its own too; keep one",
        ),
        (
            [USER, turn("tool", "1"), ANSWER],
            "messages[1] is the result of no call; put an assistant turn with tool_calls before it",
        ),
        ([USER, turn("assistant", " \n")], "messages[1].content is blank; write its text, or delete the row"),
        ([turn("user", ""), ANSWER], "messages[0].content is blank; write its text, or delete the row"),
        ([USER], "messages has no assistant turn; add the answer to learn, or delete the row"),
        ([USER, ANSWER, USER], "messages[2] is the last turn, but of the user; end with the assistant's answer"),
        (
            [USER, USER, ANSWER],
            "messages[1] is a second user turn in a row; join the two, or add the turn between them",
        ),
        (
            [USER, ANSWER, ANSWER],
            "messages[2] is a second assistant turn in a row; join the two, or add the turn between them",
        ),
        (
            [USER, turn("system", "s"), ANSWER],
            "messages[1] is a system turn; move it to the front, where the one system turn belongs",
        ),
        ([ANSWER], "messages[0] is an answer to nothing; put a user turn before it"),
        ([turn("system", "s"), ANSWER], "messages[1] is an answer to nothing; put a user turn before it"),
    ],
)
def test_messages_that_are_refused(place: Workplace, messages: Any, expected: str) -> None:
    assert place.problem([talk(), {"messages": messages}, talk()]) == f"train.jsonl:2: {expected}"


@pytest.mark.parametrize(
    ("good", "bad", "expected"),
    [
        (
            {"prompt": "a", "completion": "b"},
            {"prompt": "a", "completion": None},
            "completion holds null; write a string, as in every row",
        ),
        (
            {"prompt": "a", "completion": "b"},
            {"prompt": " ", "completion": "b"},
            "prompt is blank; write its text, or delete the row",
        ),
        (
            {"prompt": "a", "completion": "b"},
            {"prompt": "a", "completion": [ANSWER]},
            "completion holds a list of 1; write a string, as in every row",
        ),
        (pair(), {"prompt": [USER], "completion": "b"}, "completion holds the string 'b'; write a list of messages,"),
        (
            pair(),
            {"prompt": [USER], "completion": [ANSWER, USER, ANSWER]},
            "completion holds 3 turns; write the one assistant turn to learn, or use the format messages",
        ),
        (
            pair(),
            {"prompt": [USER, ANSWER], "completion": [ANSWER]},
            "completion[0] is a second assistant turn in a row",
        ),
        (pair(), {"prompt": [USER], "completion": [turn("assistant", "")]}, "completion[0].content is blank"),
        (
            {"instruction": "a", "output": "b"},
            {"instruction": "a", "output": 1},
            "output holds the number 1; write a string",
        ),
        (
            {"instruction": "a", "output": "b"},
            {"instruction": "", "output": "b"},
            "instruction is blank; write its text",
        ),
        (
            {"instruction": "a", "output": "b"},
            {"instruction": "a", "output": "b", "input": ["c"]},
            "input holds a list of 1; write a string",
        ),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
            {"conversations": [{"from": "humann", "value": "a"}, {"from": "gpt", "value": "b"}]},
            "conversations[0].from holds the string 'humann'; write 'human'",
        ),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
            {"conversations": [{"from": "gpt", "value": "b"}]},
            "conversations[0] is an answer to nothing; put a user turn before it",
        ),
        (
            talk(),
            {"mesages": []},
            "'messages' is missing (nearest: 'mesages'), the row has 'mesages': write it, or set",
        ),
    ],
)
def test_rows_of_other_formats_that_are_refused(place: Workplace, good: Any, bad: Any, expected: str) -> None:
    assert place.problem([good, bad, good]).startswith(f"train.jsonl:2: {expected}")


def test_a_kind_of_problem_is_told_once_for_a_file_and_twenty_are_shown(place: Workplace) -> None:
    validation = place.write("validation.jsonl", [talk(), talk(answer="")])
    rows: list[Any] = [talk(5, "")] * 2 + [talk()] + [talk(answer=None)] * 1200
    rows += [{"messages": [turn("usr", "a"), ANSWER]}, {"messages": [USER, ANSWER, turn("asistant", "b")]}]
    assert place.problems(rows, validation_file=validation) == [
        "train.jsonl:1: messages[0].content holds the number 5; write a string (in 2 rows)",
        "train.jsonl:1: messages[1].content is blank; write its text, or delete the row (in 2 rows)",
        "train.jsonl:4: messages[1].content holds null; write a string (in 1,200 rows)",
        "train.jsonl:1204: messages[0].role holds the string 'usr'; write 'user' (in 2 rows)",
        "validation.jsonl:2: messages[1].content is blank; write its text, or delete the row",
    ]
    many: list[Any] = [{f"{chr(97 + n)}_instruction": "a", "output": "b"} for n in range(26)]
    problems = place.problems([{"instruction": "a", "output": "b"}, *many], data_format="alpaca")
    assert problems[0].endswith("(in 26 rows)")
    assert len(problems) == 1


def test_problems_of_both_files_are_shown(place: Workplace) -> None:
    validation = place.write("validation.csv", "question,completion\na,b\n")
    problems = place.problems([{"prompt": "a", "completion": 1}], validation_file=validation)
    assert problems[0].startswith("train.jsonl:1: completion holds the number 1")
    assert problems[1].startswith(
        "validation.csv:2: 'prompt' is missing, the row has 'question', 'completion': name them as in train.jsonl, or "
    )


# Fields that carry meaning: used, or refused by name


def test_a_system_column_is_the_system_turn(place: Workplace) -> None:
    system, talked = {"system": "Be brief."}, [turn("system", "Be brief."), turn("user", "2 + 2?")]
    expected = {"prompt": talked, "completion": [turn("assistant", "4")]}
    sharegpt = [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]
    rows: list[Any] = [talk() | system, {"conversations": sharegpt} | system, pair() | system]
    for row in rows:
        prepared = place.prepare([row, row | {"system": None}, row | {"system": " "}])
        assert read(prepared) == [expected, pair(), pair()]
        assert "system: the system turn of its row" in prepared.notes
    same = {"messages": [turn("system", "Be brief."), *talk()["messages"]]} | system
    assert place.rows([same]) == [expected]
    mapped = place.rows([talk() | {"role_of_model": "Be brief."}], data_columns={"system": "role_of_model"})
    assert mapped == [expected]


def test_history_is_rounds_before_the_instruction(place: Workplace) -> None:
    row = {"instruction": "2 + 2?", "output": "4", "system": "Be brief.", "history": [["Hi", "Hello"]]}
    prepared = place.prepare([row, {"instruction": "a", "output": "b", "history": []}])
    assert (prepared.kind, read(prepared)) == ("messages", [{"messages": LONG_TALK}, talk("a", "b")])
    assert "history: rounds before instruction, whose answers are learnt too" in prepared.notes
    csv = f"instruction,output,system,history\n2 + 2?,4,Be brief.,{cell(json.dumps(row['history']))}\n"
    assert place.rows(csv, "train.csv") == [{"messages": LONG_TALK}]


def test_the_names_of_dolly(place: Workplace) -> None:
    row = {"instruction": "Which?", "context": "A or B.", "response": "A", "category": "closed_qa"}
    prepared = place.prepare([row, row | {"context": ""}])
    assert read(prepared) == [pair("Which?\n\nA or B.", "A"), pair("Which?", "A")]
    assert {"context: joined to instruction", "not used: 'category'"} <= {*prepared.notes}


def test_content_in_parts_of_text_is_joined(place: Workplace) -> None:
    parts = [{"type": "text", "text": "2 + "}, {"type": "text", "text": "2?"}]
    prepared = place.prepare([talk(parts)])
    assert (read(prepared), "content: parts of text, joined" in prepared.notes) == ([pair()], True)


INTO_TURN = "is not supported; write it into the assistant's turn that it belongs to, in rows of the format messages"
PARTS = "rows are text: delete the row, or this of it where the text is right without it"
A_SCHEMA = 'write a list of JSON schemas, each as {"type": "function", "function": {"name": ..., "description": ...'
INTO_PROMPT = "is not supported; write it into the prompt where it belongs, or delete the column"
OF_ROWS = "is not supported; rows have no weights and no marks: delete the rows that are not to be learnt, and the"


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (talk() | {"tools": [{"description": "f"}]}, f"tools holds an object; {A_SCHEMA}"),
        (talk() | {"functions": "none"}, f"functions holds the string 'none'; {A_SCHEMA}"),
        (talk() | {"tools": "[]", "functions": '[{"name": "f"}]'}, "functions is not supported; the tools stand in"),
        (
            talk() | {"chat_template_kwargs": {"tools": "a"}},
            "chat_template_kwargs.tools is not for a row to say; delete it",
        ),
        (
            talk() | {"chat_template_kwargs": {"enable_thinking": [1]}},
            "chat_template_kwargs.enable_thinking holds a list of 1; write true, false, a number or a text",
        ),
        (
            {"prompt": "a", "completion": "b", "tools": [{"name": "f"}]},
            "'tools' stands beside a prompt that is plain text; write prompt and completion as lists of turns",
        ),
        (talk() | {"images": ["a.png"]}, f"images is not supported; {PARTS}"),
        (talk() | {"history": [["a", "b"]]}, f"history {INTO_PROMPT}"),
        (talk() | {"context": "a"}, f"context {INTO_PROMPT}"),
        (talk() | {"reasoning_content": "a"}, f"reasoning_content {INTO_TURN}"),
        (talk() | {"function_call": {"name": "f"}}, f"function_call {INTO_TURN}"),
        (talk() | {"weight": 0.5}, f"weight {OF_ROWS}"),
        (talk() | {"train": False}, f"train {OF_ROWS}"),
        (
            {"messages": [turn("user", [{"type": "image_url"}]), ANSWER]},
            f"messages[0].content has a part of the type 'image_url'; {PARTS}",
        ),
        (
            {"messages": LONG_TALK, "system": "Be long."},
            "system and messages[0] are two system turns; keep one",
        ),
        (
            {"prompt": "a", "completion": "b", "system": "Be brief."},
            "system stands beside a prompt that is plain text; write it into the prompt, or write prompt and "
            "completion as lists of turns",
        ),
        (
            {"instruction": "a", "output": "b", "history": ["c"]},
            "history holds a list of 1; write a list of [question, answer] pairs",
        ),
        ({"instruction": "a", "input": "b", "context": "c", "output": "d"}, f"context {INTO_PROMPT}"),
    ],
    ids=lambda value: value.split(" ")[0] if isinstance(value, str) else "",
)
def test_what_carries_meaning_and_is_not_used_is_refused_once(place: Workplace, row: Any, expected: str) -> None:
    assert place.problem([row, row]).startswith(f"train.jsonl:1: {expected}")
    assert place.problem([row, row]).endswith(" (in 2 rows)")


def test_what_could_carry_meaning_and_holds_nothing_is_no_word(place: Workplace) -> None:
    nothing = {"tools": "[]", "functions": [], "images": None, "context": "", "weight": 1, "train": True}
    prepared = place.prepare([talk() | nothing | {"messages": [USER, ANSWER | {"tool_calls": []}]}])
    assert read(prepared) == [pair("a", "b")]
    assert not any("not used" in note for note in prepared.notes)


# Turns that are marked


def asked(*said: Any) -> dict[str, Any]:
    """A conversation of rounds, each answer of which has these keys beside its text."""
    turns = ([turn("user", f"q{n}"), turn("assistant", f"a{n}") | mark] for n, mark in enumerate(said))
    return {"messages": [each for pair in turns for each in pair]}


def plain(rounds: int) -> list[dict[str, Any]]:
    return [{key: each[key] for key in ("role", "content")} for each in asked(*[{}] * rounds)["messages"]]


@pytest.mark.parametrize(
    ("no", "yes"),
    [
        ({"weight": 0}, {"weight": 1}),
        ({"train": False}, {"train": True}),
        ({"training": False}, {}),
        ({"loss": False}, {"loss": True}),
        ({"weight": 0.0}, {"weight": 1.0}),
        ({"masked": True}, {"masked": False}),
    ],
    ids=str,
)
def test_marked_answers_alone_are_learnt(place: Workplace, no: Any, yes: Any) -> None:
    """An answer before the last is of the prompt then, and what follows the last one that is learnt is left out."""
    prepared = place.prepare([asked(no, yes), asked(no, yes, no), asked(yes, no), asked(yes)])
    before = {"prompt": plain(2)[:-1], "completion": plain(2)[-1:]}
    assert read(prepared) == [before, before, pair("q0", "a0"), pair("q0", "a0")]
    assert (prepared.kind, prepared.masked) == ("prompt_completion", True)
    assert "2 rows end at the last answer that is to be learnt; what follows has no part in the loss" in prepared.notes
    assert not any("not used" in note for note in prepared.notes)
    unmarked = place.prepare([asked(yes, yes), asked(yes, yes, no)])
    assert read(unmarked) == [{"messages": plain(2)}] * 2
    sharegpt = [{"from": "human", "value": "q0"} | no, {"from": "gpt", "value": "a0"} | yes]
    assert place.rows([{"conversations": sharegpt}]) == [pair("q0", "a0")]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (asked({"weight": 0}), "messages marks no answer to be learnt; delete the row"),
        (
            asked({"weight": 1}, {"weight": 0}, {"weight": 1}),
            "messages has several answers to be learnt and others not; write the row once for each answer to learn, "
            "ending with it",
        ),
        (
            asked({"weight": 0.5}),
            "messages[1].weight holds the number 0.5; a turn is learnt whole or not at all; mark it by weight: 1 or "
            "weight: 0",
        ),
        (asked({"train": "no"}), "messages[1].train holds the string 'no'; a turn is learnt whole or not at all;"),
        (
            asked({"weight": 0, "train": True}),
            "messages[1] is marked to be learnt and not to be learnt, by 'weight', 'train'; keep one",
        ),
        (
            {"messages": [USER | {"train": True}, ANSWER]},
            "messages[0] is marked to be learnt, and the loss is on answers alone; delete the mark",
        ),
        (
            {"prompt": [USER, ANSWER | {"weight": 1}, USER], "completion": [ANSWER]},
            "prompt[1] is marked to be learnt, and the loss is on answers alone; delete the mark",
        ),
        (
            asked({"train_detail": [{"begin_offset": 0}]}),
            "messages[1].train_detail is not supported; a turn is learnt",
        ),
    ],
)
def test_marks_that_no_loss_has_are_refused(place: Workplace, row: Any, expected: str) -> None:
    assert place.problem([row]).startswith(f"train.jsonl:1: {expected}")


def test_rows_that_leave_answers_out_and_rows_that_learn_several_are_two_trainings(place: Workplace) -> None:
    rows = [asked({}), asked({}, {}), asked({"weight": 0}, {})]
    assert place.problem(rows) == (
        f"train.jsonl:3: leaves an answer out of the loss, and {place.root}/train.jsonl:2 has several answers to "
        "learn, which no loss of TRL does in one training; write rows with several answers once for each of them, "
        "ending with it"
    ).replace(f"{place.root}/", "")
    # Rows that are never trained on decide nothing.
    test = place.write("test.jsonl", rows)
    assert read(place.prepare(rows[:1], test_file=test), "test")[2] == {
        "prompt": plain(2)[:3],
        "completion": plain(2)[3:],
    }


# Answers that are numbers or truth values


def test_numbers_are_classes_of_a_classification(place: Workplace) -> None:
    said = "labels: answers that are numbers, true or false are the classes that JSON writes so"
    for make in (
        lambda value: {"instruction": "a", "output": value},
        lambda value: {"prompt": [turn("user", "a")], "completion": [turn("assistant", value)]},
        lambda value: talk("a", value),
    ):
        prepared = place.prepare([make(value) for value in (0, 1.5, True, "x")], task="classification")
        assert read(prepared) == [pair("a", text) for text in ("0", "1.5", "true", "x")]
        assert prepared.notes.count(said) == 1
    plain = place.prepare([{"prompt": "a", "completion": 1}], task="classification")
    assert read(plain) == [{"prompt": "a", "completion": "1"}]


def test_numbers_are_refused_once_elsewhere(place: Workplace) -> None:
    rows = [{"instruction": "a", "output": value} for value in (0, 1, True, False)]
    assert place.problems(rows) == [
        f"train.jsonl:1: output holds the number 0; {A_CLASS} (in 2 rows)",
        f"train.jsonl:3: output holds true; {A_CLASS} (in 2 rows)",
    ]


# Refused options


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"data_format": "mesages"},
            "data_format is 'mesages' (nearest: 'messages'); write auto, messages, sharegpt,",
        ),
        (
            {"data_columns": {"promt": "q"}},
            "data_columns: 'promt' is no field of data_format auto (nearest: 'prompt'); write one of 'messages', ",
        ),
        (
            {"data_format": "alpaca", "data_columns": {"prompt": "q"}},
            "data_columns: 'prompt' is no field of data_format alpaca; write one of 'instruction', 'input', 'output',",
        ),
        (
            {"data_columns": {"prompt": "q", "output": "a"}},
            "data_columns: no one format has the fields 'prompt', 'output'; set data_format (messages,",
        ),
        (
            {"data_columns": {"prompt": "q", "completion": "q"}},
            "data_columns: {'prompt': 'q', 'completion': 'q'} names one column twice; give each field its own",
        ),
        (
            {"data_columns": {"messages": "mesages"}},
            "train.jsonl:1: 'mesages' is missing (nearest: 'messages'), the row has 'messages': write it, or set",
        ),
        (
            {"data_format": "sharegpt"},
            "train.jsonl:1: 'conversations' is missing, the row has 'messages': write it, or set data_format",
        ),
        ({"validation_split_size": 1.0}, "validation_split_size is 1.0; write a share from 0 up to, not with, 1"),
        ({"validation_split_size": float("nan")}, "validation_split_size is nan; write a share from 0"),
        (
            {"validation_split_size": 0.5, "test_split_size": 0.5},
            "validation_split_size 0.5 and test_split_size 0.5 leave",
        ),
        ({"dataset_name": "org/name"}, "give one of train_file and dataset_name: both are given"),
    ],
)
def test_options_that_are_refused(place: Workplace, options: Any, expected: str) -> None:
    assert place.problem([talk()], **options).startswith(expected)


def test_no_source_at_all(place: Workplace) -> None:
    with pytest.raises(InputError, match="give one of train_file and dataset_name: neither is given"):
        prepare(train_file=None, validation_file=None, cache=place.cache)


# Splits


def test_no_validation(place: Workplace) -> None:
    prepared = place.prepare([talk()])
    assert list(prepared.splits) == ["train"]
    assert prepared.notes == (
        "format: messages, recognised by its columns",
        "loss: on the one answer that ends each row",
        f"train: 1 row of {place.root}/train.jsonl",
        "validation: none (no validation file or split, and validation_split_size is 0)",
    )


def test_validation_file_comes_before_the_share(place: Workplace) -> None:
    validation = place.write("validation.csv", "instruction,output\n3 + 3?,6\n")
    train = [{"instruction": "2 + 2?", "output": "4"}]
    prepared = place.prepare(train, validation_file=validation, validation_split_size=0.5)
    assert read(prepared) == [pair()]
    assert read(prepared, "validation") == [pair("3 + 3?", "6")]
    assert prepared.notes[-1] == (
        f"validation_split_size 0.5 is not used: the validation rows are {place.root}/validation.csv"
    )


def test_test_file_is_prepared_beside_the_others_and_decides_nothing_about_them(place: Workplace) -> None:
    without = place.prepare([talk()])
    test = place.write("test.jsonl", [{"messages": LONG_TALK}, talk("3 + 3?", "6") | {"group": "sums"}])
    prepared = place.prepare([talk()], test_file=test)
    assert prepared.fingerprint != without.fingerprint
    # A training row of one answer stays one, whatever the test rows are; of those, the last answer is asked for.
    assert prepared.kind == without.kind == "prompt_completion"
    assert read(prepared) == read(without)
    assert read(prepared, "test") == [{"prompt": LONG_TALK[:-1], "completion": LONG_TALK[-1:]}, pair("3 + 3?", "6")]
    assert f"test: 2 rows of {test}" in prepared.notes
    assert prepared.splits["test"]["prepared_rows"] == 2
    assert "validation" not in prepared.splits


def test_test_file_is_no_part_of_the_validation_share(place: Workplace) -> None:
    rows = [talk(f"question {number}") for number in range(200)]
    test = place.write("test.jsonl", [talk(f"other {number}") for number in range(50)])
    alone = place.prepare(rows, validation_split_size=0.2)
    prepared = place.prepare(rows, validation_split_size=0.2, test_file=test)
    assert [read(prepared, split) for split in ("train", "validation")] == [
        read(alone, split) for split in ("train", "validation")
    ]
    assert len(read(prepared, "test")) == 50


def test_test_rows_are_checked_like_all_others(place: Workplace) -> None:
    test = place.write("test.jsonl", [talk(), talk(answer=" ")])
    assert place.problem([talk()], test_file=test) == (
        "test.jsonl:2: messages[1].content is blank; write its text, or delete the row"
    )
    assert place.problem([talk()], test_file=str(place.root / "tset.jsonl")).startswith("tset.jsonl: no such file")
    assert place.problem([talk()], test_file=place.write("empty.jsonl", "\n")) == (
        "empty.jsonl: has no rows; write at least one"
    )


def test_rows_are_counted_while_they_are_read(place: Workplace) -> None:
    told: list[int] = []
    rows = [talk(f"question {number}") for number in range(2500)]
    place.prepare(rows, on_rows=told.append)
    assert told == [1000, 2000]
    place.prepare(rows, on_rows=told.append)
    assert told == [1000, 2000]


def test_share_is_chosen_by_content(place: Workplace) -> None:
    rows = [talk(f"question {number % 400}") for number in range(1000)]
    prepared = place.prepare(rows, validation_split_size=0.1)
    train, validation = read(prepared), read(prepared, "validation")
    assert len(train) + len(validation) == 1000
    assert 60 <= len(validation) <= 140
    held_out = {json.dumps(row) for row in validation}
    assert not held_out & {json.dumps(row) for row in train}
    in_order = [pair(f"question {number % 400}") for number in range(1000)]
    assert train == [row for row in in_order if json.dumps(row) not in held_out]
    assert validation == [row for row in in_order if json.dumps(row) in held_out]
    count = len(validation)
    assert prepared.splits["validation"]["rows"] == 1000
    assert prepared.splits["validation"]["prepared_rows"] == count
    assert prepared.notes[-1] == (
        f"validation: {count} of 1,000 rows of {place.root}/train.jsonl, chosen by a hash of the row "
        "(validation_split_size 0.1)"
    )

    backwards = place.prepare(rows[::-1], validation_split_size=0.1)
    assert read(backwards, "validation") == validation[::-1]


def test_rows_of_the_test_are_drawn_beside_those_of_the_validation(place: Workplace) -> None:
    rows = [talk(f"question {number % 900}") for number in range(1000)]

    def texts(prepared: Prepared, split: str) -> set[str]:
        return set((prepared.directory / f"{split}.jsonl").read_text().splitlines())

    drawn = place.prepare(rows, validation_split_size=0.1, test_split_size=0.2)
    train, validation, test = (texts(drawn, split) for split in ("train", "validation", "test"))
    assert not (train & test or train & validation or validation & test)
    assert len(train | validation | test) == 900
    assert 0.15 < drawn.splits["test"]["prepared_rows"] / 1000 < 0.25
    assert drawn.notes[-1].endswith("train.jsonl, chosen by a hash of the row (test_split_size 0.2)")
    # The same rows are held out for validation as without a test, and are trained on when others are evaluated.
    alone = place.prepare(rows, validation_split_size=0.1)
    assert texts(alone, "validation") == validation
    other = place.write("test.jsonl", [talk("another")])
    beside = place.prepare(rows, validation_split_size=0.1, test_split_size=0.2, test_file=other)
    assert (texts(beside, "train"), texts(beside, "validation")) == (train, validation)
    assert beside.splits["test"]["prepared_rows"] == 1


def test_share_that_leaves_a_side_empty(place: Workplace) -> None:
    assert place.problem([talk()] * 200, validation_split_size=0.5) == (
        "validation_split_size 0.5 puts all 200 rows of train.jsonl on one side (equal rows stay together): "
        "give a validation_file, more rows or another share"
    )


# The prepared directory


def test_prepared_directory_is_what_is_said(place: Workplace) -> None:
    prepared = place.prepare([talk()] * 3)
    assert prepared.directory == place.cache / prepared.fingerprint[:16]
    assert sorted(path.name for path in prepared.directory.iterdir()) == ["facts.json", "train.jsonl"]
    assert list(place.cache.iterdir()) == [prepared.directory]
    content = (place.root / "train.jsonl").read_bytes()
    assert prepared.splits == {
        "train": {
            "source": str(place.root / "train.jsonl"),
            "sha256": hashlib.sha256(content).hexdigest(),
            "rows": 3,
            "prepared_rows": 3,
        }
    }
    facts = json.loads((prepared.directory / "facts.json").read_text())
    for name in ("fingerprint", "kind", "format", "splits"):
        assert facts[name] == getattr(prepared, name)
    assert facts["notes"] == list(prepared.notes)


def test_fingerprint_follows_everything_that_decides(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [talk(f"question {number}") for number in range(50)]
    options: list[dict[str, Any]] = [
        {},
        {"data_format": "messages"},
        {"data_columns": {"messages": "messages"}},
        {"validation_split_size": 0.2},
        {"validation_split_size": 0.3},
        {"test_split_size": 0.3},
        {"validation_file": place.write("validation.jsonl", rows)},
        {"validation_file": place.write("validation.jsonl", rows[1:])},
    ]
    fingerprints = [place.prepare(rows, **option).fingerprint for option in options]
    fingerprints.append(place.prepare([*rows[:-1], talk("question 5O")]).fingerprint)
    monkeypatch.setattr(preparation, "PREPARATION_VERSION", preparation.PREPARATION_VERSION + 1)
    fingerprints.append(place.prepare(rows).fingerprint)
    # The second validation file has replaced the first one before either was read.
    assert len(set(fingerprints)) == len(fingerprints) - 1


def test_same_content_is_not_prepared_again(place: Workplace) -> None:
    first = place.prepare([talk()])
    written = (first.directory / "train.jsonl").stat()
    second = place.prepare([talk()])
    assert second == first
    assert (first.directory / "train.jsonl").stat().st_mtime_ns == written.st_mtime_ns
    assert (first.directory / "train.jsonl").stat().st_ino == written.st_ino
    other = place.prepare([talk()], "other.jsonl")
    assert other.directory == first.directory
    assert other.splits["train"]["source"] == str(place.root / "other.jsonl")
    assert f"train: 1 row of {place.root}/other.jsonl" in other.notes


@pytest.mark.parametrize("lost", ["facts.json", "train.jsonl"])
def test_damaged_directory_is_replaced(place: Workplace, lost: str) -> None:
    first = place.prepare([talk()])
    (first.directory / lost).unlink()
    assert place.prepare([talk()]) == first
    assert read(first) == [pair()]
    assert list(place.cache.iterdir()) == [first.directory]


def test_the_slower_of_two_processes_uses_the_directory_of_the_other(place: Workplace, tmp_path: Path) -> None:
    winner = place.prepare([talk()])
    before = (winner.directory / "train.jsonl").stat().st_ino
    staging = tmp_path / "staging"
    staging.mkdir()
    publish(staging, winner.directory, lambda: bool(preparation._complete(winner.directory, winner.fingerprint)))
    assert (winner.directory / "train.jsonl").stat().st_ino == before


def test_an_error_keeps_what_was_prepared_before(place: Workplace) -> None:
    first = place.prepare([talk()])
    with pytest.raises(InputError):
        place.prepare([talk()] * 100 + [talk(answer="")])
    assert list(place.cache.iterdir()) == [first.directory]


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    library = pytest.importorskip("datasets")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "hf_cache")
    library.disable_progress_bars()
    return library


@pytest.mark.parametrize(
    "rows",
    [
        [talk(f"question {number}\0\u2028", "\U0001f600\r\n") for number in range(50)],
        [{"messages": LONG_TALK}, *(talk(f"question {number}") for number in range(50))],
        [{"prompt": f"question {number}", "completion": "4"} for number in range(50)],
    ],
)
def test_datasets_reads_the_prepared_directory(place: Workplace, datasets: Any, rows: list[Any]) -> None:
    prepared = place.prepare(rows, validation_split_size=0.3)
    loaded = datasets.load_dataset(str(prepared.directory))
    assert set(loaded) == {"train", "validation"}
    for split, dataset in loaded.items():
        assert dataset.to_list() == read(prepared, split)
        assert len(dataset) == prepared.splits[split]["prepared_rows"]


# Datasets of the Hub, by a directory in its place


def test_dataset_directory(place: Workplace, datasets: Any) -> None:
    place.write("hub/train.jsonl", [talk(), talk("3 + 3?", "6")])
    place.write("hub/test.jsonl", [talk("4 + 4?", "8")])
    name = str(place.root / "hub")
    prepared = prepare(train_file=None, validation_file=None, dataset_name=name, cache=place.cache)
    assert read(prepared) == [pair(), pair("3 + 3?", "6")]
    assert read(prepared, "validation") == [pair("4 + 4?", "8")]
    assert prepared.splits["train"]["source"] == f"{name} train"
    assert f"validation: 1 row of {name} test" in prepared.notes

    copy = place.root / "copy"
    (place.root / "hub").rename(copy)
    again = prepare(train_file=None, validation_file=None, dataset_name=str(copy), cache=place.cache)
    assert again.fingerprint == prepared.fingerprint
    place.write("copy/train.jsonl", [talk(), talk("3 + 3?", "7")])
    changed = prepare(train_file=None, validation_file=None, dataset_name=str(copy), cache=place.cache)
    assert changed.fingerprint != prepared.fingerprint


def test_dataset_without_a_test_split(place: Workplace, datasets: Any) -> None:
    place.write("hub/train.csv", "".join(f"{a},{b}\n" for a, b in [("prompt", "completion"), ("a", "b"), ("c", "d")]))
    name = str(place.root / "hub")
    prepared = prepare(train_file=None, validation_file=None, dataset_name=name, cache=place.cache)
    assert list(prepared.splits) == ["train"]
    with pytest.raises(
        InputError, match=r"has no split 'trian' \(nearest: 'train'\); set dataset_train_split to 'train'"
    ):
        prepare(
            train_file=None, validation_file=None, dataset_name=name, dataset_train_split="trian", cache=place.cache
        )


def test_dataset_rows_that_are_refused(place: Workplace, datasets: Any) -> None:
    place.write("hub/train.jsonl", [talk(), talk(answer="")])
    name = str(place.root / "hub")
    with pytest.raises(InputError) as raised:
        prepare(train_file=None, validation_file=None, dataset_name=name, cache=place.cache)
    assert raised.value.problems == [
        f"{name} train row 2: messages[1].content is blank; write its text, or delete the row"
    ]
    assert not list(place.cache.iterdir())


def test_dataset_that_cannot_be_loaded(place: Workplace, datasets: Any) -> None:
    (place.root / "hub").mkdir()
    name = str(place.root / "hub")
    with pytest.raises(InputError) as raised:
        prepare(train_file=None, validation_file=None, dataset_name=name, cache=place.cache)
    (problem,) = raised.value.problems
    assert problem.startswith(f"dataset_name {name} cannot be loaded (")
    assert problem.endswith(
        "check the name and dataset_config, or give local files as train_file, or point HF_HOME to a cache that holds "
        "it or HF_ENDPOINT to a mirror"
    )


def test_shards_of_a_dataset_that_are_missing_or_cut_are_named(place: Workplace, datasets: Any) -> None:
    for number in (0, 2):
        place.write(f"hub/data/train-{number:05}-of-00003.jsonl", [talk(f"question {number}")])
    hub = {"train_file": None, "validation_file": None, "dataset_name": str(place.root / "hub"), "cache": place.cache}
    with pytest.raises(
        InputError, match=r"hub lacks 'data/train-00001-of-00003.jsonl' of its shards; copy or download"
    ):
        prepare(**hub)
    place.write("hub/data/train-00001-of-00003.jsonl", json.dumps(talk("question 1")))
    assert len(read(prepare(**hub))) == 3
    place.write("hub/data/train-00001-of-00003.jsonl", json.dumps(talk())[:-20])
    with pytest.raises(InputError, match=r"hub cannot be loaded \(ArrowInvalid: JSON parse error: Missing a closing"):
        prepare(**hub)


def test_images_of_a_dataset_are_not_decoded(place: Workplace, datasets: Any) -> None:
    features = datasets.Features({"prompt": datasets.Value("string"), "completion": datasets.Value("string")})
    features["image"] = datasets.Image(decode=False)
    rows = [{"prompt": "a", "completion": "b", "image": {"bytes": b"not an image", "path": None}}]
    dataset = datasets.Dataset.from_list(rows, features=features).cast_column("image", datasets.Image())
    (place.root / "hub").mkdir()
    dataset.to_parquet(str(place.root / "hub" / "train.parquet"))
    name = str(place.root / "hub")
    with pytest.raises(InputError, match="train row 1: image is not supported; rows are text: delete the row, or"):
        prepare(train_file=None, validation_file=None, dataset_name=name, cache=place.cache)
