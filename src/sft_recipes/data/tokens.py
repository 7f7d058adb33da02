"""How many tokens rows are: counted as TRL's own preparation does, or estimated where no tokenizer is at hand.

No torch: `transformers` renders and tokenises.
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from sft_recipes.data.preparation import Prepared
from sft_recipes.errors import InputError
from sft_recipes.recipes import places
from sft_recipes.recipes.recipe import Recipe

# Bytes of UTF-8 per token, for text without a tokenizer: "1 token ~= 4 chars in English" (OpenAI, "What are tokens and
# how to count them"). Bytes, because a character of another script costs more.
BYTES_PER_TOKEN = 4
# <|im_start|>, the role, a line end; <|im_end|>, a line end: ChatML, the commonest template.
TURN_OPENING, TURN_CLOSING = 3, 2
# Rows that are tokenised together, and after which progress is told.
BATCH = 1000
BATCH_CHARACTERS = 1_000_000
# A row takes a template milliseconds; one that loops for ever is not waited for.
SECONDS_A_ROW = 10


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A tokenizer on this machine, not loaded yet."""

    directory: Path
    fingerprint: str  # over its files and everything of the recipe that changes what it makes of a row
    chat_template: str | None  # that `chat_template_path` names; None for the tokenizer's own
    eos_token: str | None  # the recipe's; None for the tokenizer's own

    def load(self) -> Any:
        """The tokenizer, with the recipe's tokens and template, as `SFTTrainer` sets it up."""
        from transformers import PreTrainedTokenizerFast

        loaded = PreTrainedTokenizerFast.from_pretrained(self.directory)
        loaded.eos_token = self.eos_token or loaded.eos_token
        loaded.pad_token = loaded.pad_token or loaded.eos_token
        loaded.chat_template = self.chat_template or loaded.chat_template
        return loaded

    def stop_ids(self, loaded: Any) -> list[int]:
        """The tokens that end a generation, by the generation config or the model's."""
        ids = {loaded.eos_token_id}
        for name in ("generation_config.json", "config.json"):
            path = self.directory / name
            if path.is_file():
                stops = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
                ids |= set(stops if isinstance(stops, list) else [stops])
                break
        return sorted(ids - {None})


def find_tokenizer(recipe: Recipe) -> Tokenizer | None:
    """The tokenizer of the recipe's model in its directory or in the Hub's cache; None if neither has it.

    None as well when `chat_template_path` is another model, whose template TRL would clone. Nothing is downloaded.
    """
    name, template_path = recipe["model_name_or_path"], recipe["chat_template_path"]
    directory = places.directory_with("tokenizer.json", name, recipe["model_revision"])
    if directory is None:
        return None
    template = None
    if template_path:
        if not template_path.endswith(places.TEMPLATES):
            return None
        template = places.template(template_path)
    decisive = [metadata.version("transformers"), metadata.version("trl"), template, recipe["eos_token"]]
    digest = hashlib.sha256(json.dumps(decisive).encode())
    for file in (
        *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
        *("chat_template.jinja", "generation_config.json", "config.json"),
    ):
        path = directory / file
        digest.update(f"\0{file}\0".encode() + (path.read_bytes() if path.is_file() else b""))
    return Tokenizer(directory, digest.hexdigest(), template, recipe["eos_token"])


@dataclasses.dataclass
class Size:
    """The tokens of a row: its length, the supervised stretches, and where each supervised stop token ends."""

    length: int
    spans: list[tuple[int, int]]
    stops: list[int]
    double_bos: bool = False
    diverging: bool = False  # whether the prompt alone is tokenised otherwise than at the head of the row


Measure = Callable[[list[dict[str, Any]]], list[Size]]


def ways(prepared: Prepared, tokenizer: Tokenizer | None) -> tuple[Any, Measure, str, str | None]:
    """The loaded tokenizer, how the tokens of rows are counted, that in words, and what keeps its template from it."""
    guess = f"{BYTES_PER_TOKEN} bytes a token"
    if tokenizer is None:
        turn = TURN_OPENING + TURN_CLOSING
        return None, estimate, f"{guess} and {turn} tokens a turn: no tokenizer at hand", None
    loaded = tokenizer.load()
    template = loaded.get_chat_template() if loaded.chat_template else None
    if prepared.conversational and template is None:
        return loaded, estimate, f"{guess}: the tokenizer has no chat template", "template"
    if prepared.kind == "messages" and (template := training_template(template or "")) is None:
        return loaded, estimate, f"{guess}: the chat template does not mark the assistant's turns", "marks"
    exact = functools.partial(_measure, loaded, template, frozenset(tokenizer.stop_ids(loaded)))
    return loaded, exact, "the tokenizer and chat template, as TRL applies them", None


def batches(lines: Iterable[str]) -> Iterator[list[dict[str, Any]]]:
    """Rows in batches of which no tokenizer needs much memory."""
    batch, characters = [], 0
    for line in lines:
        batch.append(json.loads(line))
        characters += len(line)
        if len(batch) == BATCH or characters > BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def sizes(measure: Measure, batch: list[dict[str, Any]], before: int, source: str) -> list[Size]:
    """The tokens of rows, of which `before` have been counted already.

    Raises:
        InputError: The chat template refuses a row, or does not come to an end.
    """
    from jinja2 import TemplateError

    # A template can do whatever Python's operators can.
    refusals = (TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
    try:
        if not before:
            with _at_most(SECONDS_A_ROW):
                measure(batch[:1])
        return measure(batch)
    except TimeoutError:
        raise InputError(
            f"{source} row 1: the model's chat template takes longer than {SECONDS_A_ROW} seconds; set "
            "chat_template_path to a template that comes to an end"
        ) from None
    except refusals:
        for number, row in enumerate(batch, before + 1):
            try:
                measure([row])
            except refusals as error:
                raise InputError(
                    f"{source} row {number}: the model's chat template refuses it: {error}; rewrite the row, or set "
                    "chat_template_path to a template that takes it"
                ) from None
        raise


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raises a `TimeoutError` in Python code, as a template is, that takes longer."""
    before, end = sys.gettrace(), time.monotonic() + seconds

    def look(frame: Any, event: str, argument: Any) -> Any:
        if time.monotonic() > end:
            raise TimeoutError
        return look

    sys.settrace(look)
    try:
        yield
    finally:
        sys.settrace(before)


def _measure(loaded: Any, template: str | None, stops: frozenset[int], batch: list[dict[str, Any]]) -> list[Size]:
    """As `tokenize_fn` in TRL's `SFTTrainer._prepare_dataset`, for many rows at once."""
    quiet = {"verbose": False, "return_attention_mask": False, "return_token_type_ids": False}
    render = functools.partial(
        loaded.apply_chat_template, return_dict=True, chat_template=template, tokenizer_kwargs=quiet
    )
    bos, eos = loaded.bos_token_id, loaded.eos_token

    def size(ids: list[int], spans: list[tuple[int, int]], diverging: bool = False) -> Size:
        stopping = [index + 1 for start, end in spans for index in range(start, end) if ids[index] in stops]
        return Size(len(ids), spans, stopping, bos is not None and ids[:2] == [bos, bos], diverging)

    if "messages" in batch[0]:
        out = render([row["messages"] for row in batch], return_assistant_tokens_mask=True)
        edges = (np.flatnonzero(np.diff([0, *mask, 0])).tolist() for mask in out["assistant_masks"])
        return [
            size(ids, list(zip(marks[::2], marks[1::2], strict=True)))
            for ids, marks in zip(out["input_ids"], edges, strict=True)
        ]
    if isinstance(batch[0]["prompt"], str):
        texts = [row["prompt"] + row["completion"].removesuffix(eos) + eos for row in batch]
        prompts = loaded([row["prompt"] for row in batch], **quiet)["input_ids"]
        wholes = loaded(texts, **quiet)["input_ids"]
    else:
        prompts = render([row["prompt"] for row in batch], add_generation_prompt=True)["input_ids"]
        wholes = render([row["prompt"] + row["completion"] for row in batch])["input_ids"]
    sizes = []
    for prompt, ids in zip(prompts, wholes, strict=True):
        start = len(prompt)
        if ids[:start] != prompt:
            pairs = enumerate(zip(prompt, ids, strict=False))
            start = next((index for index, (one, other) in pairs if one != other), min(start, len(ids)))
        sizes.append(size(ids, [(start, len(ids))], start < len(prompt)))
    return sizes


def estimate(batch: list[dict[str, Any]]) -> list[Size]:
    """The tokens of rows by their bytes and turns, every answer with its stop token."""
    sizes = []
    for row in batch:
        plain = isinstance(row.get("prompt"), str)
        place, spans = 0, []
        for role, text in turns(row):
            start = place + (0 if plain else TURN_OPENING)
            place = start - (-len(text.encode()) // BYTES_PER_TOKEN)
            # Of plain text only the answer is closed, by its stop token.
            place += TURN_CLOSING if not plain else role == "assistant"
            if role == "assistant":
                spans.append((start, place))
        spans = spans if "messages" in row else spans[-1:]
        sizes.append(Size(place, spans, [end for _, end in spans]))
    return sizes


def training_template(template: str) -> str | None:
    """The template that marks the assistant's turns: this one, or TRL's marked copy of it, or None.

    The files that `trl.chat_template_utils.get_training_chat_template` compares with, without TRL's ten seconds.
    """
    if re.search(r"\{%-?\s*generation\s*-?%\}", template):
        return template
    spec = importlib.util.find_spec("trl")
    for directory in (spec.submodule_search_locations or []) if spec else []:
        for marked in sorted(Path(directory).glob("chat_templates/*_training.jinja")):
            plain = marked.with_name(marked.name.replace("_training.jinja", ".jinja"))
            if plain.is_file() and plain.read_text(encoding="utf-8") == template:
                return marked.read_text(encoding="utf-8")
    return None


def turns(row: dict[str, Any]) -> list[tuple[str, str]]:
    """The row as (role, text), the last of which is the assistant's."""
    if isinstance(row.get("prompt"), str):
        return [("user", row["prompt"]), ("assistant", row["completion"])]
    turns = row["messages"] if "messages" in row else row["prompt"] + row["completion"]
    return [(turn["role"], turn["content"]) for turn in turns]
