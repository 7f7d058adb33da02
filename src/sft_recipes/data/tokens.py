"""How many tokens rows are: counted as TRL's own preparation does, or estimated where no tokenizer is at hand.

No torch: `transformers` renders and tokenises.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from sft_recipes.data import templates
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
# What TRL refuses a row of several answers for, with a RuntimeError.
NO_MARKS = "it marks none of the row's answers as the assistant's"
# A row takes a template milliseconds; one that loops for ever is not waited for.
SECONDS_A_ROW = 10


# What a tokenizer can be in, and what else decides about what it makes of a row.
FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json")
_BESIDE = (
    *("merges.txt", "added_tokens.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("chat_template.jinja", "generation_config.json", "config.json"),
)


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A tokenizer on this machine, not loaded yet."""

    directory: Path
    fingerprint: str  # over its files and everything of the recipe that changes what it makes of a row
    chat_template: str | None  # that `chat_template_path` names; None for the tokenizer's own
    eos_token: str | None  # the recipe's; None for the tokenizer's own
    template_of: Path | None = None  # the directory of the tokenizer whose template `chat_template_path` asks for
    mask_empty_reasoning: bool = False

    def load(self) -> Any:
        """The tokenizer, with the recipe's tokens and template, as `SFTTrainer` sets it up.

        Raises:
            InputError: It cannot be loaded.
        """
        source = read(self.template_of) if self.template_of else None
        return dressed(read(self.directory), self.eos_token, self.chat_template, source)

    def stop_ids(self, loaded: Any) -> list[int]:
        """The tokens that end a generation, by the generation config or the model's."""
        return sorted({loaded.eos_token_id, *configured_stops(self.directory)} - {None})


def configured_stops(directory: Path) -> list[int]:
    """The tokens that end a generation by a model's generation config, or by its config where it has none."""
    for name in ("generation_config.json", "config.json"):
        path = directory / name
        if path.is_file():
            stops = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
            return [stop for stop in (stops if isinstance(stops, list) else [stops]) if stop is not None]
    return []


def stops(loaded: Any, configured: Iterable[int]) -> list[int]:
    """The tokens that end an answer: the tokenizer's own, the configured ones, and what its template puts after it."""
    found = {loaded.eos_token_id, *configured} - {None}
    if loaded.chat_template:
        # The first token that a template puts after an answer is not always one of these.
        turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
        after = loaded.apply_chat_template(turns, tokenize=False).rpartition("answer")[2]
        added = set(loaded.get_added_vocab().values())
        found.update([token for token in loaded(after, add_special_tokens=False)["input_ids"] if token in added][:1])
    return sorted(found)


def find_tokenizer(recipe: Recipe) -> Tokenizer | None:
    """The tokenizer of the recipe's model in its directory or in the Hub's cache; None if neither has it.

    None as well where `chat_template_path` is another model that neither has. Nothing is downloaded.
    """
    directory = directory_of(recipe["model_name_or_path"], recipe["model_revision"])
    path, text, source = recipe["chat_template_path"], None, None
    if path and path.endswith(places.TEMPLATES):
        text = places.template(path)
    elif path:
        source = directory_of(path)
    if directory is None or (path and text is None and source is None):
        return None
    own = (recipe["eos_token"], recipe["mask_empty_reasoning"])
    decisive = [metadata.version("transformers"), metadata.version("trl"), text, *own]
    digest = hashlib.sha256(json.dumps(decisive).encode())
    files = [place / file for place in (directory, source) if place for file in (*FILES, *_BESIDE)]
    for file in (*files, *templates.shipped().values()):
        digest.update(f"\0{file.name}\0".encode() + (file.read_bytes() if file.is_file() else b""))
    return Tokenizer(directory, digest.hexdigest(), text, own[0], source, own[1])


def directory_of(name: str, revision: str = "main") -> Path | None:
    """Where a model of that name is on this machine with a tokenizer in it."""
    found = (places.directory_with(file, name, revision) for file in FILES)
    return next((directory for directory in found if directory), None)


def read(directory: Path) -> Any:
    """The tokenizer of a directory, as it is.

    Raises:
        InputError: It cannot be loaded.
    """
    from transformers import PreTrainedTokenizerFast

    try:
        if (directory / "tokenizer.json").is_file():
            return PreTrainedTokenizerFast.from_pretrained(directory)
        # It imports torch, and nothing else knows how each family's other files are read.
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(directory)
    except Exception as error:
        # tokenizers raises a plain Exception where it cannot read a file.
        raise InputError(
            f"the tokenizer in {directory} cannot be loaded: {(str(error).splitlines() or [''])[0]} Save it again "
            "beside its model with AutoTokenizer.save_pretrained"
        ) from None


def dressed(loaded: Any, eos_token: str | None, template: str | None, source: Any = None) -> Any:
    """A tokenizer with a recipe's tokens and template, as `SFTTrainer` sets it up.

    Args:
        loaded: The model's tokenizer.
        eos_token: The recipe's; None for the tokenizer's own.
        template: The text of the chat template that the recipe names; None for the tokenizer's own.
        source: The tokenizer whose template and tokens are cloned, where `chat_template_path` names one.
    """
    loaded.eos_token = eos_token or loaded.eos_token
    loaded.chat_template = template or loaded.chat_template
    if source is not None:
        # As `trl.chat_template_utils.clone_chat_template` does it, without the model.
        loaded.chat_template = source.get_chat_template()
        known = loaded.get_vocab()
        loaded.add_tokens([token for token in source.added_tokens_decoder.values() if token.content not in known])
        loaded.eos_token = source.eos_token
    loaded.pad_token = loaded.pad_token or loaded.eos_token
    return loaded


@dataclasses.dataclass
class Size:
    """The tokens of a row: its length, the supervised stretches, and where each supervised stop token ends."""

    length: int
    spans: list[tuple[int, int]]
    stops: list[int]
    largest: int = 0  # of the ids
    found: frozenset[str] = frozenset()  # what is the matter with the row, by the names of the survey's problems


Measure = Callable[[list[dict[str, Any]]], list[Size]]


def ways(prepared: Prepared, tokenizer: Tokenizer | None) -> tuple[Any, Measure, str]:
    """The loaded tokenizer, how the tokens of rows are counted, and that in words.

    Raises:
        InputError: The tokenizer cannot be loaded.
    """
    guess = f"{BYTES_PER_TOKEN} bytes a token"
    if tokenizer is None:
        turn = TURN_OPENING + TURN_CLOSING
        return None, estimate, f"{guess} and {turn} tokens a turn: no tokenizer at hand"
    loaded = tokenizer.load()
    template = loaded.get_chat_template() if loaded.chat_template else None
    if prepared.conversational and template is None:
        return loaded, estimate, f"{guess}: the tokenizer has no chat template"
    if prepared.kind == "messages" and (template := templates.training_template(template or "")) is None:
        return loaded, estimate, f"{guess}: the chat template does not mark the assistant's turns"
    stops = frozenset(tokenizer.stop_ids(loaded))
    exact = _Exact(loaded, template, stops, tokenizer.mask_empty_reasoning).sizes
    return loaded, exact, "the tokenizer and chat template, as TRL applies them"


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


def refuses(where: str, error: Exception | str) -> InputError:
    """What is said of a row that the chat template refuses."""
    return InputError(
        f"{where}: the model's chat template refuses it: {error}; rewrite the row, or set chat_template_path to a "
        "template that takes it"
    )


def sizes(measure: Measure, batch: list[dict[str, Any]], before: int, source: str, *, first: bool) -> list[Size]:
    """The tokens of rows, of which `before` are before them in the source; whether they are the first that is counted.

    Raises:
        InputError: The chat template refuses a row, or does not come to an end.
    """
    from jinja2 import TemplateError

    # A template can do whatever Python's operators can.
    refusals = (TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
    try:
        if first:
            with _at_most(SECONDS_A_ROW):
                measure(batch[:1])
        return measure(batch)
    except TimeoutError:
        raise InputError(
            f"{source} row {before + 1}: the model's chat template takes longer than {SECONDS_A_ROW} seconds; set "
            "chat_template_path to a template that comes to an end"
        ) from None
    except refusals:
        for number, row in enumerate(batch, before + 1):
            try:
                measure([row])
            except refusals as error:
                raise refuses(f"{source} row {number}", error) from None
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


@dataclasses.dataclass
class _Exact:
    """Counts tokens as `tokenize_fn` in TRL's `SFTTrainer._prepare_dataset`, for many rows at once."""

    loaded: Any
    template: str | None
    stops: frozenset[int]
    mask_empty_reasoning: bool

    _QUIET: ClassVar[dict[str, Any]] = {
        "verbose": False,
        "return_attention_mask": False,
        "return_token_type_ids": False,
    }

    def sizes(self, batch: list[dict[str, Any]]) -> list[Size]:
        if "messages" in batch[0]:
            prompts = [templates.prompt_of(row, row["messages"]) for row in batch]
            out = self._tokens(prompts, return_assistant_tokens_mask=True)
            edges = (np.flatnonzero(np.diff([0, *mask, 0])).tolist() for mask in out["assistant_masks"])
            spans = [list(zip(marks[::2], marks[1::2], strict=True)) for marks in edges]
            if not all(spans):
                raise ValueError(NO_MARKS)
            found = [set(differing) for differing in self._differences(batch)]
            return list(map(self._size, out["input_ids"], spans, found))
        if isinstance(batch[0]["prompt"], str):
            eos = self.loaded.eos_token or ""
            texts = [row["prompt"] + row["completion"].removesuffix(eos) + eos for row in batch]
            prompts = self.loaded([row["prompt"] for row in batch], **self._QUIET)["input_ids"]
            wholes = self.loaded(texts, **self._QUIET)["input_ids"]
            found = [set() for _ in batch]
        else:
            asked = [templates.prompt_of(row, row["prompt"]) for row in batch]
            prompts = self._tokens(asked, add_generation_prompt=True)["input_ids"]
            wholes = self._tokens([templates.prompt_of(row, turns_of(row)) for row in batch])["input_ids"]
            found = [set(differing) for differing in self._differences(batch)]
        sizes = []
        for prompt, ids, problems in zip(prompts, wholes, found, strict=True):
            start = templates.common(prompt, ids)
            problems |= {"diverging_prompts"} if start < len(prompt) else set()
            sizes.append(self._size(ids, [(start, len(ids))], problems))
        return sizes

    def _tokens(self, prompts: list[templates.Prompt], **how: Any) -> dict[str, list[Any]]:
        return templates.encoded(self.loaded, prompts, self.template, tokenizer_kwargs=self._QUIET, **how)

    def _texts(self, prompts: Sequence[templates.Prompt], **how: Any) -> list[str]:
        template = how.pop("chat_template", self.template)
        return templates.texts(self.loaded, prompts, template, **how)

    def _decoded(self, ids: list[int]) -> str:
        return self.loaded.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def _size(self, ids: list[int], spans: list[tuple[int, int]], found: set[str]) -> Size:
        blocks = [templates.empty_reasoning(self._decoded, ids[start:end]) for start, end in spans]
        if self.mask_empty_reasoning:
            spans = [(start + block, end) for (start, end), block in zip(spans, blocks, strict=True)]
            spans = [(start, end) for start, end in spans if start < end]
        elif any(blocks):
            found.add("empty_reasoning")
        stopping = [index + 1 for start, end in spans for index in range(start, end) if ids[index] in self.stops]
        pairs = itertools.pairwise(stopping)
        if any(after - before == 1 and ids[before - 1] == ids[after - 1] for before, after in pairs):
            found.add("stops_twice")
        bos = self.loaded.bos_token_id
        if bos is not None and ids[:2] == [bos, bos]:
            found.add("double_bos")
        return Size(len(ids), spans, stopping, max(ids, default=0), frozenset(found))

    def _differences(self, batch: list[dict[str, Any]]) -> Iterator[Iterator[str]]:
        """Of each conversation, how what is trained on differs from the row's own answers."""
        wholes = [templates.prompt_of(row, turns_of(row)) for row in batch]
        header = templates.header_of(lambda turns, **how: self._texts([turns], **how)[0], turns_of(batch[0]))
        clock = [False] * len(batch)
        if templates.reads_clock(self.template or ""):
            clock = templates.clocked(self._texts, self.template or "", wholes)
        if "messages" in batch[0]:
            from transformers.utils.chat_template_utils import render_jinja_template

            how = {"chat_template": self.template, "return_assistant_tokens_mask": True}
            how |= self.loaded.special_tokens_map
            groups = templates.groups(wholes, self.template)
            parts_of = [render_jinja_template(group, **{**how, **told}) for group, told in groups]
            texts, marked = ([each for part in parts_of for each in part[index]] for index in (0, 1))
        else:
            asked = [templates.prompt_of(row, row["prompt"]) for row in batch]
            prompts = self._texts(asked, add_generation_prompt=True)
            texts = self._texts(wholes)
            marked = [[(templates.common(*pair), len(pair[1]))] for pair in zip(prompts, texts, strict=True)]
        for row, text, parts, reads in zip(batch, texts, marked, clock, strict=True):
            answered = row["messages"] if "messages" in row else row["completion"]
            answers = [turn for turn in answered if turn["role"] == "assistant"]
            # A template may mark a turn in several parts.
            parts = parts if len(parts) == len(answers) else [(parts[0][0], parts[-1][1])] * len(answers)
            pairs = zip(parts, answers, strict=True)
            differing = (templates.difference(text, start, end, answer, header) for (start, end), answer in pairs)
            yield (each for each in (*differing, "clock" if reads else None) if each)


def estimate(batch: list[dict[str, Any]]) -> list[Size]:
    """The tokens of rows by their bytes and turns, every answer with its stop token."""
    sizes = []
    for row in batch:
        plain = isinstance(row.get("prompt"), str)
        place, spans = 0, []
        for role, text in written(row):
            start = place + (0 if plain else TURN_OPENING)
            place = start - (-len(text.encode()) // BYTES_PER_TOKEN)
            # Of plain text only the answer is closed, by its stop token.
            place += TURN_CLOSING if not plain else role == "assistant"
            if role == "assistant":
                spans.append((start, place))
        spans = spans if "messages" in row else spans[-1:]
        sizes.append(Size(place, spans, [end for _, end in spans]))
    return sizes


def turns_of(row: dict[str, Any]) -> templates.Turns:
    """The turns of a prepared row that has such."""
    return row["messages"] if "messages" in row else row["prompt"] + row["completion"]


def written(row: dict[str, Any]) -> list[tuple[str, str]]:
    """The row as (role, text), the last of which is the assistant's; tools stand before them as the system's."""
    if isinstance(row.get("prompt"), str):
        return [("user", row["prompt"]), ("assistant", row["completion"])]
    tools = [("system", row["tools"])] if row.get("tools") else []
    return tools + [(turn["role"], templates.text_of(turn)) for turn in turns_of(row)]
