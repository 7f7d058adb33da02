"""What a training refuses of tokenizer, chat template and rows: said by plan, preview and train, in the same words."""

import ast
import inspect
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import alpaca_rows, write_rows

from sft_recipes.data import refusals
from sft_recipes.demo import tiny
from sft_recipes.errors import InputError
from sft_recipes.plan import job as jobs
from sft_recipes.plan import preview

TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
BARE = f"{{% for m in messages %}}{TURN}{{% endfor %}}"
BARE += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
STRICT = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + BARE
DROPS = "{% if false %}{% generation %}{% endgeneration %}{% endif %}" + BARE
OTHER = BARE.replace("assistant", "model")
TALKS = [
    {"messages": [{"role": role, "content": f"{text} {n}"} for role, text in turns]}
    for n in range(16)
    for turns in [[("user", "red"), ("assistant", "odd"), ("user", "red red"), ("assistant", "even")]]
]
ASKED = [{"messages": [{"role": "system", "content": "Count."}, *row["messages"][:2]]} for row in TALKS]
PLAIN = [{"prompt": f"red {n} is", "completion": " odd"} for n in range(16)]
ROWS = alpaca_rows(16, seed=1)
THOUGHT = [{"messages": [turns[0], {**turns[1], "reasoning": "one"}]} for turns in (row["messages"] for row in TALKS)]
TOLD = [{"messages": row["messages"][:2], "chat_template_kwargs": {"loud": True}} for row in TALKS]
CALL = {"role": "assistant", "tool_calls": [{"name": "count", "arguments": {"n": 1}}]}
CALLED = [{"messages": [row["messages"][0], CALL]} for row in TALKS]
CALLS = BARE.replace("{{ m.content }}", "{{ m.content }}{% for c in m.tool_calls %}{{ c.function }}{% endfor %}")
BEYOND = "the rows, or the end of text and padding, hold token 1,408, and model has embeddings for 1,408"

Change = Callable[[Path], None]


def config(**values: Any) -> Change:
    """The tokenizer's config with these values, without those that are None."""

    def change(model: Path) -> None:
        path = model / "tokenizer_config.json"
        merged = {**json.loads(path.read_text()), **values}
        path.write_text(json.dumps({key: value for key, value in merged.items() if value is not None}))

    return change


def without_template(model: Path) -> None:
    (model / "chat_template.jinja").unlink()


def closing(model: Path) -> None:
    """A tokenizer that appends its end of text, as those of Llama 2 do with add_eos_token."""
    path = model / "tokenizer.json"
    whole = json.loads(path.read_text())
    (end,) = (token["id"] for token in whole["added_tokens"] if token["content"] == "<|im_end|>")
    whole["post_processor"]["single"].append({"SpecialToken": {"id": "<|im_end|>", "type_id": 0}})
    whole["post_processor"]["special_tokens"] = {
        "<|im_end|>": {"id": "<|im_end|>", "ids": [end], "tokens": ["<|im_end|>"]}
    }
    path.write_text(json.dumps(whole))


def longer(model: Path) -> None:
    """A tokenizer with a token more than the model has embeddings."""
    from transformers import PreTrainedTokenizerFast

    loaded = PreTrainedTokenizerFast.from_pretrained(model)
    loaded.add_tokens("redred")
    loaded.save_pretrained(model)


SEVERAL = "some rows have several answers, and mine.jinja does not mark them, so the loss cannot be computed on "
TWICE = {"assistant_only_loss": True, "completion_only_loss": None}
UNKNOWN = {"eos_token": "<|im_ned|>"}
PADDING = {"pad_token": "<pad>"}
# What is changed of the model's folder, the rows, a template, values, and the beginning of what is said.
CASES: dict[str, tuple[Change | None, list[dict[str, Any]], str | None, dict[str, Any], str]] = {
    "unknown": (None, ROWS, None, UNKNOWN, "eos_token '<|im_ned|>' is no token of the tokenizer of model; set eos_"),
    "endless": (config(eos_token=None), PLAIN, None, {}, "no token ends a text in the tokenizer of model; set eos"),
    "bare": (without_template, ROWS, None, {}, "the rows are conversations, and the tokenizer of model has no chat"),
    "unmarked": (None, TALKS, OTHER, {}, SEVERAL + "answers only; set chat_template_path to a copy of it with {% gen"),
    "alike": (
        None,
        TALKS,
        BARE,
        {},
        SEVERAL + "answers only; set chat_template_path to models/chatml.jinja, which renders",
    ),
    "both": (None, TALKS, OTHER, TWICE, SEVERAL),
    "closing": (closing, PLAIN, None, {}, "the tokenizer of model appends <|im_end|> to a text, and so does TRL"),
    "padded": (config(**PADDING), ROWS, None, {}, BEYOND),
    "longer": (longer, [{"prompt": "redred", "completion": "odd"}] * 16, None, {}, BEYOND),
    "dropped": (None, TALKS, DROPS, {}, "data/train.jsonl row 1: the model's chat template refuses it: it marks none"),
    "system": (None, ASKED, STRICT, {}, "data/train.jsonl row 1: the model's chat template refuses it: System role"),
    "thought": (None, THOUGHT, BARE, {}, "some rows have reasoning, and mine.jinja does not write them"),
    "variable": (
        None,
        TOLD,
        BARE,
        {},
        "chat_template_kwargs of some rows sets 'loud', which mine.jinja does not know",
    ),
}
TASK = {"task": "generation", "test_file": "data/train.jsonl"}
# What a plan is refused for by its task alone.
TASKED = {"calls": (None, CALLED, CALLS, TASK, "the task asks for calls of tools")}
ALONE = {
    "eval_strategy": "no",
    "save_strategy": "no",
    "load_best_model_at_end": False,
    "early_stopping_patience": 0,
    "validation_file": None,
}
RULES = ("eos-token", "chat-template", "end-of-text-twice", "tokens-beyond-embedding")


@pytest.fixture
def write(project: Path, tiny_model: Path) -> Callable[[str], dict[str, Any]]:
    """Write a case into the project; gives the recipe's values."""

    def write(case: str) -> dict[str, Any]:
        change, rows, template, values, _ = (CASES | TASKED)[case]
        write_rows(Path("data/train.jsonl"), rows)
        if change is not None:
            Path("model").unlink() if Path("model").is_symlink() else shutil.rmtree("model")
            shutil.copytree(tiny_model, "model")
            change(Path("model"))
        if template is not None:
            Path("mine.jinja").write_text(template, encoding="utf-8")
            values = {**values, "chat_template_path": "mine.jinja"}
        return ALONE | values

    return write


def resolved(values: dict[str, Any]) -> jobs.Job:
    return jobs.check("tiny", overrides=[f"{key}={json.dumps(json.dumps(value))}" for key, value in values.items()])


def refused(of: Callable[[], Any]) -> list[str]:
    """What is refused, as a sentence of reason and remedy."""
    with pytest.raises(InputError) as error:
        of()
    return [_sentence(each) for each in error.value.problems]


def _sentence(problem: str) -> str:
    rule, _, rest = problem.partition(": ")
    return rest.replace(". Instead: ", "; ") if rule in RULES else problem


@pytest.mark.parametrize("case", CASES)
def test_plan_preview_and_train_refuse_in_the_same_words(
    write: Callable[[str], dict[str, Any]], train_here: Callable[..., Any], tmp_path: Path, case: str
) -> None:
    values, said = write(case), CASES[case][-1]
    job = resolved(values)
    # Without an end of text, none of the rows ends with one either.
    before = [each for each in refused(lambda: jobs.lint_or_raise(job)) if not each.startswith("no-stop-token: ")]
    assert len(before) == 1 and before[0].startswith(said)
    base = tiny.find("model", "main")
    assert refused(lambda: preview.check(job, base, [1, 2])) == before
    if case not in ("system", "dropped"):
        planned = [f"{each.message}; {each.instead}" for each in job.findings if each.rule in RULES]
        assert planned == before
        # Where the tokenizer was not at hand before, the process that trains says it.
        assert refused(lambda: train_here(name="refused", **values)) == before
    else:
        # By `train.build`, which a training goes through as well.
        preview.write(tmp_path, job, base, [1, 2])
        preview.main(tmp_path)
        said = json.loads((tmp_path / "answer.json").read_text())["problems"]
        assert said == [before[0].replace("data/train.jsonl row 1", "a row")]


def test_a_token_without_an_embedding_is_refused_where_rows_hold_it(write: Callable[[str], dict[str, Any]]) -> None:
    """The tokenizers of some models have more than they were trained with, as Gemma 3 1B's has one for images."""
    values = write("longer")
    write_rows(Path("data/train.jsonl"), PLAIN)
    job = jobs.lint_or_raise(resolved(values))
    preview.check(job, tiny.find("model", "main"), [1, 2])


def test_every_refusal_is_walked(write: Callable[[str], dict[str, Any]]) -> None:
    """Also one that is added tomorrow."""
    seen: set[int] = set()

    def trace(frame: Any, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename != refusals.__file__:
            return None
        seen.add(frame.f_lineno)
        return trace

    for case in CASES | TASKED:
        job = resolved(write(case))
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            refused(lambda job=job: preview.check(job, tiny.find("model", "main"), [1, 2]))
        finally:
            sys.settrace(before)
    calls = {node.lineno for node in ast.walk(ast.parse(inspect.getsource(refusals))) if isinstance(node, ast.Yield)}
    assert len(calls) == 8 and calls <= seen


def test_one_answer_a_row_needs_no_marks(
    write: Callable[[str], dict[str, Any]], train_here: Callable[..., Any]
) -> None:
    values = write("unmarked")
    write_rows(Path("data/train.jsonl"), ROWS)
    found = []
    for asked in ({}, TWICE):
        job = jobs.lint_or_raise(resolved(values | asked))
        assert (job.resolved["assistant_only_loss"], job.resolved["completion_only_loss"]) == (False, True)
        run = train_here(name=f"one-{len(asked)}", max_steps=1, warmup_steps=0, **values, **asked)
        found.append(run.facts()["in_effect"]["data"])
    assert found[0] == found[1] and 0 < found[0]["supervised_token_share"] < 0.3
