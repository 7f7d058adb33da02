"""How many tokens rows are: counted as TRL's own preparation does, or estimated where no tokenizer is at hand.

No torch: `transformers` renders and tokenises.
"""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from sft_recipes.data import templates, words
from sft_recipes.data.preparation import Prepared
from sft_recipes.environment import importing
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
    from importlib.metadata import version

    directory = directory_of(recipe["model_name_or_path"], recipe["model_revision"])
    path, text, source = recipe["chat_template_path"], None, None
    if path and path.endswith(places.TEMPLATES):
        text = places.template(path)
    elif path:
        source = directory_of(path)
    if directory is None or (path and text is None and source is None):
        return None
    own = (recipe["eos_token"], recipe["mask_empty_reasoning"])
    decisive = [version("transformers"), version("trl"), text, *own]
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
    with importing():
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
    ids: list[int] = dataclasses.field(default_factory=list)  # none where they are estimated
    found: frozenset[str] = frozenset()  # what is the matter with the row, by the names of the survey's problems

    @property
    def largest(self) -> int:
        """The largest of the ids; 0 where they are estimated."""
        return max(self.ids, default=0)


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
    if prepared.conversational and not loaded.chat_template:
        return loaded, estimate, f"{guess}: the tokenizer has no chat template"
    if (template := rendered_by(prepared, loaded)) is None and prepared.kind == "messages":
        return loaded, estimate, f"{guess}: the chat template does not mark the assistant's turns"
    stops = frozenset(tokenizer.stop_ids(loaded))
    exact = _Exact(loaded, template, stops, tokenizer.mask_empty_reasoning).sizes
    return loaded, exact, "the tokenizer and chat template, as TRL applies them"


def rendered_by(prepared: Prepared, loaded: Any) -> str | None:
    """The chat template that renders the rows; None for plain text, and where none marks the answers of several."""
    if not prepared.conversational:
        return None
    own: str = loaded.get_chat_template()
    return templates.training_template(own) if prepared.kind == "messages" else own


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
    """Tokenises as `tokenize_fn` in TRL's `SFTTrainer._prepare_dataset`, many rows at once."""

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
        if self.template:
            templates.at_hand(self.template)
        if "messages" in batch[0]:
            return self._marked(batch)
        asked: list[Any] = [row["prompt"] for row in batch]
        problems: list[set[str]] = [set() for _ in batch]
        if isinstance(asked[0], str):
            eos = self.loaded.eos_token or ""
            texts = [row["prompt"] + row["completion"].removesuffix(eos) + eos for row in batch]
            ids = self._ids([*asked, *texts], rendered=False)
        else:
            asked = self._texts([templates.prompt_of(row, row["prompt"]) for row in batch], add_generation_prompt=True)
            texts = self._texts([templates.prompt_of(row, turns_of(row)) for row in batch])
            ids = self._ids([*asked, *texts], rendered=True)
            marks = [[(templates.common(*pair), len(pair[1]))] for pair in zip(asked, texts, strict=True)]
            problems = self._differences(batch, texts, marks)
        sizes = []
        prompts, wholes = ids[: len(batch)], ids[len(batch) :]
        for text, prompt, whole, found in zip(texts, prompts, wholes, problems, strict=True):
            start = templates.common(prompt, whole)
            found |= {"diverging_prompts"} if start < len(prompt) else set()
            sizes.append(self._size(text, whole, [(start, len(whole))], found))
        return sizes

    @functools.cached_property
    def _words(self) -> words.Words | None:
        return words.of(self.loaded)

    def _ids(self, texts: list[str], *, rendered: bool) -> list[list[int]]:
        """The tokens of texts; those that a template has rendered get no special tokens."""
        adds_none = rendered or not self.loaded("", **self._QUIET)["input_ids"]
        known = self._words if adds_none else None
        found = [*known.ids(texts)] if known else [None] * len(texts)
        rest = [text for text, ids in zip(texts, found, strict=True) if ids is None]
        if rest and rendered:
            more = iter([ids for ids, _ in self._pieces(rest)])
        else:
            more = iter(self.loaded(rest, **self._QUIET)["input_ids"] if rest else [])
        return [next(more) if ids is None else ids for ids in found]

    def _marked(self, batch: list[dict[str, Any]]) -> list[Size]:
        """Of rows whose every answer is supervised, as `apply_chat_template` with `return_assistant_tokens_mask`."""
        from transformers.utils.chat_template_utils import render_jinja_template

        wholes = [templates.prompt_of(row, row["messages"]) for row in batch]
        how = {"chat_template": self.template, "return_assistant_tokens_mask": True, **self.loaded.special_tokens_map}
        groups = templates.groups(wholes, self.template)
        parts = [render_jinja_template(group, **{**how, **told}) for group, told in groups]
        texts, marked = ([each for part in parts for each in part[index]] for index in (0, 1))
        tokenised = self._pieces(texts)
        spans = [_spans(marks, len(ids), place) for marks, (ids, place) in zip(marked, tokenised, strict=True)]
        if not all(spans):
            raise ValueError(NO_MARKS)
        problems = self._differences(batch, texts, marked)
        return list(map(self._size, texts, (ids for ids, _ in tokenised), spans, problems))

    def _texts(self, prompts: Sequence[templates.Prompt], **how: Any) -> list[str]:
        template = how.pop("chat_template", self.template)
        return templates.texts(self.loaded, prompts, template, **how)

    def _pieces(self, texts: list[str]) -> list[tuple[list[int], Callable[[int], int | None]]]:
        """The tokens of rendered texts, each with the function that gives the token of a character.

        Texts are cut before control tokens, where nothing on one side has a say in the tokens of the other, and what
        several of them have in common, such as a system prompt or a role's header, is tokenised once.
        """
        cut = self._cuts(texts[0])
        split = [[piece for piece in cut.split(text) if piece] if cut else [text] for text in texts]
        places = {piece: place for place, piece in enumerate(dict.fromkeys(itertools.chain.from_iterable(split)))}
        out = self.loaded([*places], add_special_tokens=False, **self._QUIET)
        found: list[tuple[list[int], Callable[[int], int | None]]] = []
        for pieces in split:
            parts = [places[piece] for piece in pieces]
            ids = [*itertools.chain.from_iterable(out["input_ids"][part] for part in parts)]
            found.append((ids, functools.partial(_token_at, out, pieces, parts)))
        return found

    def _cuts(self, text: str) -> re.Pattern[str] | None:
        """Before what texts like this one can be cut; None where the tokenizer does not say."""
        # A tokenizer of Python's looks at the whole text.
        if not self.loaded.is_fast or self.loaded.split_special_tokens:
            return None
        added = [*self.loaded.added_tokens_decoder.values()]
        own = [
            each.content
            for each in added
            if each.content in text and not (each.normalized or each.lstrip or each.single_word)
        ]
        # Where two of them could meet in the same characters, which one is read depends on what stands before.
        alone = [each for each in own if not any(_overlap(each, o.content) for o in added if o.content != each)]
        if not alone:
            return None
        cut = re.compile(f"(?={'|'.join(map(re.escape, alone))})")
        whole, *pieces = self.loaded([text, *filter(None, cut.split(text))], add_special_tokens=False)["input_ids"]
        return cut if whole == [*itertools.chain.from_iterable(pieces)] else None

    def _decoded(self, ids: list[int]) -> str:
        return self.loaded.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def _size(self, text: str, ids: list[int], spans: list[tuple[int, int]], found: set[str]) -> Size:
        if "think>" in text.lower():
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
        return Size(len(ids), spans, stopping, ids, frozenset(found))

    def _differences(
        self, batch: list[dict[str, Any]], texts: list[str], marked: list[list[tuple[int, int]]]
    ) -> list[set[str]]:
        """Of each rendered conversation, how what is trained on differs from the row's own answers."""
        header = templates.header_of(lambda turns, **how: self._texts([turns], **how)[0], turns_of(batch[0]))
        clock = [False] * len(batch)
        if templates.reads_clock(self.template or ""):
            wholes = [templates.prompt_of(row, turns_of(row)) for row in batch]
            clock = templates.clocked(self._texts, self.template or "", wholes)
        found = []
        for row, text, parts, reads in zip(batch, texts, marked, clock, strict=True):
            answered = row["messages"] if "messages" in row else row["completion"]
            answers = [turn for turn in answered if turn["role"] == "assistant"]
            # A template may mark a turn in several parts.
            parts = parts if len(parts) == len(answers) else [(parts[0][0], parts[-1][1])] * len(answers)
            pairs = zip(parts, answers, strict=True)
            differing = (templates.difference(text, start, end, answer, header) for (start, end), answer in pairs)
            found.append({each for each in (*differing, "clock" if reads else None) if each})
        return found


def _token_at(out: Any, pieces: list[str], parts: list[int], character: int) -> int | None:
    """The place of the token that holds a character of a text, whose pieces these are of what was tokenised."""
    before = 0
    for piece, part in zip(pieces, parts, strict=True):
        if character < len(piece):
            token = out.char_to_token(part, character)
            return None if token is None else before + token
        character -= len(piece)
        before += len(out["input_ids"][part])
    return None


def _spans(
    marks: Iterable[tuple[int, int]], length: int, token_at: Callable[[int], int | None]
) -> list[tuple[int, int]]:
    """The tokens of what a template has marked, as `apply_chat_template` makes a mask of it."""
    spans: list[tuple[int, int]] = []
    for begin, end in marks:
        first, last = token_at(begin), token_at(end - 1)
        if first is None:
            break
        after = last + 1 if last else length
        if spans and spans[-1][0] <= first <= spans[-1][1]:
            spans[-1] = (spans[-1][0], max(spans[-1][1], after))
        elif first < after:
            spans.append((first, after))
    return spans


def _overlap(one: str, other: str) -> bool:
    """Whether two tokens could be read in the same characters of a text."""
    if one in other or other in one:
        return True
    shorter = range(1, min(len(one), len(other)))
    return any(one.endswith(other[:size]) or other.endswith(one[:size]) for size in shorter)


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
