"""Chat templates: which of them mark the assistant's turns, and what they make of a row's own answers."""

import importlib.util
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sft_recipes.recipes.recipe import MODELS
from sft_recipes.recipes.shipped import ROOT, located

Turns = list[dict[str, Any]]

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


def clocked(render: Callable[..., list[str]], template: str, conversations: Sequence[Turns]) -> list[bool]:
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


def difference(text: str, start: int, end: int, answer: str, header: str) -> str | None:
    """How the part of a row's text that is trained on differs from the row's own answer; None where it does not.

    "header" where it begins with the role's header, "respaced" where white space alone differs, and "rewritten" where
    the answer is not in it. What the header holds, such as an opening <think>, may be the answer's; what else a
    template puts before and behind an answer is its own.
    """
    trained, given = text[start:end], text[max(0, start - len(header)) : end]
    if header and trained.startswith(header):
        return "header"
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
