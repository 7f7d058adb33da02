"""Rows of several sources: what is read, how they are brought together, what is known of each, and what is refused."""

import gzip
import json
import subprocess
import sys
import textwrap
from array import array
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from sft_recipes.data import preparation, repetitions, survey
from sft_recipes.data import sources as found_sources
from sft_recipes.data.preparation import Prepared, prepare
from sft_recipes.errors import InputError
from sft_recipes.evaluate import questions
from sft_recipes.launch import launch
from sft_recipes.plan import lint, plan
from sft_recipes.plan.job import resolve, rows_kept
from sft_recipes.recipes import recipe as recipes


def row(name: str, number: int = 0) -> dict[str, str]:
    return {"prompt": f"{name} {number}?", "completion": f"{name}{number}"}


def rows(name: str, number: int) -> list[dict[str, str]]:
    return [row(name, each) for each in range(number)]


def lines(found: list[Any]) -> bytes:
    return "".join(json.dumps(each) + "\n" for each in found).encode()


def zstd(content: bytes) -> bytes:
    return pyarrow.compress(content, codec="zstd", asbytes=True)


def write(name: str, content: bytes | list[Any]) -> str:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(lines(content) if isinstance(content, list) else content)
    return name


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def prepared(train: Any, **more: Any) -> Prepared:
    return prepare(train_file=train, cache=Path("cache"), **{"validation_file": None, **more})


def read(made: Prepared, split: str = "train") -> list[str]:
    text = (made.directory / f"{split}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line)["completion"] for line in text.splitlines()]


def problems(train: Any, **more: Any) -> list[str]:
    before = sorted(Path("cache").glob("*"))
    with pytest.raises(InputError) as raised:
        prepared(train, **more)
    assert sorted(Path("cache").glob("*")) == before
    return raised.value.problems


def arrow(name: str, found: list[Any], *, file: bool) -> str:
    table = pyarrow.Table.from_pylist(found)
    with pyarrow.OSFile(write(name, b""), "wb") as sink:
        new = pyarrow.ipc.new_file if file else pyarrow.ipc.new_stream
        with new(sink, table.schema) as writer:
            writer.write_table(table)
    return name


def saved(name: str, splits: dict[str, list[Any]] | list[Any]) -> str:
    import datasets

    made = (
        datasets.Dataset.from_list(splits)
        if isinstance(splits, list)
        else datasets.DatasetDict({key: datasets.Dataset.from_list(each) for key, each in splits.items()})
    )
    made.save_to_disk(name)
    return name


# What is read


def forms() -> dict[str, Any]:
    data, csv = lines(rows("a", 3)), b"prompt,completion\n" + b"".join(b"a %d?,a%d\n" % (n, n) for n in range(3))
    for number in range(3):
        path = write(f"shards/train-{number:05}-of-00003.parquet", b"")
        parquet.write_table(pyarrow.Table.from_pylist([row("a", number)]), path)
    for number in range(3):
        write(f"many/part-{number}.jsonl", [row("a", number)])
    write("many/README.md", b"# Rows")
    write("many/_SUCCESS", b"")
    return {
        "gzip": write("rows.jsonl.gz", gzip.compress(data)),
        "gzip in parts": write("parts.jsonl.gz", gzip.compress(data[:20]) + gzip.compress(data[20:])),
        "gzip of CSV": write("rows.csv.gz", gzip.compress(csv)),
        "zstd": write("rows.jsonl.zst", zstd(data)),
        "zstd of an array": write("rows.json.zst", zstd(json.dumps(rows("a", 3)).encode())),
        "an Arrow stream": arrow("stream.arrow", rows("a", 3), file=False),
        "an Arrow file": arrow("file.arrow", rows("a", 3), file=True),
        "a directory": "many",
        "a pattern": "many/part-*.jsonl",
        "a pattern of any depth": "**/part-*.jsonl",
        "Parquet shards": "shards",
        "save_to_disk": saved("disk", rows("a", 3)),
        "save_to_disk of splits": saved("splits", {"train": rows("a", 3), "test": rows("b", 1)}),
        "a named split of it": [{"file": saved("named", {"big": rows("a", 3)}), "split": "big"}],
        "a directory as a dataset": [{"dataset": "hub"}] if write("hub/train.jsonl", rows("a", 3)) else [],
        "the first rows": [{"file": write("more.jsonl", rows("a", 9)), "rows": 3}],
    }


def test_every_form_is_read_to_the_same_rows() -> None:
    found = {name: read(prepared(train)) for name, train in forms().items()}
    assert found == {name: ["a0", "a1", "a2"] for name in found}


def test_an_array_is_read_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from sft_recipes.data.readers import _Window

    whole = prepared(write("rows.json", json.dumps(rows("é", 40), indent=1, ensure_ascii=False).encode()))
    expected = read(whole)
    bad = json.dumps(rows("é", 40), indent=1, ensure_ascii=False).replace('"é 39?",', '"é 39?"')
    said = problems(write("bad.json", bad.encode()))
    latin = problems(write("latin.json", json.dumps(rows("é", 40), indent=1, ensure_ascii=False).encode("latin-1")))
    monkeypatch.setattr(_Window, "BLOCK", 7)
    assert expected == [f"é{number}" for number in range(40)]
    assert read(prepare(train_file="rows.json", validation_file=None, cache=Path("again"))) == expected
    assert problems("bad.json") == said
    assert problems("latin.json") == latin


# How several are brought together


def test_sources_without_weights_follow_each_other_and_each_may_be_in_its_own_form() -> None:
    alpaca = [{"frage": "c?", "output": "c"}]
    talks = [{"conversations": [{"from": "human", "value": "d?"}, {"from": "gpt", "value": "d"}]}]
    named = [
        {"file": write("c.jsonl.gz", gzip.compress(lines(alpaca))), "data_columns": {"instruction": "frage"}},
        write("d.jsonl", talks),
        {"dataset": "hub", "rows": 2} if write("hub/train.jsonl", talks * 3) else {},
    ]
    made = prepared(named)
    text = (made.directory / "train.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["completion"][0]["content"] for line in text] == ["c", "d", "d", "d"]
    facts = made.splits["train"]
    assert (facts["source"], facts["rows"], facts["prepared_rows"]) == ("c.jsonl.gz, d.jsonl, hub train", 4, 4)
    assert [(each["format"], each["rows"]) for each in facts["sources"]] == [
        ("alpaca", 1),
        ("sharegpt", 1),
        ("sharegpt", 2),
    ]
    assert "train: 1 row of d.jsonl" in made.notes


@pytest.mark.parametrize("strategy", ["first_exhausted", "all_exhausted"])
def test_weights_draw_as_interleave_datasets_does(strategy: str) -> None:
    import datasets

    number = {"a": 700, "b": 150, "c": 60}
    weight = {"a": 6, "b": 3.0, "c": 1}
    named = [{"file": write(f"{each}.jsonl", rows(each, number[each])), "weight": weight[each]} for each in number]
    made = prepared(named, stopping_strategy=strategy)
    upstream = datasets.interleave_datasets(
        [datasets.Dataset.from_list(rows(each, n)) for each, n in number.items()],
        probabilities=[0.6, 0.3, 0.1],
        seed=found_sources.SEED,
        stopping_strategy=strategy,
    )
    drawn = read(made)
    assert drawn == list(upstream["completion"])
    by = Counter(each[0] for each in drawn)
    assert [each["prepared_rows"] for each in made.splits["train"]["sources"]] == [by["a"], by["b"], by["c"]]
    assert ["abc"[origin] for origin in preparation.origins(made, "train")] == [each[0] for each in drawn]
    # What TRL is given are the rows alone.
    loaded = datasets.load_dataset(str(made.directory), cache_dir="hf")["train"]
    assert (len(loaded), loaded.column_names) == (len(drawn), ["prompt", "completion"])


def test_the_rows_held_out_are_held_out_before_any_is_drawn() -> None:
    named = [{"file": write(f"{each}.jsonl", rows(each, 60)), "weight": n} for each, n in (("a", 9), ("b", 1))]
    made = prepared(named, validation_split_size=0.3, stopping_strategy="all_exhausted")
    train, held_out = read(made), read(made, "validation")
    assert not set(train) & set(held_out) and len(set(train)) + len(held_out) == 120
    assert len(train) > 200 and Counter(held_out).most_common(1)[0][1] == 1
    counted = survey.survey(made, None, cache=Path("surveys"))["splits"]["train"]
    assert counted["repeated"] == counted["duplicates"]["count"] == len(train) - len(set(train))


def test_what_decides_about_the_rows_is_in_their_fingerprint() -> None:
    a, b = write("a.jsonl", rows("a", 6)), write("b.jsonl", rows("b", 6))
    weighted = [{"file": a, "weight": 1}, {"file": b, "weight": 2}]
    made = [
        prepared([a, b]),
        prepared([b, a]),
        prepared([a, {"file": b, "rows": 3}]),
        prepared(weighted),
        prepared(weighted, stopping_strategy="all_exhausted"),
        prepared([{**weighted[0], "weight": 2}, weighted[1]]),
        prepared("*.jsonl"),
    ]
    write("b.jsonl", rows("c", 6))
    made.append(prepared([a, b]))
    assert len({each.fingerprint for each in made}) == len({each.splits["train"]["sha256"] for each in made}) + 1 == 8
    assert prepared([a, b]).fingerprint == made[-1].fingerprint
    assert prepared(a).fingerprint == prepared(a, stopping_strategy="all_exhausted").fingerprint


# What is known of each source


def test_plan_and_evaluation_tell_the_sources_apart() -> None:
    a, b = write("a.jsonl", rows("a", 40)), write("b.jsonl", rows("long text of b", 20))
    test = [write("c.jsonl", rows("c", 5)), write("d.jsonl", [*rows("d", 3), row("a", 1)])]
    made = prepared([a, b], test_file=test)
    counted = survey.survey(made, None, cache=Path("surveys"))
    (recipe,) = (recipes.load(_recipe()),)
    figures = rows_kept(recipe, counted)["train"]
    first, second = figures["sources"]
    assert [first["source"], first["rows"], second["source"], second["rows"]] == ["a.jsonl", 40, "b.jsonl", 20]
    for key in ("tokens", "supervised_tokens", "rows_ending_with_eos"):
        assert first[key] + second[key] == figures[key] and first[key] > 0
    told = [text for _, text in plan._render_data({"notes": [], "train": figures})]
    assert any(text.startswith("b.jsonl: 20 rows (33 %), about ") for text in told)
    own = recipe.own() | {"task": "generation"}
    asked = questions.ask(own, made, "test")
    assert asked.grouped_by == "source"
    assert Counter(question.group for question in asked.questions) == {"c.jsonl": 5, "d.jsonl": 4}
    assert [question.row for question in asked.questions if question.leaked] == [9]
    assert len(asked.training()) == 60


def _recipe() -> Path:
    path = Path("recipes/mix.yaml")
    write(str(path), b"model_name_or_path: org/model\ntrain_file: [a.jsonl, b.jsonl]\neval_strategy: 'no'\n")
    return path


def test_a_recipe_names_sources_that_are_not_here_yet() -> None:
    job = resolve(_recipe(), planned=True, accel="single_gpu")
    assert str(job.absent).startswith("a.jsonl is not here, so nothing is said about rows")
    write("a.jsonl", rows("a", 30))
    write("b.jsonl", [*rows("b", 30), *rows("b", 2)])
    job = resolve(_recipe(), planned=True, accel="single_gpu")
    assert job.absent is None and job.rows["train"]["rows"] == 62
    assert "duplicate-rows" in [finding.rule for finding in lint.findings(job.case)]
    written = launch._with_tokens(job, "train", job.prepared.splits["train"])["sources"]
    assert [each["prepared_rows"] for each in written] == [30, 32]
    assert sum(each["supervised_tokens"] for each in written) == job.rows["train"]["supervised_tokens"] > 0


def _calls(name: str, **more: Any) -> dict[str, Any]:
    tool = {"name": name, "description": "Finds.", "parameters": {"type": "object", "properties": {}}}
    call = {"id": "1", "type": "function", "function": {"name": name, "arguments": {"where": name}}}
    asked = [{"role": "user", "content": f"{name}?"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    return {"messages": asked, "tools": [tool], **more}


@pytest.mark.parametrize("weight", [None, 1])
def test_sources_with_tools_and_variables_go_with_those_without(weight: int | None) -> None:
    import datasets

    told = {"chat_template_kwargs": {"deep": True}}
    parquet.write_table(pyarrow.Table.from_pylist([{"instruction": "a?", "output": "a"}]), "a.parquet")
    names = ["a.parquet", write("b.jsonl", [_calls("find", **told)]), write("c.jsonl", [_calls("look")])]
    named = [{"file": name, **({"weight": weight} if weight else {})} for name in names]
    made = prepared(named, stopping_strategy="all_exhausted")
    assert made.holds == ("tools", "calls", "call answers") and made.variables == ("deep",)
    assert made.columns == {"instruction": "instruction", "output": "output"} and made.format == "alpaca"
    assert made.notes[:2] == (
        "format: alpaca, recognised by its columns",
        "format: messages, recognised by its columns",
    )
    loaded = datasets.load_dataset(str(made.directory), cache_dir="read")["train"]
    found = {each["completion"][0]["content"] or each["tools"]: each["chat_template_kwargs"] for each in loaded}
    assert {key[:1] for key in found} == {"a", "["} and [*found.values()].count({"deep": True}) == 1
    other = write("d.jsonl", [_calls("find", chat_template_kwargs={"deep": 3})])
    (problem,) = problems([*names, other])
    assert problem.startswith(
        "d.jsonl:1: chat_template_kwargs.deep holds the number 3, of another type than in earlier rows"
    )


def test_a_test_share_is_drawn_of_all_sources_before_they_are_weighted() -> None:
    named = [
        {"file": write("a.jsonl", rows("a", 100)), "weight": 3},
        {"file": write("b.jsonl", rows("b", 60)), "weight": 1},
    ]
    made = prepared(named, test_split_size=0.3, validation_split_size=0.2, stopping_strategy="all_exhausted")
    held = [each for split in ("validation", "test") for each in read(made, split)]
    assert len(held) == len(set(held)) and not set(held) & set(read(made))
    assert len(set(read(made))) + len(held) == 160
    assert [each["weight"] for each in made.splits["test"]["sources"]] == [None, None]
    groups = Counter(preparation.groups(made, "test"))
    assert groups == Counter(f"{answer[0]}.jsonl" for answer in read(made, "test"))
    number = groups["a.jsonl"]
    assert f"test: {number} of 100 rows of a.jsonl, chosen by a hash of the row (test_split_size 0.3)" in made.notes


def test_one_file_takes_the_place_of_several_and_of_how_they_are_drawn() -> None:
    two = "train_file: [{file: a.jsonl, weight: 1}, {file: b.jsonl, weight: 2}]\nstopping_strategy: all_exhausted"
    held_out = "eval_strategy: epoch\nvalidation_file: [c.jsonl]"
    write("recipes/mix.yaml", f"model_name_or_path: org/model\n{two}\n{held_out}\n".encode())
    found = recipes.load(Path("recipes/mix.yaml"), {"data": "mine.jsonl"})
    assert (found["train_file"], found["validation_file"], found["validation_split_size"]) == ("mine.jsonl", None, 0.1)
    assert (found["stopping_strategy"], found.replaced) == (
        "first_exhausted",
        ["train_file", "validation_file", "stopping_strategy"],
    )
    other = recipes.load(Path("recipes/mix.yaml"), "train_file=[mine.jsonl, more] stopping_strategy=first_exhausted")
    assert other["train_file"] == ["mine.jsonl", "more"]


def test_what_a_pattern_of_training_rows_lacks_is_its_own_fault() -> None:
    write("part-1.jsonl", rows("a", 2))
    write("part-2.jsonl", [{"prompt": "a?"}])
    (problem,) = problems("part-*.jsonl")
    assert problem.startswith("part-2.jsonl:1: 'completion' is missing") and "DATA=" not in problem


# What is refused


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("[]", "train_file: an empty list; name a file, or null for none"),
        ("[a.jsonl, a.jsonl]", "train_file: a.jsonl is named twice; name it once, and give each source a weight"),
        ("[{file: a, weight: 0}]", "train_file: source 1: weight: 0 is no weight; write a number above 0, or delete"),
        ("[{file: a, rows: 0}]", "train_file: source 1: rows: 0 is no number of rows; write a whole number from 1"),
        ("[a, {file: b, weight: 2}]", "train_file: a has no weight, and others have; give each source one, or none"),
        ("[{fle: a}]", "train_file: source 1: fle: no such key of a source (nearest: 'file')"),
        ("[{file: a, dataset: b}]", "train_file: source 1: name exactly one of file (a file, directory or pattern)"),
        ("[{file: a, config: b}]", "train_file: source 1: config is of a Hub dataset, and this is a file; drop it"),
        ("[3]", "train_file: source 1: expected a name or a mapping such as {file: a.jsonl, weight: 0.7}, got 3"),
        (
            "[a]\nstopping_strategy: all_exhausted",
            "stopping_strategy says when drawing by weights ends, and no source",
        ),
        ("a\ntest_file: [{file: b, weight: 1}]", "test_file: rows that are held out are each read once; drop the"),
    ],
)
def test_lists_that_cannot_be_meant(said: str, expected: str) -> None:
    write("recipes/mix.yaml", f"model_name_or_path: org/model\neval_strategy: 'no'\ntrain_file: {said}\n".encode())
    with pytest.raises(InputError) as raised:
        recipes.load(Path("recipes/mix.yaml"))
    assert [expected in problem for problem in raised.value.problems].count(True) == 1


def test_sources_that_cannot_be_read_are_told_all_at_once() -> None:
    good = gzip.compress(lines(rows("a", 500)))
    write("mixed/a.jsonl", rows("a", 1))
    write("mixed/b.csv", b"prompt,completion\na,b\n")
    write("all/train.jsonl", rows("a", 1))
    write("all/test.jsonl", rows("b", 1))
    write("shards/x-00000-of-00002.jsonl", rows("a", 1))
    write("nothing/README.md", b"rows")
    saved("disk", {"train": rows("a", 1)})
    named = [
        "nowhere.jsonl",
        "no_such_*.jsonl",
        "mixed",
        "all",
        "shards",
        "nothing",
        {"file": "disk", "split": "trian"},
        {"file": "mixed/a.jsonl", "split": "train"},
        write("plain.jsonl.gz", lines(rows("a", 1))),
        write("packed.jsonl", good),
        write("broken.jsonl.gz", good[:20]),
    ]
    assert problems(named) == [
        "nowhere.jsonl: no such file; correct the path, or name your own file with SET=train_file=...",
        "no_such_*.jsonl: the pattern matches no file; correct it",
        "mixed holds files of several forms ('mixed/a.jsonl', 'mixed/b.csv'); name those of one, such as "
        "mixed/*.jsonl",
        "all holds files of several splits ('all/test.jsonl', 'all/train.jsonl'); name those of one, such as "
        "all/train.jsonl, or the directory as dataset_name, whose splits are told apart",
        "shards lacks 'shards/x-00001-of-00002.jsonl' of its shards; copy or download it again",
        "nothing: a directory without files of rows; name another",
        "disk has no split 'trian' (nearest: 'train'), it has 'train'; write train_file: [{file: disk, split: train}]",
        "train_file: split is of Hub datasets and what save_to_disk wrote, which mixed/a.jsonl is not; drop it",
        "plain.jsonl.gz is not compressed with gzip; name it without .gz",
        "packed.jsonl is compressed with gzip; name it packed.jsonl.gz",
        "broken.jsonl.gz cannot be read: the compressed data are damaged or cut off (Compressed file ended before the "
        "end-of-stream marker was reached); copy, download or compress the file again",
    ]


@pytest.mark.parametrize(("suffix", "compress"), [(".gz", gzip.compress), (".zst", zstd)])
def test_compressed_rows_that_are_cut_off_later_are_one_problem(suffix: str, compress: Any) -> None:
    generator = np.random.default_rng(0)
    many = [row(generator.bytes(60).hex(), each) for each in range(3000)]
    cut = compress(lines(many))[:-5000]
    (problem,) = problems(write(f"rows.jsonl{suffix}", cut))
    assert problem.startswith(f"rows.jsonl{suffix}: the compressed data are damaged or cut off (")


def test_sources_that_do_not_fit_together() -> None:
    a, b = write("a.jsonl", rows("a", 3)), write("b.jsonl", rows("b", 3))
    talk = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    turns = write("turns.jsonl", [{"messages": talk}])
    several = write("several.jsonl", [{"messages": talk * 2}])
    pairs = write("pairs.jsonl", [{"prompt": talk[:1], "completion": talk[1:]}])
    assert problems([a, turns]) == ["turns.jsonl: has turns, and a.jsonl has plain text; write all in one of them"]
    assert problems([several, pairs]) == [
        "pairs.jsonl: has prompts and completions, and several.jsonl:1 has several answers to learn; write both as "
        "messages"
    ]
    assert problems([a, {"file": b, "rows": 4}]) == [
        "b.jsonl: has 3 rows, and rows: 4 asks for more; write no more than that"
    ]
    (problem,) = problems([{"file": a, "weight": 1e-6}, {"file": b, "weight": 1}], stopping_strategy="all_exhausted")
    assert problem.startswith("stopping_strategy: all_exhausted with these weights would draw about 3,000,003 rows")


# Any number of rows in memory of one size


def test_repetitions_are_the_same_in_parts(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    generator = np.random.default_rng(1)

    def found() -> list[Any]:
        splits = []
        for split in drawn:
            splits.append(repetitions.Hashes(here / "hashes"))
            rows = [[hash(str(each)) for each in (values, values[:1], *values)] for values in split]
            columns = zip(repetitions.Hashes.NAMES, zip(*rows, strict=True), strict=True)
            splits[-1].extend({name: array("q", column) for name, column in columns})
        one, two = splits
        return [repetitions.within(one), repetitions.distinct(one, "answer"), repetitions.between(two, one)]

    drawn = [generator.integers(0, 40, (number, 3)).tolist() for number in (500, 90)]
    whole = found()
    assert whole[0]["duplicates"]["count"] == 500 - len(set(map(tuple, drawn[0]))) and whole[1] == 40
    first: dict[int, int] = {}
    contradicting = sum(first.setdefault(asked, answer) != answer for asked, _, answer in drawn[0])
    assert whole[0]["contradictions"]["count"] == contradicting > 100
    monkeypatch.setattr(repetitions, "AT_ONCE", 60)
    monkeypatch.setattr(repetitions, "_BLOCK", 16)
    assert found() == whole


SIZE = """
    import json, resource, sys
    from pathlib import Path
    from sft_recipes.data import preparation, survey
    from sft_recipes.evaluate import questions
    from sft_recipes.recipes import task

    def peak():
        # In KiB, on Linux.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    def look(number):
        rows = [{"prompt": f"{each}? " + "word " * 400, "completion": f"answer {each}"} for each in range(50)]
        with open("a.jsonl", "w") as file, open("b.json", "w") as array:
            array.write("[")
            for each in range(number):
                row = rows[each % 50] | {"completion": f"answer {each}"}
                file.write(json.dumps(row) + "\\n")
                array.write(("," if each else "") + json.dumps(row | {"prompt": "b" + row["prompt"]}))
            array.write("]")
        named = [{"file": "a.jsonl", "weight": 1}, {"file": "b.json", "weight": 2}]
        made = preparation.prepare(
            train_file=named, validation_file=None, validation_split_size=0.5, cache=Path("cache")
        )
        asked = questions.ask(dict.fromkeys(task.KEYS) | {"task": "generation"}, made, "validation")
        assert asked.rows == made.splits["validation"]["prepared_rows"]
        return survey.survey(made, None, cache=Path("surveys"))["splits"]["train"]["rows"]

    look(500)
    before = peak()
    number = look(3500)
    print(number, round(peak() - before, 1), "torch" in sys.modules)
"""


def test_seven_times_the_rows_are_planned_in_the_same_memory() -> None:
    """6,000 rows more of 2 KB are 12 MiB of text, and far more as a list."""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(SIZE)], capture_output=True, text=True, check=True)
    number, grown, torch = done.stdout.split()
    assert int(number) > 2000 and float(grown) < 6 and torch == "False"
