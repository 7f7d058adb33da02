"""What is counted in the rows, and that it is what a real training run sees."""

import json
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import alpaca_rows, write_rows

from sft_recipes.data import survey, templates, tokens
from sft_recipes.data.preparation import LONGEST_ROW, Prepared, prepare
from sft_recipes.errors import InputError
from sft_recipes.plan import job as jobs
from sft_recipes.recipes import recipe

Train = Callable[..., Any]


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def talks(number: int, seed: int) -> list[dict[str, Any]]:
    """Rows of one to three rounds."""
    rng = random.Random(seed)  # noqa: S311, seeded rows, no secrets
    rows = []
    for _ in range(number):
        turns = [turn("system", "Count.")] if rng.random() < 0.5 else []
        for _ in range(rng.randint(1, 3)):
            turns += [turn("user", " ".join(["dog"] * rng.randint(1, 9))), turn("assistant", f"{rng.random()} dogs")]
        rows.append({"messages": turns})
    return rows


def pairs(number: int, seed: int) -> list[dict[str, str]]:
    return [
        {"prompt": f"{row['instruction']} {row['input']} =", "completion": f" {row['output']} " * 3}
        for row in alpaca_rows(number, seed)
    ]


def surveyed(name: str = "tiny", **overrides: Any) -> dict[str, Any]:
    words = [f"{key}={json.dumps(json.dumps(value))}" for key, value in overrides.items()]
    job = jobs.check(name, overrides=words)
    return survey.survey(job.prepared, tokens.find_tokenizer(job.recipe), cache=Path("surveys"))


def of(directory: Path, train: list[Any], **files: list[Any]) -> Prepared:
    """The rows of a training file, and of others by the name of their key."""
    write_rows(directory / "train.jsonl", train)
    for name, rows in files.items():
        write_rows(directory / f"{name}.jsonl", rows)
    others = {f"{name}_file": str(directory / f"{name}.jsonl") for name in files}
    return prepare(
        train_file=str(directory / "train.jsonl"),
        cache=directory / "data",
        **{"validation_file": None, **others},  # type: ignore[arg-type]
    )


# What a training run records of the same rows


@pytest.mark.parametrize(
    ("rows", "max_lengths"), [(alpaca_rows, (512, 45, 40)), (talks, (512, 60, 30)), (pairs, (512, 42, 30))]
)
def test_figures_are_those_of_a_training_run(
    rows_here: Callable[..., Any], rows: Callable[..., list[Any]], max_lengths: tuple[int, ...]
) -> None:
    write_rows(Path("data/train.jsonl"), rows(64, seed=3))
    write_rows(Path("data/validation.jsonl"), rows(8, seed=4))
    found = surveyed()
    assert found["tokens_are"] == "exact"
    train = found["splits"]["train"]
    for max_length in max_lengths:
        _, effect = rows_here(name=f"at-{max_length}", max_length=max_length, max_steps=1, warmup_steps=0)
        # Of all rows TRL has made the same, also cut.
        assert effect["rows_compared"] == 64 + 8
        figures = survey.at_length(train, max_length)
        share = figures.pop("supervised_tokens") / figures["tokens"]
        assert share == pytest.approx(effect["supervised_token_share"], abs=1e-12)
        assert figures == {key: effect[key] for key in figures}
        expected = survey.real_token_share(train, max_length, 4)
        assert expected == pytest.approx(effect["real_token_share"], abs=0.05)
    assert figures["rows_lost"] > 0 and figures["rows_cut"] > 0
    assert survey.at_length(train, None) | {"rows_cut": 0} == survey.at_length(train, 10**6)
    assert survey.at_length(train, None)["tokens"] == train["tokens"]


def test_without_the_tokenizer_figures_are_estimates_and_say_so(tmp_path: Path) -> None:
    prepared = of(tmp_path, alpaca_rows(40, seed=1))
    found = survey.survey(prepared, None, cache=tmp_path / "surveys")
    assert found["tokens_are"] == "estimated"
    assert found["how"] == "4 bytes a token and 5 tokens a turn: no tokenizer at hand"
    train = found["splits"]["train"]
    assert train["end_of_turn_supervised"] is None and found["tokenizer"] is None
    row = alpaca_rows(1, seed=1)[0]
    asked = len(f"{row['instruction']}\n\n{row['input']}")
    first = 5 + -(-asked // 4) + 5 + -(-len(row["output"]) // 4)
    assert str(first) in train["lengths"]
    assert survey.at_length(train, None)["rows"] == 40


def test_estimates_are_near_the_truth_for_a_chat_model_of_english(project: Path) -> None:
    rows = [
        {"instruction": "Say it again.", "input": "It is late today. " * n, "output": "Late."} for n in range(1, 60)
    ]
    prepared = of(Path("other"), rows)
    estimated = survey.survey(prepared, None, cache=Path("surveys"))["splits"]["train"]["tokens"]
    exact = survey.survey(prepared, tokens.find_tokenizer(recipe.load("tiny")), cache=Path("surveys"))
    # The demo's small vocabulary needs more tokens for a text than a real one does.
    assert 0.3 < estimated / exact["splits"]["train"]["tokens"] < 1.5


# Counting


def test_ascii_is_normalised_as_every_other_text() -> None:
    ascii_, unseen = [*map(chr, range(128))], "\N{ZERO WIDTH SPACE}"
    for pair in (f"{one}{other}" for one in ascii_ for other in ascii_):
        # What nobody sees says nothing, but takes the longer way.
        text = f"A{pair}b {pair}"
        assert survey.normalised(text) == survey.normalised(text + unseen)


def test_rows_are_numbered_within_their_split_and_compared_across(tmp_path: Path) -> None:
    train = [{"prompt": f"q {n}", "completion": f"a {n}"} for n in range(2500)]
    again = [train[7], {"prompt": "Q  8.", "completion": "a 8"}, {"prompt": "q 9", "completion": "b"}]
    prepared = of(tmp_path, train + again, validation=[train[3]], test=[train[4], train[3], *train[:1]])
    told: list[int] = []
    found = survey.survey(prepared, None, cache=tmp_path / "surveys", on_progress=told.append)["splits"]
    assert told == [1000, 2000, 2503, 2504, 2507]
    assert found["train"]["duplicates"] == {"count": 1, "examples": [[2501, 8]]}
    assert found["train"]["normalised_duplicates"] == {"count": 2, "examples": [[2501, 8], [2502, 9]]}
    assert found["train"]["contradictions"] == {"count": 1, "examples": [[2503, 10]]}
    assert found["test"]["overlap"]["validation"]["exact"] == {"count": 1, "examples": [[2, 1]]}
    assert found["test"]["overlap"]["train"]["exact"] == {"count": 3, "examples": [[1, 5], [2, 4], [3, 1]]}
    assert found["validation"]["overlap"]["train"]["normalised"]["count"] == 1
    assert found["train"]["answers"]["distinct"] == 2501
    assert found["train"]["answers"]["first"] == "a 0"


@pytest.mark.parametrize(
    ("answers", "field"),
    [
        (["yes", "no"] * 10, ""),
        ([f"answer {n}" for n in range(20)], None),
        (["yes"] * 20, None),
        ([json.dumps({"why": f"w {n}", "flag": n % 2 == 0}) for n in range(20)], "flag"),
        ([json.dumps({"flag": n % 2 == 0, "label": "ab"[n % 2], "why": n}) for n in range(20)], "label"),
        ([f'{{"label": "{n % 4}"}}' for n in range(20)], "label"),
        ([str(n % 60) for n in range(600)], None),
    ],
)
def test_what_is_a_classification(tmp_path: Path, answers: list[str], field: str | None) -> None:
    prepared = of(tmp_path, [{"prompt": f"q {n}", "completion": answer} for n, answer in enumerate(answers)])
    found = survey.survey(prepared, None, cache=tmp_path / "surveys")
    assert found["class_field"] == field
    classes = found["splits"]["train"]["classes"]
    assert sum(facts["rows"] for facts in classes.values()) == (len(answers) if field is not None else 0)


def test_the_chat_template_names_the_row_that_it_refuses(project: Path) -> None:
    Path("strict.jinja").write_text(
        "{% for m in messages %}{% if m.content == 'no' %}{{ raise_exception('not that') }}{% endif %}"
        "{{ m.content }}{% endfor %}"
    )
    rows = [{"instruction": f"q {n}", "output": "no" if n == 1234 else "yes"} for n in range(1300)]
    write_rows(Path("data/train.jsonl"), rows)
    with pytest.raises(
        InputError, match=r"^data/train.jsonl row 1235: the model's chat template refuses it: not that"
    ):
        surveyed(chat_template_path="strict.jinja")


# The tokenizer and the cache


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for a in range(90000) %}{% for b in range(90000) %}x{% endfor %}{% endfor %}", "takes longer than 0.2 s"),
        ("{{ 1 / 0 }}", "row 1: the model's chat template refuses it: division by zero; rewrite the row, or set"),
        ("{{ messages[0].content + 1 }}", "row 1: the model's chat template refuses it: can only concatenate str"),
        ("{{ range(10 ** 9) | list }}", "row 1: the model's chat template refuses it: Range too big"),
        ("{% nonsense %}", "row 1: the model's chat template refuses it: Encountered unknown tag 'nonsense'"),
    ],
)
def test_a_template_that_does_not_come_to_an_end_or_fails(
    project: Path, monkeypatch: pytest.MonkeyPatch, template: str, reason: str
) -> None:
    monkeypatch.setattr(tokens, "SECONDS_A_ROW", 0.2)
    (project / "mine.jinja").write_text(template, encoding="utf-8")
    before = sys.gettrace()
    with pytest.raises(InputError, match=re.escape(reason)):
        surveyed(chat_template_path="mine.jinja")
    assert sys.gettrace() is before


def test_a_row_that_is_a_whole_file_is_refused_before_it_is_counted(project: Path) -> None:
    rows = [*alpaca_rows(3, seed=3), {"instruction": "x", "output": "y" * LONGEST_ROW}]
    write_rows(project / "data" / "long.jsonl", rows)
    with pytest.raises(
        InputError, match=r"long.jsonl:4: the row has 4,000,\d\d\d characters; a row has at most 4,000,000"
    ):
        surveyed(train_file="data/long.jsonl")


def test_batches_are_small_where_rows_are_long() -> None:
    long, short = json.dumps({"prompt": "x" * 400_000}), json.dumps({"prompt": "x"})
    assert [len(batch) for batch in tokens.batches([long] * 7)] == [3, 3, 1]
    assert [len(batch) for batch in tokens.batches([short] * 2500)] == [1000, 1000, 500]


def test_a_survey_is_kept_until_rows_tokenizer_or_template_change(project: Path) -> None:
    def kept() -> int:
        surveyed()
        return len(list(Path("surveys").iterdir()))

    assert [kept(), kept()] == [1, 1]
    files = {path.name: path.read_bytes() for path in Path("model").iterdir() if path.suffix == ".json"}
    template = (Path("model") / "chat_template.jinja").read_text()
    Path("model").unlink()
    Path("model").mkdir()
    for name, content in files.items():
        (Path("model") / name).write_bytes(content)
    (Path("model") / "chat_template.jinja").write_text(template)
    assert kept() == 1
    (Path("model") / "chat_template.jinja").write_text("Hello! " + template)
    assert kept() == 2
    write_rows(Path("data/train.jsonl"), alpaca_rows(63, seed=1))
    assert kept() == 3
    Path("data/train.jsonl").rename("data/renamed.jsonl")
    assert surveyed(train_file="data/renamed.jsonl")["splits"]["train"]["source"] == "data/renamed.jsonl"
    assert len(list(Path("surveys").iterdir())) == 3
    next(Path("surveys").iterdir()).write_text("{")
    assert surveyed(train_file="data/renamed.jsonl")["splits"]["train"]["rows"] == 63


def test_the_tokenizer_is_found_in_the_hubs_cache_and_nowhere_else(
    project: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    cache = Path("hub").absolute()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(cache), raising=False)
    named = recipe.load("tiny", recipe.parse_overrides("model_name_or_path=org/tiny"))
    assert tokens.find_tokenizer(named) is None
    place = cache / "models--org--tiny"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    (place / "snapshots").mkdir()
    (place / "snapshots" / ("0" * 40)).symlink_to(tiny_model)
    found, local = tokens.find_tokenizer(named), tokens.find_tokenizer(recipe.load("tiny"))
    assert found and local and found.fingerprint == local.fingerprint
    missing = recipe.load("tiny", recipe.parse_overrides("model_name_or_path=./no/such"))
    assert tokens.find_tokenizer(missing) is None


def test_marked_templates_are_those_that_trl_swaps_in() -> None:
    from trl import chat_template_utils

    directory = Path(chat_template_utils.__file__).parent / "chat_templates"
    texts = [path.read_text(encoding="utf-8") for path in directory.glob("*.jinja")]
    assert len(texts) > 40
    for template in texts:
        assert templates.training_template(template) == swapped(template, chat_template_utils)


def swapped(template: str, trl: Any) -> str | None:
    """What `SFTTrainer` uses with assistant_only_loss."""
    if trl.has_generation_markers(template):
        return template

    class Holder:
        chat_template = template

    try:
        return trl.get_training_chat_template(Holder())
    except ValueError:
        return None
    except AttributeError:
        # A template for tools, which is rendered first to see whether it needs a marked copy: without marks it does.
        names = [name for name, text in vars(trl).items() if name.endswith("_chat_template") and text == template]
        marked = [vars(trl).get(name.replace("_chat_template", "_training_chat_template")) for name in names]
        return next((each for each in marked if each), None)


def test_no_survey_imports_torch(project: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from sft_recipes.data import preparation, survey, tokens\n"
        "from sft_recipes.launch import launch; from sft_recipes.recipes import recipe\n"
        "r = recipe.load('tiny'); p = preparation.prepare(**preparation.source_of(r), cache=Path('cache'))\n"
        "f = survey.survey(p, tokens.find_tokenizer(r), cache=Path('surveys'))\n"
        "print(f['tokens_are'], 'torch' in sys.modules, 'trl' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["exact", "False", "False"]
    assert done.stderr == ""
