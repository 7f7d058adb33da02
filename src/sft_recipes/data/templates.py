"""Chat templates: which of them mark the assistant's turns, and what they make of a row's own answers."""

import contextlib
import functools
import importlib.util
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sft_recipes.recipes import task
from sft_recipes.recipes.recipe import MODELS
from sft_recipes.recipes.shipped import ROOT, located

Turns = list[dict[str, Any]]
Prompt = Turns | dict[str, Any]
"""Turns, or `messages` with the `tools` and `chat_template_kwargs` of their row."""
# What rows may hold that not every chat template renders.
PARTS = ("tools", "calls", "results", "reasoning", "call answers")
"""The last: answers that are calls, which an evaluation has to read from what the model says."""

# An empty block of reasoning at the head of an answer, as Qwen3, SmolLM3, GLM 4.5 and others write it; also where the
# generation prompt has opened it, and where max_length ends the row within it.
_EMPTY_REASONING = re.compile(r"\s*(?:<think>\s*)?</think>\n*|\s*<think>\s*\Z")
# Tokens that such a block has at the most, in a vocabulary that has no token of its own for it.
BLOCK = 32
# What stands for the time in a row rendered to see whether the template reads the clock.
_CLOCK = "\ue000"
_FROZEN = f"{{% macro strftime_now(format) %}}{_CLOCK}{{% endmacro %}}"
# Two rounds with white space around the texts, with a system turn and without one.
_ROUNDS = [("user", " a\n"), ("assistant", " b c\n"), ("user", "d"), ("assistant", "e")]
PROBES: list[Turns] = [
    [{"role": role, "content": text} for role, text in turns] for turns in (_ROUNDS, [("system", " f "), *_ROUNDS])
]


def marks(template: str) -> bool:
    """Whether a template marks the assistant's turns, as TRL's `has_generation_markers` sees it."""
    return re.search(r"\{%-?\s*generation\s*-?%\}", template) is not None


def training_template(template: str) -> str | None:
    """The template that marks the assistant's turns: this one, or TRL's marked copy of it, or None.

    The files that `trl.chat_template_utils.get_training_chat_template` compares with, without TRL's ten seconds.
    """
    if marks(template):
        return template
    spec = importlib.util.find_spec("trl")
    for directory in (spec.submodule_search_locations or []) if spec else []:
        for marked in sorted(Path(directory).glob("chat_templates/*_training.jinja")):
            plain = marked.with_name(marked.name.replace("_training.jinja", ".jinja"))
            if plain.is_file() and plain.read_text(encoding="utf-8") == template:
                return marked.read_text(encoding="utf-8")
    return None


def shipped() -> dict[str, Path]:
    """The templates of models/, the project's and the program's, by the path that a recipe names."""
    names = sorted({path.name for directory in (MODELS, ROOT / MODELS) for path in directory.glob("*.jinja")})
    return {str(MODELS / name): located(MODELS / name) for name in names}


def alike(tokenizer: Any) -> list[str]:
    """The shipped templates that render the same text as the tokenizer's own, with the assistant's turns marked."""
    own = _probed(tokenizer, tokenizer.get_chat_template())
    if not any(own):
        return []
    found = {name: path.read_text(encoding="utf-8") for name, path in shipped().items()}
    return [name for name, text in found.items() if marks(text) and _probed(tokenizer, text) == own]


def _probed(tokenizer: Any, template: str) -> list[str | None]:
    """What a template makes of the probes, whole and as prompts; None where it refuses one."""
    from jinja2 import TemplateError

    found: list[str | None] = []
    for turns, asked in [(turns, False) for turns in PROBES] + [(turns[:-1], True) for turns in PROBES]:
        try:
            found.append(
                tokenizer.apply_chat_template(
                    turns, tokenize=False, add_generation_prompt=asked, chat_template=template
                )
            )
        except (TemplateError, TypeError, ValueError, LookupError):
            found.append(None)
    return found


def reads_clock(template: str) -> bool:
    """Whether a template may write today's date, so that each row has to be looked at."""
    return "strftime_now" in template


def clocked(render: Callable[..., list[str]], template: str, conversations: Sequence[Prompt]) -> list[bool]:
    """Of each conversation, whether the template writes the date of the day into it."""
    return [_CLOCK in text for text in render(conversations, chat_template=_FROZEN + template)]


def header_of(render: Callable[..., str], turns: Turns) -> str:
    """What the template adds to ask for an answer; empty where it ignores `add_generation_prompt`."""
    first = next(index for index, turn in enumerate(turns) if turn["role"] == "assistant")
    before = turns[: max(first, 1)]
    plain, asked = render(before), render(before, add_generation_prompt=True)
    return asked[common(plain, asked) :]


def common(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How long the head is that two texts, or two lists of tokens, have in common."""
    if other[: len(one)] == one:
        return len(one)
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (mine, theirs) in pairs if mine != theirs), min(len(one), len(other)))


def difference(text: str, start: int, end: int, turn: Mapping[str, Any], header: str) -> str | None:
    """How the part of a row's text that is trained on differs from the row's own answer; None where it does not.

    "header" where it begins with the role's header, "respaced" where white space alone differs, and "rewritten" where
    the answer is not in it. What the header holds, such as an opening <think>, may be the answer's; what else a
    template puts before and behind an answer is its own. "rewritten" is an answer too whose reasoning or calls are not
    all there.
    """
    answer = turn["content"]
    trained, given = text[start:end], text[max(0, start - len(header)) : end]
    if header and trained.startswith(header):
        return "header"
    functions = [json.loads(text_of_call(call)) for call in turn.get("tool_calls") or ()]
    said = [word for each in functions for word in (each["name"], *each["arguments"])]
    if not all(part in given for part in (turn.get("reasoning_content", "").strip(), *said)):
        return "rewritten"
    if not answer.strip():
        return None
    block = None if trained.startswith(answer) else _EMPTY_REASONING.match(trained)
    body = trained[block.end() :] if block else trained
    before, found, _ = body.partition(answer)
    if found:
        return "header" if before.strip() and not header else None
    if answer in given:
        return None
    return "respaced" if "".join(answer.split()) in "".join(given.split()) else "rewritten"


def empty_reasoning(decode: Callable[[list[int]], str], ids: Sequence[int]) -> int:
    """How many tokens at the head of an answer are an empty block of reasoning: 0 where there is none."""
    head = list(ids[:BLOCK])
    block = _EMPTY_REASONING.match(decode(head))
    if not block:
        return 0
    return max(number for number in range(len(head) + 1) if len(decode(head[:number])) <= block.end())


# Tools, calls and reasoning


def text_of_call(call: Mapping[str, Any]) -> str:
    """A call of a prepared turn as JSON, name first."""
    function = call["function"]
    return f'{{"name": {json.dumps(function["name"], ensure_ascii=False)}, "arguments": {function["arguments"]}}}'


def text_of(turn: Mapping[str, Any]) -> str:
    """All that a prepared turn says, as a text: its reasoning, its content, and its calls as JSON."""
    if not (turn.get("reasoning_content") or turn.get("tool_calls")):
        return turn["content"]
    thought = f"<think>\n{turn['reasoning_content']}\n</think>\n\n" if turn.get("reasoning_content") else ""
    calls = [text_of_call(call) for call in turn.get("tool_calls") or ()]
    called = f"[{', '.join(calls)}]" if len(calls) > 1 else "".join(calls)
    return thought + "\n".join(filter(None, [turn["content"], called]))


def prompt_of(row: Mapping[str, Any], turns: Turns) -> Prompt:
    """Turns of a prepared row with what their chat template is to be told of that row."""
    told = {key: row[key] for key in ("tools", "chat_template_kwargs") if row.get(key)}
    return {"messages": turns, **told} if told else turns


def turns_of(prompt: Prompt) -> Turns:
    """The turns of a prompt."""
    return prompt["messages"] if isinstance(prompt, dict) else prompt


def arguments_of(prompt: Prompt) -> dict[str, Any]:
    """What `apply_chat_template` is to be told of a prompt, as TRL tells it (`SFTTrainer._prepare_dataset`)."""
    told = prompt if isinstance(prompt, dict) else {}
    tools = {"tools": json.loads(told["tools"])} if told.get("tools") else {}
    return {**tools, **told.get("chat_template_kwargs", {})}


def with_turns(prompt: Prompt, turns: Turns) -> Prompt:
    """A prompt of these turns instead of its own."""
    return {**prompt, "messages": turns} if isinstance(prompt, dict) else turns


def texts(tokenizer: Any, prompts: Iterable[Prompt], template: str | None = None, **how: Any) -> list[str]:
    """What a chat template makes of prompts; the tokenizer's own without another one."""
    how = {"tokenize": False, "chat_template": template or tokenizer.get_chat_template(), **how}
    each = groups(prompts, how["chat_template"])
    return [text for turns, told in each for text in tokenizer.apply_chat_template(turns, **how, **told)]


def encoded(tokenizer: Any, prompts: Iterable[Prompt], **how: Any) -> dict[str, list[Any]]:
    """The tokens of prompts, as `apply_chat_template` gives them for a batch."""
    how = {"return_dict": True, "chat_template": tokenizer.get_chat_template(), **how}
    found: dict[str, list[Any]] = {}
    for turns, told in groups(prompts, how["chat_template"]):
        for key, values in tokenizer.apply_chat_template(turns, **how, **told).items():
            found.setdefault(key, []).extend(values)
    return found


def groups(prompts: Iterable[Prompt], template: str | None) -> Iterator[tuple[list[Turns], dict[str, Any]]]:
    """Prompts one after the other that are rendered with the same arguments: their turns, and the arguments."""

    def told(prompt: Prompt) -> str | None:
        return json.dumps(arguments_of(prompt), sort_keys=True) if isinstance(prompt, dict) else None

    for _, same in itertools.groupby(prompts, told):
        group = list(same)
        yield [decoded(turns_of(each), template) for each in group], arguments_of(group[0])


def decoded(turns: Turns, template: str | None) -> Turns:
    """Turns with the arguments of their calls as a template takes them: as objects, or as JSON in a text."""
    if not any(turn.get("tool_calls") for turn in turns):
        return turns
    text = template is not None and takes_text(template)

    def call(held: dict[str, Any]) -> dict[str, Any]:
        function = held["function"]
        own = function if text else {**function, "arguments": json.loads(function["arguments"])}
        # Arrow gives each call an id where one has it.
        return {**{key: value for key, value in held.items() if value is not None}, "function": own}

    return [
        {**turn, "tool_calls": [*map(call, turn["tool_calls"])]} if turn.get("tool_calls") else turn for turn in turns
    ]


def needs_decoding(row: Mapping[str, Any]) -> bool:
    """Whether rows, of which Arrow has given this one the keys of all, are not what a template takes as they are."""
    turns = row.get("messages") or row.get("prompt")
    return "chat_template_kwargs" in row or (isinstance(turns, list) and "tool_calls" in turns[0])


def at_hand(template: str) -> None:
    """Have what a template can call in one map: Jinja reads all of it for each text, and of two maps far slower."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    compiled = _compile_jinja_template(template)
    compiled.globals = dict(compiled.globals)


@contextlib.contextmanager
def decoding(tokenizer: Any) -> Iterator[None]:
    """A tokenizer that renders prepared rows as they are, for as long as TRL asks it to."""
    tokenizer.apply_chat_template = functools.partial(_apply, tokenizer)
    try:
        yield
    finally:
        del tokenizer.apply_chat_template


def _apply(tokenizer: Any, turns: Turns, **told: Any) -> Any:
    # Arrow gives each row the variables of all.
    given = {key: value for key, value in told.items() if value is not None}
    template = given.get("chat_template") or tokenizer.get_chat_template()
    return type(tokenizer).apply_chat_template(tokenizer, decoded(turns, template), **given)


_NAME, _KEY, _VALUE, _RESULT, _REASON = (
    "name_a8f3e2b1",
    "key_b9d4f5c2",
    "value_d6e7a9f3",
    "result_c4f9a8e2",
    "why_e1d2",
)
_TOOL = {
    "type": "function",
    "function": {
        "name": _NAME,
        "description": "Finds.",
        "parameters": {"type": "object", "properties": {_KEY: {"type": "string", "description": "What."}}},
    },
}


def _called(arguments: Any) -> Turns:
    # An id as Mistral's templates want them.
    call = {"id": "a1b2c3d4e", "type": "function", "function": {"name": _NAME, "arguments": arguments}}
    return [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": _NAME, "tool_call_id": "a1b2c3d4e", "content": _RESULT},
        {"role": "assistant", "content": "b"},
    ]


@functools.lru_cache
def takes_text(template: str) -> bool:
    """Whether a template takes the arguments of a call as text alone, as that of DeepSeek-V3 does."""
    return _rendered(template, _called({_KEY: _VALUE})) is None and bool(_rendered(template, _called("{}")))


def renders(template: str, special: Mapping[str, Any]) -> list[str]:
    """Which of `PARTS` a template writes anywhere; `special` are the special tokens of its tokenizer."""
    asked: Turns = [{"role": "user", "content": "a"}]
    arguments = json.dumps({_KEY: _VALUE}) if takes_text(template) else {_KEY: _VALUE}
    # Without the tools, whose names would be there in any case.
    called = _rendered(template, _called(arguments), **special) or ""
    thought = _rendered(
        template, [*asked, {"role": "assistant", "content": "b", "reasoning_content": _REASON}], **special
    )
    plain, offered = (_rendered(template, asked, tools=tools, **special) for tools in (None, [_TOOL]))
    found = {
        "tools": offered is not None and offered != plain,
        "calls": all(each in called for each in (_NAME, _KEY, _VALUE)),
        "results": _RESULT in called,
        "reasoning": _REASON in (thought or ""),
        "call answers": task.calls_in(called) == [{"name": _NAME, "arguments": {_KEY: _VALUE}}],
    }
    return [part for part in PARTS if found[part]]


def variables(template: str) -> list[str]:
    """What a template can be told beside turns and tools."""
    from transformers.utils.chat_template_utils import _get_template_variables

    return sorted(_get_template_variables(template))


def _rendered(template: str, turns: Turns, **told: Any) -> str | None:
    """What a template makes of turns; None where it refuses them."""
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        (text,), _ = render_jinja_template(
            [turns], chat_template=template, **{"bos_token": "", "eos_token": "", **told}
        )
    except (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return None
    return text
