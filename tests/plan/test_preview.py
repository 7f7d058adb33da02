"""What is shown of the rows is what the trainer trains on, and nothing that a row holds can do harm."""

import json
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from conftest import write_rows

from sft_recipes.demo import tiny
from sft_recipes.errors import InputError
from sft_recipes.plan import job as jobs
from sft_recipes.plan import preview

pytest_plugins = ["forks"]

Look = Callable[..., dict[str, Any]]

TURNS = [
    {"role": "user", "content": "red cat"},
    {"role": "assistant", "content": "odd"},
    {"role": "user", "content": "red red dog"},
    {"role": "assistant", "content": "even"},
]
CASES: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "alpaca": (
        [{"instruction": "Count the word red.", "input": "red " * n, "output": "odd"} for n in range(1, 9)],
        {},
    ),
    "turns": ([{"messages": TURNS[: 2 + 2 * (n % 2)]} for n in range(8)], {}),
    "plain": ([{"prompt": f"red cat {n} is", "completion": " odd"} for n in range(8)], {}),
    "everything": (
        [{"prompt": f"red {n} is", "completion": " odd"} for n in range(8)],
        {"completion_only_loss": False},
    ),
    # Whole, cut within the answer, and without any of it.
    "cut": (
        [{"prompt": "red " * n, "completion": "the number is odd"} for n in (2, 10, 4, 14, 40)],
        {"max_length": 24},
    ),
    "cut_at_the_start": (
        [{"prompt": "red " * n, "completion": " odd"} for n in (2, 3, 4, 40)],
        {"max_length": 16, "truncation_mode": "keep_end"},
    ),
    "padded": ([{"prompt": "red " * n, "completion": " odd"} for n in (2, 5)], {"pad_to_multiple_of": 8}),
}


def write_data(project: Path, rows: list[dict[str, Any]]) -> None:
    """The same rows for training and held out."""
    for split in ("train", "validation"):
        write_rows(project / "data" / f"{split}.jsonl", rows)


def words(overrides: dict[str, Any]) -> list[str]:
    return [f"{key}={json.dumps(json.dumps(value))}" for key, value in overrides.items()]


@pytest.fixture
def look(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Look:
    """The process with torch in it, in this process: what `preview` gets for the first rows of the recipe `tiny`."""
    from accelerate.state import AcceleratorState, PartialState

    def look(rows: int = 100, **overrides: Any) -> dict[str, Any]:
        AcceleratorState._reset_state(reset_partial_state=True)
        PartialState._reset_state()
        job = jobs.check("tiny", overrides=words(overrides))
        total = job.prepared.splits["train"]["prepared_rows"]
        directory = tmp_path_factory.mktemp("look")
        preview.write(directory, job, tiny.find("model", "main"), preview.chosen(total, rows, None))
        preview.main(directory)
        return json.loads((directory / "answer.json").read_text())

    return look


@pytest.mark.parametrize("case", CASES)
def test_the_rows_shown_are_the_rows_trained_on(
    look: Look, project: Path, rows_here: Callable[..., Any], case: str
) -> None:
    rows, overrides = CASES[case]
    write_data(project, rows)
    trainer, data = rows_here(name=case, warmup_steps=0, **overrides)
    trained = [(row["input_ids"], row["labels"]) for row in trainer.train_dataset]
    shown = look(**overrides)["rows"]

    assert [(row["ids"], row["labels"]) for row in shown if not row["lost"]] == trained
    assert sum(row["lost"] for row in shown) == data["rows_lost"]
    assert len(shown) == len(rows)
    assert sum(row["supervised"] for row in shown) == sum(label != -100 for _, labels in trained for label in labels)
    if case == "cut":
        assert [row["lost"] for row in shown] == [False, False, False, True, True]
        assert [row["tokens_lost"] > 0 for row in shown] == [False, True, False, True, True]
        assert shown[1]["supervised"] > 0 and shown[1]["supervised_lost"] > 0
    if case == "cut_at_the_start":
        assert shown[3]["segments"][0][0] == preview.LOST and not shown[3]["lost"]


def test_packed_rows_are_shown_as_sequences(look: Look, project: Path) -> None:
    write_data(project, CASES["plain"][0])
    answer = look(packing=True, max_length=512)
    assert len(answer["rows"]) == 1 and answer["tokens_lost"] == 0
    (sequence,) = answer["rows"]
    assert sum(text.count("odd<|im_end|>") for state, text in sequence["segments"] if state == preview.TRAINED) == 8


def test_rows_are_shown_also_when_all_are_lost(look: Look) -> None:
    rows = look(rows=2, max_length=4)["rows"]
    assert [(row["lost"], row["tokens"], row["supervised_lost"] > 0) for row in rows] == [(True, 0, True)] * 2


def test_the_text_of_a_row_is_whole(look: Look, project: Path) -> None:
    write_data(project, [{"messages": TURNS}])
    segments = look()["rows"][0]["segments"]
    assert "".join(text for state, text in segments if state == preview.TRAINED) == "odd<|im_end|>even<|im_end|>"
    assert "".join(text for _, text in segments) == (
        "<|im_start|>user\nred cat<|im_end|>\n<|im_start|>assistant\nodd<|im_end|>\n"
        "<|im_start|>user\nred red dog<|im_end|>\n<|im_start|>assistant\neven<|im_end|>\n"
    )


def test_an_answer_that_is_marked_is_not_trained_on(look: Look, project: Path) -> None:
    asked, first, again, last = TURNS
    marked = [asked, first | {"weight": 0}, again, last]
    write_data(project, [{"messages": marked}, {"messages": [*marked, asked, first | {"train": False}]}])
    for row in look()["rows"]:
        assert [text for state, text in row["segments"] if state == preview.TRAINED] == ["even<|im_end|>\n"]
        assert "".join(text for _, text in row["segments"]).count("odd") == 1


def test_what_training_would_refuse_is_refused(look: Look) -> None:
    assert "q_porj matches no module" in look(lora_target_modules=["q_porj"])["problems"][0]


@pytest.mark.usefixtures("forks")
def test_the_command_shows_the_same_random_rows_for_the_same_seed(project: Path) -> None:
    first = preview.preview("tiny", rows=3, seed=1)
    assert first["of"] == 64 and len(first["rows"]) == 3
    assert [row["row"] for row in first["rows"]] == preview.chosen(64, 3, 1) != [1, 2, 3]
    assert (first["recipe"], first["model"], first["max_length"]) == ("tiny", "model", 512)
    data = [json.loads(line) for line in Path("data/train.jsonl").read_text().splitlines()]
    for row in first["rows"]:
        assert data[row["row"] - 1]["input"] in row["segments"][0][1]
    assert not Path("runs").exists()


def test_a_tokenizer_that_is_not_here_is_named_with_the_remedy(project: Path) -> None:
    with pytest.raises(InputError, match=r"tokenizer of Qwen/Qwen3-8B .* hf download Qwen/Qwen3-8B --revision main"):
        preview.preview("default")
    with pytest.raises(InputError, match=r"its config is not on this machine.*hf download no/such"):
        preview.preview("tiny", overrides=["model_name_or_path=no/such"])


def test_a_preview_has_not_more_rows_than_there_are() -> None:
    assert preview.chosen(3, 5, None) == [1, 2, 3]
    assert preview.chosen(3, 5, 7) == [1, 2, 3]


HOSTILE = "a\x1b]0;owned\x07\r\x9b2J\u202eb\x00 <script>alert(1)</script> &amp; \"'><img src=x onerror=alert(1)>"
HOSTILE += " {{ 7*7 }} {% raw %}"


def facts(*segments: tuple[str, str], **changes: Any) -> dict[str, Any]:
    row = {"row": 7, "tokens": 9, "supervised": 3, "tokens_lost": 2, "supervised_lost": 1, "lost": False}
    row |= {"ids": [], "labels": [], "segments": segments}
    about = {"recipe": "r", "model": HOSTILE, "max_length": 9, "packing": False, "of": 1200, "tokens_lost": 2}
    return {**about, "rows": [row | changes]}


@pytest.mark.parametrize("colour", [False, True])
def test_control_characters_never_reach_the_terminal(colour: bool) -> None:
    said = preview.as_text(facts(("masked", HOSTILE), ("trained", HOSTILE)), colour=colour)
    rest = re.sub(r"\x1b\[(0|2|32|31;9)m", "", said)
    assert (rest != said) == colour
    assert all(char.isprintable() or char == "\n" for char in rest)
    assert r"a\x1b]0;owned\x07\r\x9b2J\u202eb\x00" in rest


def test_marks_where_there_are_no_colours() -> None:
    text = preview.as_text(facts(("masked", "in\n"), ("trained", "out\n"), ("lost", "gone")), colour=False)
    assert text.endswith(
        "\nrow 7: 9 tokens, 3 supervised; 2 more cut off, 1 of them supervised\nin↵\n[[out↵]]\n{{gone}}\n"
    )
    assert "[[trained on]]" in text and "1,200 training rows" in text
    lost = preview.as_text(facts(("lost", "gone"), lost=True), colour=False)
    assert "row 7: lost; none of its 1 supervised token is within max_length 9 (2 tokens), so TRL drops it" in lost


def test_the_page_holds_rows_as_text_and_asks_the_network_for_nothing() -> None:
    page = preview.as_html(facts(("masked", HOSTILE), ("trained", "ok")))
    tags: list[str] = []
    texts: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: Any) -> None:
            tags.append(tag)
            assert not any(name.startswith("on") or name in ("src", "href") for name, _ in attrs)

        def handle_data(self, data: str) -> None:
            texts.append(data)

    Reader().feed(page)
    assert set(tags) == {"html", "meta", "title", "style", "h1", "h2", "p", "pre", "span"}
    assert preview.visible(HOSTILE) in texts
    assert "prefers-color-scheme: dark" in page and "default-src 'none'" in page
    assert "http://" not in page and "https://" not in page and "url(" not in page


def test_the_parent_imports_no_torch() -> None:
    import subprocess

    code = (
        "import sys; from sft_recipes.launch import rehearse; from sft_recipes.plan import preview; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
