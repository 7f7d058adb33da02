"""What chat templates and tokenizers do to rows: found by a plan, and refused by plan, preview and train alike."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import write_rows

from sft_recipes.data import survey, tokens
from sft_recipes.errors import InputError
from sft_recipes.plan import job as jobs

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}ANSWER<|im_end|>"
    "{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLAIN = CHATML.replace("ANSWER", "{{ m.content }}")


def talk(*answers: str) -> dict[str, Any]:
    """A row with a round for each answer."""
    rounds = [[("user", f"red {n}"), ("assistant", answer)] for n, answer in enumerate(answers)]
    return {"messages": [{"role": role, "content": text} for turns in rounds for role, text in turns]}


def surveyed(rows: list[dict[str, Any]], template: str | None = None, **overrides: Any) -> survey.Survey:
    """What is counted in rows, the same for training and held out, with a chat template."""
    for split in ("train", "validation"):
        write_rows(Path(f"data/{split}.jsonl"), rows)
    if template is not None:
        Path("mine.jinja").write_text(template, encoding="utf-8")
        overrides["chat_template_path"] = "mine.jinja"
    words = [f"{key}={json.dumps(json.dumps(value))}" for key, value in overrides.items()]
    job = jobs.check("tiny", overrides=words)
    return survey.survey(job.prepared, tokens.find_tokenizer(job.recipe), cache=Path("surveys"))


OPENED = "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
THINKING = "<think>one two</think>"
SPLIT = "{{ m.content.split('</think>')[-1] }}"
QWEN = (
    "<think>\n{{ m.content.split('</think>')[0].split('<think>')[-1] if '</think>' in m.content else '' }}\n"
    "</think>\n\n{{ m.content.split('</think>')[-1] }}"
)


@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize(
    ("template", "answers", "found"),
    [
        (PLAIN, ["odd", " odd ", THINKING + "even"], {}),
        (CHATML.replace("ANSWER", SPLIT), ["odd", THINKING + "even", "even"], {"rewritten": [2]}),
        (CHATML.replace("ANSWER", "{{ m.content | trim }}"), ["odd", " odd\n", "even"], {"respaced": [2]}),
        (CHATML.replace("ANSWER", "{{ m.content | lower }}"), ["odd", "Odd", "EVEN"], {"rewritten": [2, 3]}),
        (CHATML.replace("ANSWER", QWEN), ["odd", THINKING + "even"], {"respaced": [2], "empty_reasoning": [1]}),
        (PLAIN + "{{ strftime_now('%Y') if messages[0].content == 'red 0' }}", ["odd", "even"], {"clock": [1, 2]}),
        # What the prompt opens is the answer's.
        (PLAIN.partition("{% if add_gen")[0] + OPENED, ["<think>\none</think>odd"], {}),
        (PLAIN + "{% if false %}{{ strftime_now('%Y') }}{% endif %}", ["odd"], {}),
    ],
)
def test_what_is_trained_on_is_held_against_the_rows_own_answer(
    project: Path, rounds: int, template: str, answers: list[str], found: dict[str, list[int]]
) -> None:
    rows = [talk(*["plain"] * (rounds - 1), answer) for answer in answers]
    if rounds == 2 and "empty_reasoning" in found:
        found = {**found, "empty_reasoning": [1, 2]}
    survey = surveyed(rows, template)
    assert survey["tokens_are"] == "exact" and survey["kind"] == ("prompt_completion", "messages")[rounds - 1]
    problems = survey["splits"]["train"]["problems"]
    seen = ("rewritten", "respaced", "header", "clock", "empty_reasoning", "stops_twice")
    assert {name: problems[name]["examples"] for name in seen if problems[name]["count"]} == found


@pytest.mark.parametrize(
    ("template", "rows"),
    [
        # Ignores that an answer is asked for.
        (PLAIN.partition("{% if add_generation_prompt")[0], [talk("odd"), talk("even")]),
        # Marks begin before the header.
        (
            "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}<|im_start|>assistant\n"
            "{{ m.content }}<|im_end|>{% endgeneration %}{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>"
            "{% endif %}\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
            [talk("odd", "even"), talk("even", "a")],
        ),
    ],
)
def test_a_loss_on_the_roles_header_is_found(project: Path, template: str, rows: list[dict[str, Any]]) -> None:
    problems = surveyed(rows, template)["splits"]["train"]["problems"]
    assert problems["header"] == {"count": 2, "examples": [1, 2]}


def test_a_stop_token_that_is_written_twice_is_found(project: Path) -> None:
    rows = [talk("odd"), talk("even<|im_end|>")]
    assert surveyed(rows)["splits"]["train"]["problems"]["stops_twice"] == {"count": 1, "examples": [2]}
    twice = PLAIN.replace("<|im_end|>{% endgen", "<|im_end|>{{ eos_token }}{% endgen")
    assert surveyed(rows[:1], twice)["splits"]["train"]["problems"]["stops_twice"]["count"] == 1


@pytest.mark.parametrize("rounds", [1, 2])
def test_an_empty_block_of_reasoning_is_left_out_of_the_loss(
    project: Path, rows_here: Callable[..., Any], rounds: int
) -> None:
    rows = [talk(*["even"] * rounds), talk(*[THINKING + "odd"] * rounds)] * 4
    trained: list[list[tuple[str, str]]] = []
    for mask in (False, True):
        found = surveyed(rows, CHATML.replace("ANSWER", QWEN), mask_empty_reasoning=mask)["splits"]["train"]
        assert found["problems"]["empty_reasoning"]["count"] == (0 if mask else 4)
        how = {"chat_template_path": "mine.jinja", "mask_empty_reasoning": mask}
        trainer, effect = rows_here(name=f"masked-{mask}", max_steps=1, warmup_steps=0, **how)
        words = trainer.processing_class
        for row in list(trainer.train_dataset)[:2]:
            kept = [own for own, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
            trained.append((words.decode(row["input_ids"]), words.decode(kept)))
        figures = survey.at_length(found, 512)
        share = figures.pop("supervised_tokens") / figures["tokens"]
        assert effect["supervised_token_share"] == pytest.approx(share, abs=1e-12)
        assert figures == {key: effect[key] for key in figures}
    (text, whole), (_, thought), (same, masked), (_, still) = trained
    assert text == same and text.count("<think>\n\n</think>\n\neven") == rounds
    assert whole == "<think>\n\n</think>\n\neven<|im_end|>" * rounds and masked == "even<|im_end|>" * rounds
    assert thought == still == "<think>\none two\n</think>\n\nodd<|im_end|>" * rounds


def without_tokenizer_json(model: Path) -> None:
    """The same vocabulary in the files that older checkpoints have."""
    whole = json.loads((model / "tokenizer.json").read_text())
    (model / "tokenizer.json").unlink()
    words = whole["model"]["vocab"] | {token["content"]: token["id"] for token in whole["added_tokens"]}
    (model / "vocab.json").write_text(json.dumps(words))
    (model / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in whole["model"]["merges"]))
    config = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": "GPT2Tokenizer"}))


def test_a_tokenizer_without_tokenizer_json_is_counted_with(
    project: Path, tiny_model: Path, rows_here: Callable[..., Any]
) -> None:
    rows = [talk("odd"), talk("even", "odd")] * 4
    before = surveyed(rows)
    Path("model").unlink()
    shutil.copytree(tiny_model, "model")
    without_tokenizer_json(Path("model"))
    found = surveyed(rows)
    assert found["tokens_are"] == "exact" and found["splits"] == before["splits"]
    _, effect = rows_here(name="old", max_steps=1, warmup_steps=0)
    figures = survey.at_length(found["splits"]["train"], 512)
    assert effect["tokens"] == figures["tokens"] and effect["rows_ending_with_eos"] == 8
    (Path("model") / "merges.txt").write_text("no merges")
    with pytest.raises(InputError, match=r"^the tokenizer in model cannot be loaded: .* Save it again beside its mod"):
        surveyed(rows)


def test_the_template_of_another_model_is_counted_with(
    project: Path, tiny_model: Path, rows_here: Callable[..., Any]
) -> None:
    from transformers import PreTrainedTokenizerFast

    other = PreTrainedTokenizerFast.from_pretrained(tiny_model)
    other.eos_token = "<|endoftext|>"  # noqa: S105, no password
    other.chat_template = PLAIN.replace("<|im_end|>{% endgen", "{{ eos_token }}{% endgen")
    other.save_pretrained("other")
    how = {"chat_template_path": "other"}
    found = surveyed([talk("odd"), talk("even", "odd")] * 4, **how)
    assert found["tokens_are"] == "exact" and found["tokenizer"]["eos_token"] == other.eos_token
    _, effect = rows_here(name="cloned", max_steps=1, warmup_steps=0, **how)
    figures = survey.at_length(found["splits"]["train"], 512)
    figures.pop("supervised_tokens")
    assert figures == {key: effect[key] for key in figures}
    assert surveyed([talk("odd")], chat_template_path="org/nowhere")["tokens_are"] == "estimated"
