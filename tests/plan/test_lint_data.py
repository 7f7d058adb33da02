"""Every rule over the rows: a dataset that trips it, and one that does not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import alpaca_rows, write_rows

from sft_recipes.data import survey, tokens
from sft_recipes.data.preparation import prepare
from sft_recipes.evaluate import questions
from sft_recipes.plan import job as jobs
from sft_recipes.plan import lint
from sft_recipes.plan.lint import Case, Finding
from sft_recipes.plan.lint import data as rules
from sft_recipes.recipes import task

Row = dict[str, Any]
Look = Callable[..., dict[str, list[Finding]]]


def row(text: str, answer: str, ask: str = "Say which.") -> Row:
    return {"instruction": ask, "input": text, "output": answer}


def good(number: int, start: int = 0) -> list[Row]:
    """Rows of two classes, none like another."""
    return [row(f"text {start + n}", ("even", "odd")[n % 2]) for n in range(number)]


def origin(number: int, *, fixed: bool = False) -> list[Row]:
    """Targets as the origin's: one class with doubled braces and a constant text, the other with its own field."""
    rows = []
    for n in range(number):
        hate = n % 2
        answer = {"classification": "hate" if hate else "not_hate", "rationale": f"because {n}"}
        if hate or fixed:
            answer["protected_group"] = "a group"
        else:
            answer["rationale"] = "This text does not contain hate speech."
        text = json.dumps(answer)
        if not hate and not fixed:
            text = text.replace("{", "{{").replace("}", "}}")
        rows.append(row(f"text {n}", text, "Answer in JSON."))
    return rows


# Too few for small-evaluation-set, which is looked at with more.
HELD_OUT = good(8, start=10_000)


@pytest.fixture
def look(project: Path) -> Look:
    """What each rule says of train, validation and test rows, by its id; nothing of those that say nothing."""

    def look(train: list[Row], validation: list[Row] | None = None, test: list[Row] | None = None, **overrides: Any):
        write_rows(Path("data/train.jsonl"), train)
        write_rows(Path("data/validation.jsonl"), validation or HELD_OUT)
        if test:
            write_rows(Path("data/test.jsonl"), test)
            overrides["test_file"] = "data/test.jsonl"
        words = [f"{key}={json.dumps(json.dumps(value))}" for key, value in overrides.items()]
        job = jobs.check("tiny", overrides=words)
        found = survey.survey(job.prepared, tokens.find_tokenizer(job.recipe), cache=Path("surveys"))
        case = Case(job.recipe, job.topology, data=found)
        said = {each.id: list(each.check(case)) for each in about_rows()}
        return {name: told for name, told in said.items() if told}

    return look


# What a training refuses of rows with their tokenizer.
REFUSED = {"chat-template", "end-of-text-twice", "eos-token", "tokens-beyond-embedding"}


def about_rows() -> list[lint.Rule]:
    """The rules of lint/data.py, those that need no function, and what is refused of rows."""
    return [
        each
        for each in lint.rules().values()
        if each.id in REFUSED or getattr(each.look, "func", each.look).__module__ == rules.__name__
    ]


def severity(found: dict[str, list[Finding]], name: str) -> str:
    (said,) = found[name]
    return said.severity


# Two rows each that trip a rule among good ones, and what is said of them.
TRIPS: dict[str, tuple[list[Row], str]] = {
    "duplicate-rows": (
        [row("text 3", "odd"), row("TEXT 4!", "even")],
        "2 of 42 train rows (rows 41 and 42 of data/train.jsonl) repeat an earlier row, 1 of them exactly, e.g. "
        "row 41 is row 4:",
    ),
    "contradictory-answers": (
        [row("text 3", "even"), row("text 4", "odd")],
        "2 of 42 train rows (rows 41 and 42 of data/train.jsonl) answer an input otherwise than an earlier row, e.g. "
        "row 41 and row 4: at most one label is right",
    ),
    "classes-spelled-alike": (
        [row("x", "Odd"), row("y", "od\u200bd")],
        "train (data/train.jsonl) has the classes 'odd' (20 rows), 'Odd' (1 row), 'od\\u200bd' (1 row), which differ",
    ),
    "empty-answers": ([row("x", "nan"), row("y", "{}")], "2 of 42 train rows (rows 41 and 42 of data/train.jsonl)"),
    "unrendered-placeholders": (
        [row("x", "odd {name}"), row("y", "{{ label }}")],
        "2 of 42 train rows (rows 41 and 42 of data/train.jsonl) have a placeholder or doubled braces in the answer",
    ),
    "special-tokens-in-text": (
        [row("x<|im_end|>\n<|im_start|>assistant", "odd"), row("y", "odd<|im_end|>")],
        "2 of 42 train rows (rows 41 and 42 of data/train.jsonl) hold a control token",
    ),
    "email-addresses": (
        [row("from jane.doe@example.org", "odd"), row("y", "even, say me@example.co.uk")],
        "2 of 42 train rows (rows 41 and 42 of data/train.jsonl) hold an e-mail address",
    ),
    "key-like-strings": (
        [row("AKIA" + "ABCDEFGH" * 2, "odd"), row("y", "-----BEGIN RSA PRIVATE KEY-----")],
        "2 of 42 train rows (rows 41 and 42 of data/train.jsonl) hold what looks like an access key",
    ),
}


def asking(rows: list[Row], **values: Any) -> dict[str, Any]:
    return {"train": rows, **values}


TURNS = [("user", "red"), ("assistant", "odd"), ("user", "red red"), ("assistant", "even")]
TALKS = [{"messages": [{"role": role, "content": f"{text} {n}"} for role, text in TURNS]} for n in range(40)]
LONG = [row(f"text {n}", "word " * 60) for n in range(40)]
PAIRS = [{"prompt": f"order {n}:", "completion": " refund"} for n in range(80)]
SPACED = [{"prompt": f"order {n}: ", "completion": "refund"} for n in range(80)]
TWICE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|><|im_end|>\n{% endfor %}"
ONCE = TWICE.replace("<|im_end|><|im_end|>", "<|im_end|>")
MARKED = ONCE.replace("{{ m.content }}", "{% generation %}{{ m.content }}").replace(
    "<|im_end|>", "<|im_end|>{% endgeneration %}"
)
BARE = ONCE.replace("<|im_end|>", "")
CLOCK = ONCE.replace("{% for", "{{ strftime_now('%d %b %Y') }}{% for", 1)
TRIMMED = ONCE.replace("m.content", "m.content | trim")
DATED = ONCE.replace("{% for", "26 Jul 2024{% for", 1)
NUMBERED = [row(f"text {n}", str(n % 2)) for n in range(40)]
RARE = [row(f"text {n}", "odd" if n % 20 == 0 else "even") for n in range(100)]
SLOPPY = [row("x", "Odd"), row("y", "odd")]
# By rule: what it says to write, rows (and keys of the recipe) that trip it, and the same after that was done. A
# template is a file of that text.
REMEDIES: dict[str, list[tuple[str, dict[str, Any], dict[str, Any]]]] = {
    "split-overlap": [
        (
            "delete them from all but the split",
            asking(good(40), validation=[*good(3), *good(7, 5000)]),
            asking(good(40)[3:], validation=[*good(3), *good(7, 5000)]),
        )
    ],
    "split-overlap-normalised": [
        (
            "delete them from train",
            asking(good(40), validation=[row("Text  7.", "odd"), *good(9, 5000)]),
            asking(good(7), validation=[row("Text  7.", "odd"), *good(9, 5000)]),
        )
    ],
    "duplicate-rows": [("keep one of each", asking([*good(40), *good(3)]), asking(good(40)))],
    "contradictory-answers": [
        ("decide on one answer", asking([*good(40), row("text 3", "even")]), asking(good(40))),
        (
            "put what tells the two apart into the input",
            asking([*good(40), row("text 3", "even")]),
            asking([*good(40), row("text 3, counted from 1", "even")]),
        ),
    ],
    "empty-answers": [
        ("write the answer", asking([*good(40), row("x", "nan")]), asking([*good(40), row("x", "odd")])),
        ("delete the row", asking([*good(40), row("x", "nan")]), asking(good(40))),
    ],
    "answers-not-json": [("write answers with a JSON library", asking(origin(100)), asking(origin(100, fixed=True)))],
    "unrendered-placeholders": [
        ("fill in the template", asking([*good(40), row("x", "odd {name}")]), asking([*good(40), row("x", "odd Jo")]))
    ],
    "answer-leaks-class": [("with null where", asking(origin(100)), asking(origin(100, fixed=True)))],
    "constant-answer": [
        ("write what belongs to each row", asking(origin(100)), asking(origin(100, fixed=True))),
        ("add rows with other answers", asking([row(f"text {n}", "even") for n in range(40)]), asking(good(40))),
    ],
    "classes-are-numbers": [
        (
            "write the name of each class into the rows",
            asking(NUMBERED, validation=NUMBERED[:4], task="classification"),
            asking(good(40), task="classification"),
        )
    ],
    "class-imbalance": [
        ("add rows of the rare classes", asking(RARE), asking([*RARE, *(row(f"more {n}", "odd") for n in range(80))]))
    ],
    "classes-spelled-alike": [
        ("write them alike", asking([*good(40), *SLOPPY]), asking([*good(40), row("x", "odd"), row("y", "odd")])),
        (
            "list labels in the recipe",
            asking([*good(40), *SLOPPY]),
            asking([*good(40), *SLOPPY], task="classification", labels=["even", "odd", "Odd"]),
        ),
    ],
    "class-not-in-training": [
        (
            "spell classes alike in all files",
            asking(good(40), validation=[row("x", "Odd"), *good(9, 5000)]),
            asking(good(40), validation=[row("x", "odd"), *good(9, 5000)]),
        ),
        (
            "add train rows of these",
            asking(good(40), validation=[row("x", "neither"), *good(9, 5000)]),
            asking([*good(40), row("y", "neither")], validation=[row("x", "neither"), *good(9, 5000)]),
        ),
    ],
    "small-evaluation-set": [
        (
            "hold out 630 rows",
            asking(good(40), validation=good(300, 5000)),
            asking(good(40), validation=good(630, 5000)),
        )
    ],
    "every-answer-lost": [
        ("set max_length to 64", asking(alpaca_rows(64, 3), max_length=8), asking(alpaca_rows(64, 3), max_length=64))
    ],
    "answers-lost": [
        ("set max_length to 64", asking(alpaca_rows(64, 3), max_length=45), asking(alpaca_rows(64, 3), max_length=64))
    ],
    "answers-cut": [("set max_length to 192", asking(LONG, max_length=64), asking(LONG, max_length=192))],
    "chat-template": [
        (
            "a copy of it with {% generation %} around the assistant's text",
            asking(TALKS, validation=TALKS[:8], chat_template_path=ONCE),
            asking(TALKS, validation=TALKS[:8], chat_template_path=MARKED),
        ),
        (
            "or give each row one answer",
            asking(TALKS, validation=TALKS[:8], chat_template_path=ONCE),
            asking(good(40), chat_template_path=ONCE),
        ),
    ],
    "no-stop-token": [
        (
            "or chat_template_path to a template that puts it inside the assistant's turn",
            asking(good(40), chat_template_path=BARE),
            asking(good(40), chat_template_path=ONCE),
        )
    ],
    "stop-token-twice": [
        (
            "or set chat_template_path to a template that writes it once",
            asking(good(40), chat_template_path=TWICE),
            asking(good(40), chat_template_path=ONCE),
        ),
        (
            "delete the token from the end of the answers",
            asking([*good(40), row("x", "odd<|im_end|>")]),
            asking([*good(40), row("x", "odd")]),
        ),
    ],
    "answer-rewritten": [
        (
            "write the answers as the template leaves them",
            asking([*good(40), row("x", "odd ")], chat_template_path=TRIMMED),
            asking([*good(40), row("x", "odd")], chat_template_path=TRIMMED),
        ),
        (
            "a template that leaves them as they are",
            asking([*good(40), row("x", "odd ")], chat_template_path=TRIMMED),
            asking([*good(40), row("x", "odd ")], chat_template_path=ONCE),
        ),
    ],
    "template-reads-clock": [
        (
            "a copy of the template with a fixed date",
            asking(good(40), chat_template_path=CLOCK),
            asking(good(40), chat_template_path=DATED),
        )
    ],
    "special-tokens-in-text": [
        ("delete the tokens", asking([*good(40), row("x<|im_end|>", "odd")]), asking([*good(40), row("x", "odd")]))
    ],
    "prompt-not-a-prefix": [
        (
            "with the space at the start of the answer",
            asking(SPACED[:40], validation=SPACED[40:]),
            asking(PAIRS[:40], validation=PAIRS[40:]),
        )
    ],
    "email-addresses": [
        ("replace them", asking([*good(40), row("jane@example.org", "odd")]), asking([*good(40), row("NAME", "odd")]))
    ],
    "key-like-strings": [
        ("delete it", asking([*good(40), row("AKIA" + "ABCDEFGH" * 2, "odd")]), asking([*good(40), row("x", "odd")]))
    ],
}
# Followed by a test of its own here or in the test of what is refused, or nothing that rows or a key mend.
FOLLOWED = {
    *(
        "double-bos",
        "plain-text-prompts",
        "some-without-stop-token",
        "header-supervised",
        "empty-reasoning",
        "pad-is-eos",
    ),
    *("eos-token", "end-of-text-twice", "tokens-beyond-embedding"),
}


def test_every_remedy_of_a_rule_about_rows_is_followed() -> None:
    assert {each.id for each in about_rows()} == REMEDIES.keys() | FOLLOWED and not REMEDIES.keys() & FOLLOWED


@pytest.mark.parametrize(
    ("rule", "number"), [(rule, number) for rule, each in REMEDIES.items() for number in range(len(each))]
)
def test_what_is_said_of_rows_mends_them(look: Look, rule: str, number: int) -> None:
    words, trips, mended = REMEDIES[rule][number]

    def found(given: dict[str, Any]) -> list[Finding]:
        if "{%" in (template := given.get("chat_template_path", "")):
            Path("own.jinja").write_text(template, encoding="utf-8")
            given = {**given, "chat_template_path": "own.jinja"}
        return look(**given).get(rule, [])

    assert any(words in said.instead for said in found(trips)), [said.instead for said in found(trips)]
    assert found(mended) == []


def test_good_rows_trip_nothing(look: Look) -> None:
    many = good(1000, start=10_000)
    assert look(good(40), many) == {}
    code = "```python\ndef f(x):\n    return f'{x}'\n```"
    tex = r"\frac{a}{b} and ${name}"
    harmless = [row("braces", code), row("tex", tex), row("a@b", "sk-short"), row("1 + 1", "2"), row("1 - 1", "0")]
    assert look(good(40) + harmless, many).keys() <= {"class-imbalance"}


@pytest.mark.parametrize("name", TRIPS)
def test_rows_that_trip_a_rule_are_named(look: Look, name: str) -> None:
    added, text = TRIPS[name]
    (said,) = look(good(40) + added)[name]
    assert text in said.message


def test_overlap_blocks_when_it_is_a_large_share(look: Look) -> None:
    found = look(good(40), good(3) + good(997, start=5000))
    assert severity(found, "split-overlap") == "warning"
    assert found["split-overlap"][0].message.startswith(
        "3 of 1,000 validation rows (rows 1, 2 and 3 of data/validation.jsonl) have an input that is also in train, "
        "e.g. row 1 is train row 1"
    )
    found = look(good(400), test=good(300) + good(700, start=5000))
    assert severity(found, "split-overlap") == "blocking"
    assert "300 of 1,000 test rows (rows 1, 2, 3, 4, 5 and 295 more of data/test.jsonl)" in (
        found["split-overlap"][0].message
    )


def test_overlap_but_for_case_and_punctuation(look: Look) -> None:
    found = look(good(40), [row("text 0", "even"), row("Text  7.", "odd"), *good(998, start=5000)])
    (said,) = found["split-overlap-normalised"]
    assert said.message.startswith("1 more of 1,000 validation rows (data/validation.jsonl)")
    assert "e.g. row 2 is train row 8" in said.message
    assert "split-overlap-normalised" not in look(good(40), [row("text 0", "even"), *good(999, start=5000)])


@pytest.mark.parametrize(
    "mark", [" ", "- ", "-", "\u2013 ", "\u2022 ", '"', "\u201c", "\u00ab", "\ufeff", "\u200b", "(", ">"]
)
def test_a_mark_at_the_start_of_a_turn_makes_no_other_input(mark: str, tmp_path: Path) -> None:
    def talk(text: str, answer: str) -> Row:
        turns = [("system", "Be brief."), ("user", text), ("assistant", answer)]
        return {"messages": [{"role": role, "content": content} for role, content in turns]}

    write_rows(tmp_path / "train.jsonl", [talk("Caf\u00e9 or tea?", "tea"), talk(f"{mark}Coffee or tea?", "tea")])
    write_rows(tmp_path / "test.jsonl", [talk(f"{mark}Cafe\u0301 or tea?", "tea")])
    files = {f"{split}_file": str(tmp_path / f"{split}.jsonl") for split in ("train", "test")}
    prepared = prepare(**files, validation_file=None, cache=tmp_path / "data")
    found = survey.survey(prepared, None, cache=tmp_path / "surveys")
    overlap = found["splits"]["test"]["overlap"]["train"]
    assert (overlap["exact"]["count"], overlap["normalised"]["count"]) == (0, mark != ">")
    (question,) = questions.ask(dict.fromkeys(task.KEYS) | {"task": "generation"}, prepared, "test").questions
    assert question.leaked == (mark != ">")


def test_the_origins_answers_trip_the_rules_that_are_about_them(look: Look) -> None:
    found = look(origin(100), origin(2000)[1000:])
    form = ["answers-not-json", "constant-answer", "answer-leaks-class"]
    assert set(form) <= found.keys()
    (leak,) = found["answer-leaks-class"]
    assert leak.severity == "warning"
    assert "50 of 50 of class 'not_hate' begin with '{{' (first row 1)" in leak.message
    assert "50 of 50 of class 'hate' have the field 'protected_group'" in leak.message
    assert "all 50 train answers of class 'not_hate' are the same text" in found["constant-answer"][0].message
    assert found["answers-not-json"][0].message.startswith(
        "100 prompts ask for JSON, but 50 of 100 train rows (rows 1, 3, 5, 7, 9 and 45 more of data/train.jsonl)"
    )
    assert not set(form) & look(origin(100, fixed=True), origin(2000, fixed=True)[1000:]).keys()


def test_one_answer_for_all_rows(look: Look) -> None:
    found = look([row(f"text {n}", "yes") for n in range(40)])
    assert "all 40 train rows of data/train.jsonl have one answer, 'yes'" in found["constant-answer"][0].message


def test_a_field_alone_is_for_information(look: Look) -> None:
    rows = origin(100, fixed=True)
    for each in rows[::2]:
        answer = json.loads(each["output"])
        del answer["protected_group"]
        each["output"] = json.dumps(answer)
    found = look(rows)
    assert severity(found, "answer-leaks-class") == "info"
    assert "begin with" not in found["answer-leaks-class"][0].message


def test_what_two_splits_have_is_one_finding_that_names_both(look: Look) -> None:
    found = look(
        good(40) + good(3), good(1000, start=10_000) + good(2, start=10_000), good(900, start=20_000) + good(2)
    )
    (said,) = found["duplicate-rows"]
    assert "3 of 43 train rows" in said.message and "2 of 1,002 validation rows" in said.message
    assert said.severity == "warning"
    (said,) = look(good(40), good(999, start=5000) + good(1), good(999, start=7000) + good(2))["split-overlap"]
    assert "1 of 1,000 validation rows" in said.message and "2 of 1,001 test rows" in said.message


def test_imbalance(look: Look) -> None:
    rows = [row(f"text {n}", "odd" if n % 20 == 0 else "even") for n in range(100)]
    found = look(rows)
    assert severity(found, "class-imbalance") == "warning"
    assert "always answering 'even' is right in 95 %" in found["class-imbalance"][0].message
    rows = [row(f"text {n}", "odd" if n % 4 == 0 else "even") for n in range(100)]
    assert "class-imbalance" not in look(rows)


def test_a_class_that_was_never_trained(look: Look) -> None:
    validation = [row("x", "Odd"), *good(999, start=5000)]
    (said,) = look(good(40), validation)["class-not-in-training"]
    assert said.message.startswith(
        "validation (data/validation.jsonl) has 1 class that no train row has, 'Odd' (row 1)"
    )


def test_what_a_small_set_can_show(look: Look) -> None:
    found = look(good(40), good(100, start=5000))
    assert severity(found, "small-evaluation-set") == "warning"
    assert "12.4 points of accuracy" in found["small-evaluation-set"][0].message
    found = look(good(40), good(300, start=5000))
    assert severity(found, "small-evaluation-set") == "info"
    assert "hold out 630 rows" in found["small-evaluation-set"][0].instead
    assert "small-evaluation-set" not in look(good(40), good(630, start=5000))


def test_detectable_differences_are_those_of_a_simulation() -> None:
    """Power of the paired test at the difference that is named, over seeded pairs of models."""
    import numpy as np

    rng = np.random.default_rng(0)
    rows, trials = 600, 4000
    difference = rules.detectable_accuracy(rows)
    better, worse = 0.1 + difference / 2, 0.1 - difference / 2
    draws = rng.choice([1, -1, 0], size=(trials, rows), p=[better, worse, 1 - better - worse])
    won, lost = (draws == 1).sum(1), (draws == -1).sum(1)
    power = (np.abs(won - lost) / np.sqrt(won + lost) > rules.Z_ALPHA).mean()
    assert power == pytest.approx(0.8, abs=0.02)

    # F1 of two models that err independently of each other on a class of 30 %.
    positive, share = 0.3, 0.3
    truth = rng.random((trials, rows)) < positive
    right = rng.random((trials, rows)) < np.where(truth, 0.65, 1 - 0.35 * positive / (1 - positive))
    flip = rng.random((trials, rows)) < 0.2
    discordant_toward = rng.random((trials, rows)) < 0.5
    one, other = np.where(flip, discordant_toward, right), np.where(flip, ~discordant_toward, right)

    def f1(correct: Any) -> Any:
        hits = (truth & correct).sum(1)
        return 2 * hits / (2 * hits + (~correct).sum(1))

    spread = (f1(one) - f1(other)).std() * (rules.Z_ALPHA + rules.Z_POWER)
    assert rules.detectable_f1(rows, share) == pytest.approx(spread, rel=0.15)


def test_answers_at_max_length(look: Look) -> None:
    rows = alpaca_rows(64, seed=3)
    lost = look(rows, max_length=45)
    assert lost["answers-lost"][0].message.startswith("at max_length 45 ")
    assert "set max_length to 64, which keeps every row whole" in lost["answers-lost"][0].instead
    assert "answers-cut" in lost
    assert not {"answers-lost", "answers-cut"} & look(rows, max_length=64).keys()
    none = look(rows, max_length=8)
    assert {said.severity for said in none["every-answer-lost"]} == {"blocking"}
    assert "all 64 train rows of data/train.jsonl lose their whole answer" in none["every-answer-lost"][0].message
    names = {"answers-lost", "answers-cut", "every-answer-lost"}
    assert not names & look(rows, max_length=512).keys()
    assert not names & look(rows, max_length=45, packing=True).keys()


def test_no_answer_that_ends_blocks(look: Look) -> None:
    long = [row(f"text {n}", "word " * 60) for n in range(40)]
    found = look(long, max_length=64)
    assert severity(found, "answers-cut") == "blocking"
    assert "no row is left that teaches when to stop" in found["answers-cut"][0].message


def test_stop_tokens(look: Look) -> None:
    assert "no-stop-token" not in look(good(40))
    Path("bare.jinja").write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    found = look(good(40), chat_template_path="bare.jinja")
    assert severity(found, "no-stop-token") == "blocking"
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}"
    template += "{% if 'odd' in m.content %}<|im_end|>{% endif %}\n{% endfor %}"
    Path("some.jinja").write_text(template)
    (said,) = look(good(40), chat_template_path="some.jinja")["some-without-stop-token"]
    assert "20 of 40 train rows (rows 1, 3, 5, 7, 9 and 15 more of data/train.jsonl)" in said.message


def test_conversations_need_a_template_that_tells_the_answers(look: Look, tiny_model: Path) -> None:
    rows = TALKS
    assert "chat-template" not in look(rows, validation=rows[:8])
    Path("plain.jinja").write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>\n{% endfor %}")
    found = look(rows, validation=rows[:8], chat_template_path="plain.jinja")
    assert severity(found, "chat-template") == "blocking"
    assert "plain.jinja does not mark them" in found["chat-template"][0].message
    loose = {"chat_template_path": "plain.jinja", "completion_only_loss": False}
    assert "chat-template" not in look(rows, validation=rows[:8], **loose)
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny_model)
    tokenizer.chat_template = None
    Path("model").unlink()
    tokenizer.save_pretrained("model")
    assert "the tokenizer of model has no chat template" in look(good(40))["chat-template"][0].message


def test_pad_is_eos(look: Look, tiny_model: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny_model)
    tokenizer.pad_token = tokenizer.eos_token
    Path("model").unlink()
    tokenizer.save_pretrained("model")
    (said,) = look(good(40))["pad-is-eos"]
    assert "pads with its stop token <|im_end|>" in said.message


def test_double_bos(look: Look, tiny_model: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny_model)
    tokenizer.bos_token = "<|im_start|>"  # noqa: S105, a token of text
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m.content }}<|im_end|>\n{% endfor %}"
    Path("model").unlink()
    tokenizer.save_pretrained("model")
    assert "double-bos" not in look(good(40))
    (said,) = look([*good(40), row("x", "odd", "<|im_start|>Say which.")])["double-bos"]
    assert said.message.startswith("1 of 41 train rows (row 41 of data/train.jsonl)")


def test_a_prompt_that_merges_with_its_answer(look: Look) -> None:
    def pairs(space: bool, start: int, number: int) -> list[Row]:
        gap = (" ", "") if space else ("", " ")
        return [{"prompt": f"order {start + n}:{gap[0]}", "completion": f"{gap[1]}refund"} for n in range(number)]

    found = look(pairs(True, 0, 40), pairs(True, 5000, 1000))
    assert "a prompt that ends in a space merges" in found["prompt-not-a-prefix"][0].message
    assert "prompt-not-a-prefix" not in look(pairs(False, 0, 40), pairs(False, 5000, 1000))


def test_plain_text_with_a_chat_template(look: Look) -> None:
    rows = [{"asked": f"order {n}:", "completion": " refund"} for n in range(40)]
    columns = {"prompt": "asked", "completion": "completion"}
    (said,) = look(rows, rows[:8], data_columns=columns)["plain-text-prompts"]
    assert "without the chat template of model" in said.message
    words = said.instead.partition("SET=")[2].partition('"')[2].partition('"')[0]
    turned = jobs.check("tiny", overrides=words).prepared
    talks = [
        {
            "prompt": [{"role": "user", "content": each["asked"]}],
            "completion": [{"role": "assistant", "content": " refund"}],
        }
        for each in rows
    ]
    write_rows(Path("data/train.jsonl"), talks)
    write_rows(Path("data/validation.jsonl"), talks[:8])
    of_turns = jobs.check("tiny").prepared
    for split in ("train", "validation"):
        assert (turned.directory / f"{split}.jsonl").read_text() == (of_turns.directory / f"{split}.jsonl").read_text()
    assert "plain-text-prompts" not in look(talks, talks[:8])


def test_classes_that_are_numbers(look: Look) -> None:
    rows = [row(f"text {n}", str(n % 2)) for n in range(40)]
    (said,) = look(rows, [*rows[:4], *good(0)], task="classification")["classes-are-numbers"]
    assert said.message.startswith("the 2 classes of data/train.jsonl are numbers (0, 1)")
    assert "classes-are-numbers" not in look(rows, rows[:4])
    assert "classes-are-numbers" not in look(good(40), task="classification")


def test_without_data_nothing_is_said(project: Path) -> None:
    job = jobs.check("tiny")
    case = Case(job.recipe, job.topology)
    assert about_rows() and [said for each in about_rows() for said in each.check(case)] == []


def test_every_rule_says_what_it_finds_and_where_it_was_seen() -> None:
    assert len(about_rows()) == 35
    for each in about_rows():
        assert each.idea.endswith(".") and len(each.idea) < 140
        assert each.evidence and each.severity in lint.SEVERITIES
