"""Tools, calls, reasoning, and what a row tells its chat template: read, rendered, trained on, or refused by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from conftest import ROOT, write_rows
from pyarrow import parquet

from sft_recipes.data import preparation, refusals, survey, templates, tokens
from sft_recipes.data.preparation import Prepared
from sft_recipes.errors import InputError
from sft_recipes.evaluate import questions
from sft_recipes.plan import job as jobs
from sft_recipes.recipes import task

Row = dict[str, Any]


def tool(name: str, *arguments: str) -> Row:
    properties = {each: {"type": "number", "description": f"The {each}."} for each in arguments}
    schema = {"type": "object", "properties": properties, "required": [*arguments]}
    return {"type": "function", "function": {"name": name, "description": f"Does {name}.", "parameters": schema}}


def call(name: str, **arguments: Any) -> Row:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


TOOLS = [tool("add", "a", "b"), tool("root", "of")]
ADD, ROOT_OF = call("add", a=0.1234567890123456789, b=12345678901234567890), call("root", of=4)
ASKED = {"role": "user", "content": "red cat"}
ANSWER = {"role": "assistant", "content": "even"}
CALLED: list[Row] = [
    ASKED,
    {"role": "assistant", "content": "", "tool_calls": [ADD]},
    {"role": "tool", "name": "add", "content": '{"is": 2}'},
    {"role": "assistant", "content": "", "tool_calls": [ROOT_OF]},
    {"role": "tool", "content": "2"},
    ANSWER,
]
ROWS: list[Row] = [
    {"messages": CALLED, "tools": TOOLS},
    {"messages": [ASKED, ANSWER]},
    {"messages": [ASKED, {**ANSWER, "tool_calls": [ROOT_OF]}], "tools": TOOLS[1:]},
]
THOUGHT: list[Row] = [
    {"messages": [ASKED, {**ANSWER, "reasoning_content": "one two"}]},
    {"messages": [ASKED, ANSWER], "chat_template_kwargs": {"enable_thinking": False}},
]


def prepared(rows: list[Row], **how: Any) -> Prepared:
    write_rows(Path("given.jsonl"), rows)
    return preparation.prepare(train_file="given.jsonl", validation_file=None, cache=Path("cache"), **how)


def read(found: Prepared) -> list[Row]:
    return [json.loads(line) for line in (found.directory / "train.jsonl").read_text(encoding="utf-8").splitlines()]


def messages(row: Row) -> list[Row]:
    """The turns of a prepared row with objects for arguments, as its file had them."""
    return templates.decoded(tokens.turns_of(row), None)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# Reading


TEXT = json.dumps
PLAIN = {"name": "root", "arguments": {"of": 4}}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [ASKED, {**ANSWER, "content": "", "tool_calls": [ROOT_OF]}], "tools": TOOLS},
        {"messages": [ASKED, {"role": "assistant", "content": None, "tool_calls": [PLAIN]}], "tools": TEXT(TOOLS)},
        {"messages": [ASKED, {"role": "assistant", "tool_calls": TEXT([PLAIN])}], "tools": [*map(TEXT, TOOLS)]},
        {
            "messages": [ASKED, {"role": "assistant", "function_call": {"name": "root", "arguments": '{"of": 4}'}}],
            "functions": [each["function"] for each in TOOLS],
        },
        {"messages": [ASKED, {"role": "tool_call", "content": TEXT(PLAIN)}], "tools": TEXT(TOOLS)},
        {
            "conversations": [
                {"from": "human", "value": "red cat"},
                {"from": "function_call", "value": TEXT({"name": "root", "parameters": {"of": 4}})},
            ],
            "tools": TEXT(TOOLS),
        },
        {"prompt": [ASKED], "completion": [{"role": "assistant", "tool_calls": [PLAIN]}], "tools": TOOLS},
    ],
    ids=["openai", "flat", "json", "functions", "ms-swift", "sharegpt", "completion"],
)
def test_the_ways_in_which_a_call_is_written_become_one(row: Row) -> None:
    found = prepared([row])
    (kept,) = read(found)
    assert kept["prompt"] == [ASKED] and json.loads(kept["tools"]) == TOOLS
    assert messages(kept)[1:] == [{"role": "assistant", "content": "", "tool_calls": [ROOT_OF]}]
    assert (found.kind, found.holds) == ("prompt_completion", ("tools", "calls", "call answers"))


def test_calls_and_results_of_other_tools_formats_are_turns() -> None:
    says = [("human", "red"), ("function_call", TEXT(PLAIN)), ("function_call", TEXT(PLAIN)), ("observation", "2")]
    sharegpt = {"conversations": [{"from": role, "value": text} for role, text in [*says, ("gpt", "even")]]}
    swift = [("user", "red"), ("tool_call", TEXT(PLAIN)), ("tool_call", TEXT(PLAIN)), ("tool_response", "2")]
    rows = [{"messages": [{"role": role, "content": text} for role, text in [*swift, ("assistant", "even")]]}]
    older = [{"role": "assistant", "tool_calls": [PLAIN, PLAIN]}, {"role": "function", "content": 2}]
    rows.append({"messages": [{"role": "user", "content": "red"}, *older, ANSWER]})
    expected = [
        {"role": "user", "content": "red"},
        {"role": "assistant", "content": "", "tool_calls": [ROOT_OF, ROOT_OF]},
        {"role": "tool", "content": "2"},
        ANSWER,
    ]
    for given in ([sharegpt], rows):
        found = prepared(given)
        assert (found.kind, found.holds) == ("messages", ("calls", "results"))
        assert [messages(row) for row in read(found)] == [expected] * len(given)


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_kept_or_dropped_as_the_recipe_says(field: str) -> None:
    rows = [
        {"messages": [ASKED, {**ANSWER, field: "one"}]},
        {"messages": [ASKED, {**ANSWER, "content": "<think>one</think>\n\neven"}]},
    ]
    kept, dropped = prepared(rows), prepared(rows, drop_reasoning=True)
    assert [row["completion"] for row in read(kept)] == [
        [{**ANSWER, "reasoning_content": "one"}],
        rows[1]["messages"][1:],
    ]
    assert kept.holds == ("reasoning",) and dropped.holds == () and kept.fingerprint != dropped.fingerprint
    assert [row["completion"] for row in read(dropped)] == [[ANSWER]] * 2
    assert "reasoning: left out of the assistant's turns, as drop_reasoning says" in dropped.notes


def test_objects_that_parquet_has_filled_up_are_refused_and_texts_are_read() -> None:
    rows: list[Row] = [
        {"messages": [ASKED, {"role": "assistant", "content": "", "tool_calls": [each]}], "tools": TOOLS}
        for each in (ADD | call("add", a=1, b=2), ROOT_OF)
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), "filled.parquet")
    how: Row = {"validation_file": None, "cache": Path("cache")}
    with pytest.raises(InputError) as raised:
        preparation.prepare(train_file="filled.parquet", **how)
    assert "messages[1].tool_calls[0].arguments hold null, as Parquet writes" in str(raised.value)
    assert "tools hold null, as Parquet writes" in str(raised.value)
    assert "write tools as JSON in a text, e.g. by json.dumps" in str(raised.value)
    for row in rows:
        row["tools"], function = TEXT(row["tools"]), row["messages"][1]["tool_calls"][0]["function"]
        row["messages"][1]["tool_calls"] = [{"function": {**function, "arguments": TEXT(function["arguments"])}}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), "texts.parquet")
    found = read(preparation.prepare(train_file="texts.parquet", **how))
    assert [messages(row)[-1]["tool_calls"] for row in found] == [[call("add", a=1, b=2)], [ROOT_OF]]


# Templates


def from_trl(name: str) -> str:
    import importlib.util

    (place,) = importlib.util.find_spec("trl").submodule_search_locations  # type: ignore[union-attr, misc]
    return Path(place, "chat_templates", f"{name}.jinja").read_text(encoding="utf-8")


EVERYTHING = ["tools", "calls", "results", "reasoning", "call answers"]


@pytest.mark.parametrize(
    ("template", "renders"),
    [
        (from_trl("qwen3"), EVERYTHING),
        (from_trl("llama3_1"), ["tools", "calls", "results", "call answers"]),
        (from_trl("glm4moe"), EVERYTHING[:-1]),
        (from_trl("deepseekv3"), ["calls", "results"]),
        (from_trl("gemma3"), []),
        ((ROOT / "models/llama3.jinja").read_text(), ["tools", "calls", "results", "call answers"]),
        ((ROOT / "models/gpt_oss.jinja").read_text(), EVERYTHING[:-1]),
        ((ROOT / "models/chatml.jinja").read_text(), ["results"]),
        ((ROOT / "models/mistral.jinja").read_text(), []),
    ],
    ids=[
        "qwen3",
        "llama3_1",
        "glm4moe",
        "deepseekv3",
        "gemma3",
        "our llama3",
        "our gpt_oss",
        "our chatml",
        "our mistral",
    ],
)
def test_what_a_template_renders_is_known_from_what_it_writes(template: str, renders: list[str]) -> None:
    assert templates.renders(template, {"bos_token": "<s>", "eos_token": "</s>"}) == renders
    assert templates.takes_text(template) == (template == from_trl("deepseekv3"))


def checked(rows: list[Row], template: str, **overrides: Any) -> jobs.Job:
    for split in ("train", "validation"):
        write_rows(Path(f"data/{split}.jsonl"), rows)
    Path("mine.jinja").write_text(template, encoding="utf-8")
    overrides = {"chat_template_path": "mine.jinja", "max_length": 4096, **overrides}
    return jobs.check("tiny", overrides=[f"{key}={json.dumps(json.dumps(value))}" for key, value in overrides.items()])


def problems(job: jobs.Job) -> list[str]:
    """What a plan says that a training of these rows is refused for."""
    found = survey.survey(job.prepared, tokens.find_tokenizer(job.recipe), cache=Path("surveys"))
    assert found["tokenizer"]
    return [*map(str, refusals.of_recipe(job.recipe, found["tokenizer"], found, None, 0))]


def test_rows_that_a_template_would_drop_a_part_of_are_refused(project: Path, train_here: Callable[..., Any]) -> None:
    from sft_recipes.train import verify

    plain = (ROOT / "models/chatml.jinja").read_text()
    job = checked(ROWS, plain)
    (problem,) = problems(job)
    assert "some rows have tools and calls of tools, and mine.jinja does not write them" in problem
    rows = {"conversational": True, "holds": job.prepared.holds, "variables": job.prepared.variables}
    with pytest.raises(InputError) as raised:
        verify.model_files(job.resolved.upstream(), rows)
    assert raised.value.problems == [problem]
    reasoning, variable = problems(checked(THOUGHT, plain))
    assert "some rows have reasoning, and mine.jinja does not write them" in reasoning
    assert "chat_template_kwargs of some rows sets 'enable_thinking', which mine.jinja does not know" in variable
    assert len(problems(checked(THOUGHT, plain, drop_reasoning=True))) == 1
    assert problems(checked(THOUGHT, from_trl("qwen3"))) == problems(checked(ROWS, from_trl("qwen3"))) == []
    test = {"task": "generation", "test_file": "data/validation.jsonl"}
    assert problems(checked(ROWS[1:], from_trl("qwen3"), **test)) == []
    (problem,) = problems(checked(ROWS[1:], from_trl("glm4moe"), **test))
    assert "does not write them as an object of JSON with name and arguments" in problem


@pytest.mark.parametrize(
    ("template", "rows"),
    [
        (from_trl("qwen3"), ROWS),
        (from_trl("qwen3"), ROWS[1:]),
        (from_trl("qwen3"), THOUGHT),
        (
            from_trl("qwen3"),
            [{**each, "messages": [*CALLED, *each["messages"]]} for each in THOUGHT],
        ),
        (from_trl("glm4moe"), ROWS),
        ((ROOT / "models/llama3.jinja").read_text(), ROWS),
        ((ROOT / "models/gpt_oss.jinja").read_text(), ROWS[:2]),
        (
            from_trl("deepseekv3").replace("bos_token", "''").replace("eos_token", "'<|im_end|>'"),
            [{"messages": [ASKED, {**ANSWER, "content": None, "tool_calls": [ADD]}]}],
        ),
    ],
    ids=["qwen3", "qwen3-1", "qwen3-thought", "qwen3-more", "glm4moe", "llama3", "gpt_oss", "deepseek"],
)
def test_labels_and_counts_are_those_of_trl_for_the_rows_as_they_were_written(
    project: Path, train_here: Callable[..., Any], template: str, rows: list[Row]
) -> None:
    from trl.chat_template_utils import get_training_chat_template
    from trl.data_utils import common_prefix_length

    from sft_recipes.train import train

    job = checked(rows, template)
    recipe = job.resolved.upstream() | {"output_dir": "out", "use_cpu": True, "bf16": False}
    trainer = train.build(recipe)
    words, found = trainer.processing_class, list(trainer.train_dataset)
    counted = survey.survey(job.prepared, tokens.find_tokenizer(job.recipe), cache=Path("surveys"))["splits"]["train"]
    expected = []
    for row in rows:
        how = {"tools": row.get("tools"), **row.get("chat_template_kwargs", {})}
        turns = row["messages"]
        if templates.takes_text(template):
            turns = json.loads(json.dumps(turns))
            for each in (each for turn in turns for each in turn.get("tool_calls", ())):
                each["function"]["arguments"] = json.dumps(each["function"]["arguments"])
            turns = [{**turn, "content": turn["content"] or ""} for turn in turns]
        if job.prepared.kind == "messages":
            marked = template if templates.marks(template) else get_training_chat_template(words)
            out = words.apply_chat_template(turns, chat_template=marked, return_assistant_tokens_mask=True, **how)
            ids, mask = out["input_ids"], out["assistant_masks"]
        else:
            prompt = words.apply_chat_template(turns[:-1], add_generation_prompt=True, **how)["input_ids"]
            ids = words.apply_chat_template(turns, **how)["input_ids"]
            start = common_prefix_length(prompt, ids)
            mask = [0] * start + [1] * (len(ids) - start)
        expected.append((ids, [token if own else -100 for token, own in zip(ids, mask, strict=True)]))
    assert [(row["input_ids"], row["labels"]) for row in found] == expected
    # What was kept of the plan's counting, of which TRL has made the same.
    kept = survey.for_training(job.prepared, tokens.find_tokenizer(job.recipe), cache=Path("surveys"))
    again = train.build(recipe, tokens=Path(kept["tokens"]))
    assert [(row["input_ids"], row["labels"]) for row in again.train_dataset] == expected
    assert again.compared == len(rows) + len(again.eval_dataset or ())
    assert counted["tokens"] == sum(len(ids) for ids, _ in expected)
    assert counted["supervised_tokens"] == sum(label != -100 for _, labels in expected for label in labels)
    for row, (_, labels) in zip(rows, expected, strict=True):
        text = words.decode([label for label in labels if label != -100])
        turns = row["messages"] if job.prepared.kind == "messages" else row["messages"][-1:]
        assert all(each["function"]["name"] in text for turn in turns for each in turn.get("tool_calls", ()))
        assert '"is": 2' not in text and "red cat" not in text and "Does add." not in text
    # Llama's leaves out what is said beside a call.
    assert counted["problems"]["rewritten"]["examples"] == ([3] if "eot_id" in template else [])


# Evaluation


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ('<tool_call>\n{"name": "add", "arguments": {"b": 2.0, "a": 1}}\n</tool_call>', True),
        ('[TOOL_CALLS] [{"arguments": "{\\"a\\": 1, \\"b\\": 2}", "name": "add"}]', True),
        ('{"name": "add", "parameters": {"a": 1, "b": 2}}', True),
        ('I call {"name": "add", "arguments": {"a": 1, "b": 3}}', False),
        ('{"name": "add", "arguments": {"a": true, "b": 2}}', False),
        ('{"name": "add", "arguments": {"a": 1, "b": 2}}{"name": "add", "arguments": {"a": 1, "b": 2}}', False),
        ('{"name": "add", "arguments": {"a": 1, "b": 2', False),
        ("{{{ add(1, 2)", False),
    ],
)
def test_a_call_is_right_where_name_and_arguments_are_equal_as_json(text: str, same: bool) -> None:
    expected = task.calls_text([{"name": "add", "arguments": {"a": 1, "b": 2}}])
    assert (task.calls_text(task.calls_in(text)) == expected) is same


def test_an_evaluation_asks_with_the_tools_of_a_row_and_knows_what_is_called(project: Path, tiny_model: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    rows = [*ROWS, *THOUGHT]
    test = {"task": "generation", "test_file": "data/validation.jsonl"}
    job = checked(rows, from_trl("qwen3"), **test)
    asked = questions.check(job.recipe, job.prepared)
    assert asked is not None
    told = [(question.call, question.reference) for question in asked.questions]
    called = '[{"arguments": {"of": 4}, "name": "root"}]'
    assert told == [(False, "even"), (False, "even"), (True, called), (False, "even"), (False, "even")]
    # The same words with other tools are another question.
    assert len({question.id for question in asked.questions}) == 4 and all(each.leaked for each in asked.questions)
    assert "<think>\none two\n</think>\n\neven" in asked.longest_answers
    words = PreTrainedTokenizerFast.from_pretrained(tiny_model)
    words.chat_template = from_trl("qwen3")
    ids = templates.encoded(words, [each.prompt for each in asked.questions], add_generation_prompt=True)["input_ids"]
    for row, own in zip(rows, ids, strict=True):
        how = {"tools": row.get("tools"), **row.get("chat_template_kwargs", {})}
        turns = row["messages"][:-1]
        assert own == words.apply_chat_template(turns, add_generation_prompt=True, **how)["input_ids"]
    assert words.decode(ids[4]).endswith("<think>\n\n</think>\n\n") and "Does root." in words.decode(ids[2])


def test_rows_to_predict_are_asked_with_their_tools() -> None:
    write_rows(Path("asked.jsonl"), [{"messages": [ASKED], "tools": TOOLS}, {"messages": CALLED[:3]}])
    found = [asked for _, asked in preparation.prompts("asked.jsonl", "messages", None, conversational=True)]
    assert templates.arguments_of(found[0]) == {"tools": TOOLS} and templates.turns_of(found[0]) == [ASKED]
    assert templates.decoded(templates.turns_of(found[1]), None) == CALLED[:3]


def test_classes_that_follow_reasoning_are_predicted_by_generation(project: Path) -> None:
    classes = ["odd", "even"] * 4
    rows = [{"messages": [ASKED, {**ANSWER, "content": each, "thinking": "one"}]} for each in classes]
    found = {}
    for drop in (False, True):
        job = checked(
            rows, from_trl("qwen3"), drop_reasoning=drop, task="classification", test_file="data/validation.jsonl"
        )
        asked = questions.check(job.recipe, job.prepared)
        assert asked is not None and asked.task.labels == ("even", "odd")
        found[drop] = (asked.task.by, asked.task.decisions)
    why = "predicted by generation: training answers have reasoning, which comes before the class"
    assert found == {False: ("generation", (why,)), True: ("likelihood", ())}
