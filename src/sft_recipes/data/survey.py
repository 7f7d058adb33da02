"""What is in the rows: tokens and answers, repetitions, classes, and what should not be there.

One pass over each prepared split, with a few numbers kept per row; what is counted here, `lint/data.py` judges.
`tokens.py` says how many tokens they are.
"""

import collections
import contextlib
import hashlib
import itertools
import json
import re
import shutil
import unicodedata
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from sft_recipes.data import packing, preparation, refusals, repetitions, tokenised, tokens, workers
from sft_recipes.data.preparation import Prepared
from sft_recipes.data.refusals import TokenizerFacts
from sft_recipes.data.repetitions import EXAMPLES, Hashes, RowsFound
from sft_recipes.data.tokenised import Part, Written
from sft_recipes.data.tokens import Size, Tokenizer
from sft_recipes.environment import rows_passing
from sft_recipes.files import write_whole
from sft_recipes.recipes import secrets
from sft_recipes.terminal import counting_rows

# Part of every cached survey: raise it when the same rows would be counted differently.
SURVEY_VERSION = 9
CACHE = Path(".cache/surveys")

# Classes that a classification has at most, and rows of each on average at least.
CLASSES, ROWS_PER_CLASS = 50, 4
# Distinct fields and surface forms of answers that are counted.
FIELDS, FORMS = 50, 20
# Characters of an answer that are kept.
SHOWN = 200

# Mathematical signs stay: 1 + 1 is not 1 - 1.
_PUNCTUATION = re.compile(
    r"""[\s.,;:!?'"`()\[\]{}_\u00b4\u2010-\u2015\u2018-\u201f\u2022\u2026\u2039\u203a\u300c-\u300f«»-]+"""
)
_SPACES = "".join(_PUNCTUATION.sub(" ", chr(code)) for code in range(128))
# What no reader sees: soft hyphens, marks of width and direction, and the mark at the start of a file.
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufe0f\ufeff]")
# {name} and {{name}}; not what code and LaTeX write: ${name}, \frac{a}, f(x){y}.
_PLACEHOLDER = re.compile(r"(?<![\\$\w}{])(?:\{[A-Za-z_]\w*\}|\{\{ *[A-Za-z_][\w.]* *\}\})(?!\})")
_JSON_ASKED = re.compile(r"\bjson\b")
# What exports write where nothing was.
_NOTHING = {"", "nan", "null", "n/a", "{}", "[]", '""', "...", "-"}
# Bounded as addresses are (RFC 5321), so that a long row is read in one pass.
_EMAIL = re.compile(r"\b[\w.+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[A-Za-z]{2,}\b")
# Control tokens of the common families, where no tokenizer names its own.
_CONTROL = re.compile(r"<\|[a-z_0-9]+\|>|</?s>|\[/?INST\]|<(?:bos|eos|pad|start_of_turn|end_of_turn)>")
# The field of a JSON answer that is likeliest to be the class, where several could be.
CLASS_NAME = re.compile(r"label|class|categor|intent|sentiment|verdict|topic", re.IGNORECASE)

Progress = Callable[[int], None]
Histogram = dict[str, int]


class ClassFacts(TypedDict):
    """The answers of one class."""

    rows: int
    first_row: int
    constant: str | None  # the one text of all of them; None if they differ
    starts: dict[str, int]  # how often they begin with which two characters
    fields: dict[str, int]  # how often a JSON answer has which field


class Sized(TypedDict):
    """Rows by their tokens; histograms are of rows, or of stretches of them, by tokens as text."""

    source: str
    rows: int
    lengths: Histogram
    answer_starts: Histogram
    span_starts: Histogram
    span_ends: Histogram
    stops: Histogram
    turn_stops: Histogram
    unstopped_lengths: Histogram


class SplitFacts(Sized):
    """What is in the rows of a split."""

    tokens: int
    supervised_tokens: int
    largest_token: int  # 0 where tokens are estimated
    end_of_turn_supervised: int | None  # rows that end with a supervised stop token; None where tokens are estimated
    sources: NotRequired[list[Sized]]  # where there are several
    repeated: NotRequired[int]  # rows that drawing by weights has written again
    problems: dict[str, RowsFound]
    json: dict[str, int]
    answers: dict[str, Any]  # how many are `distinct` but for case, punctuation and spacing, and the `first`
    duplicates: RowsFound
    normalised_duplicates: RowsFound
    contradictions: RowsFound
    overlap: dict[str, dict[str, RowsFound]]  # by the other split: inputs in both, `exact` and `normalised`
    classes: dict[str, ClassFacts]  # the most frequent first


class Survey(TypedDict):
    """What `survey` returns."""

    tokens_are: str
    how: str
    kind: str
    conversational: bool
    holds: list[str]
    variables: list[str]
    columns: dict[str, str]  # as `Prepared` has them
    tokenizer: TokenizerFacts | None
    class_field: str | None  # of JSON answers; "" for the whole answer, None where they are no classification
    splits: dict[str, SplitFacts]


def survey(
    prepared: Prepared,
    tokenizer: Tokenizer | None,
    *,
    cache: Path = CACHE,
    on_progress: Progress | None = None,
) -> Survey:
    """Count what is in the rows of a prepared directory, or give what was counted before.

    The figures are of whole rows; `at_length` says what a `max_length` leaves of them. Rows are numbered from 1 within
    their split. Token figures are those of TRL's own preparation where the tokenizer is at hand ("tokens_are":
    "exact"), and otherwise 4 bytes of UTF-8 a token and 5 tokens around a turn ("estimated").

    `on_progress` is told the number of rows that are counted; never when the survey was kept in `cache`. Exact figures
    are those of tokens that are written beside the rows on the way (`tokenised`), and of which no row is lost since.

    Raises:
        InputError: The chat template refuses a row.
    """
    key = json.dumps([SURVEY_VERSION, prepared.fingerprint, tokenizer.fingerprint if tokenizer else None])
    kept = cache / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    try:
        found: Survey = json.loads(kept.read_text(encoding="utf-8"))
        whole = found["tokens_are"] != "exact" or not tokenizer or bool(tokenised.facts(_tokens(prepared, tokenizer)))
    except (OSError, ValueError):
        whole = False
    if not whole:
        found = json.loads(json.dumps(_count(prepared, tokenizer, on_progress, cache)))
        write_whole(kept, json.dumps(found, ensure_ascii=True))
    for split, facts in found["splits"].items():
        # The rows may have been counted under another name of the file.
        facts["source"] = prepared.splits[split]["source"]
        # What drawing by weights repeats is no fault of the rows.
        drawn = prepared.splits[split].get("sources", [])
        facts["repeated"] = sum(max(each["prepared_rows"] - each["available"], 0) for each in drawn if each["weight"])
        for of_source, named in zip(facts.get("sources", []), prepared.splits[split].get("sources", []), strict=False):
            of_source["source"] = named["source"]
    return found


def at_length(split: Sized, max_length: int | None) -> dict[str, int]:
    """What `max_length` leaves of a split's rows, by the names of run.json's `in_effect.data`.

    TRL keeps a row's start and leaves out rows that keep no supervised token (`SFTTrainer._prepare_dataset`). A row is
    cut when what is left of it does not end with a stop token. Supervised are the answers; with
    `completion_only_loss: false` it is everything.
    """
    limit = max_length or 2**62
    lost = _beyond(split["answer_starts"], limit - 1)
    tokens = _within(split["lengths"], limit) - (lost * limit if lost else 0)
    # Within the last three tokens, as `verify.data` looks: of a whole row, or of one that is cut behind any turn.
    stopping = sum(split["stops"].values()) - _beyond(split["stops"], limit - 3)
    stopping += _beyond(split["turn_stops"], limit - 3) - _beyond(split["turn_stops"], limit)
    short = sum(split["unstopped_lengths"].values()) - _beyond(split["unstopped_lengths"], limit - 1)
    return {
        "rows": split["rows"] - lost,
        "tokens": tokens,
        "supervised_tokens": _within(split["span_ends"], limit) - _within(split["span_starts"], limit),
        "rows_ending_with_eos": stopping,
        "rows_cut": split["rows"] - lost - stopping - short,
        "rows_lost": lost,
        "longest_row": min(max(map(int, split["lengths"])), limit),
    }


def kept_lengths(split: SplitFacts, max_length: int | None) -> dict[int, int]:
    """Rows by length, as `max_length` cuts them, without those that lose their whole answer."""
    limit = max_length or 2**62
    counts = collections.Counter[int]()
    for length, number in split["lengths"].items():
        counts[min(int(length), limit)] += number
    counts[limit] -= _beyond(split["answer_starts"], limit - 1)
    return {length: number for length, number in counts.items() if number > 0}


def real_token_share(split: SplitFacts, max_length: int | None, batch_size: int, within: int | None = None) -> float:
    """Expected share of batch positions that hold tokens, as `packing.real_token_share` takes batches."""
    return packing.real_token_share(kept_lengths(split, max_length), batch_size, within)


def _beyond(histogram: Mapping[str, int], limit: int) -> int:
    return sum(number for value, number in histogram.items() if int(value) > limit)


def _within(histogram: Mapping[str, int], limit: int = 2**62) -> int:
    return sum(min(int(value), limit) * number for value, number in histogram.items())


def for_training(prepared: Prepared, tokenizer: Tokenizer | None, *, cache: Path = CACHE) -> dict[str, str]:
    """Where the tokens of rows are, whole to the byte, or why TRL has to make them; as run.json holds it.

    Raises:
        InputError: The chat template refuses a row.
    """
    with counting_rows("tokenising") as on_progress:
        found = survey(prepared, tokenizer, cache=cache, on_progress=on_progress)
        if found["tokens_are"] != "exact" or tokenizer is None:
            return {"not_tokenised": found["how"]}
        directory = _tokens(prepared, tokenizer)
        if tokenised.facts(directory, whole=True) is None:
            shutil.rmtree(directory)
            survey(prepared, tokenizer, cache=cache, on_progress=on_progress)
    return {"tokens": str(directory)}


def _tokens(prepared: Prepared, tokenizer: Tokenizer) -> Path:
    return tokenised.place(prepared.directory, tokenizer.fingerprint)


def _count(
    prepared: Prepared, tokenizer: Tokenizer | None, on_progress: Progress | None, scratch: Path
) -> dict[str, Any]:
    counter = Counter(prepared, tokenizer)
    parts = [
        part
        for split, facts in prepared.splits.items()
        for part in tokenised.parts(prepared.directory / f"{split}.jsonl", facts["prepared_rows"])
    ]
    splits = {split: Split(len(facts.get("sources", []))) for split, facts in prepared.splits.items()}
    hashes = {split: Hashes(scratch) for split in splits}
    with contextlib.ExitStack() as stack:
        staging: Path | None = None
        written: dict[str, Written] = {}
        if counter.exact and tokenizer is not None:
            files = tokenised.writing(_tokens(prepared, tokenizer), counter.template)
            staging, written = stack.enter_context(files)
        for part, (counted, in_file) in zip(parts, workers.counted(counter, parts, staging, on_progress), strict=True):
            hashes[part.split].extend(counted.hashes)
            splits[part.split].merge(counted)
            if in_file is not None:
                before = written.setdefault(part.split, tokenised.Written())
                before.rows += in_file.rows
                before.unsupervised += in_file.unsupervised
                before.longest = max(before.longest, in_file.longest)
    field = _class_field(splits["train"])
    return {
        "tokens_are": "exact" if counter.exact else "estimated",
        "how": counter.how,
        "kind": prepared.kind,
        "conversational": prepared.conversational,
        "holds": prepared.holds,
        "variables": prepared.variables,
        "columns": prepared.columns,
        "tokenizer": refusals.facts(counter.loaded) if counter.loaded is not None else None,
        "class_field": field,
        "splits": {
            split: counted.facts(counter.exact)
            | repetitions.within(hashes[split])
            | {
                "answers": {
                    "distinct": repetitions.distinct(hashes[split], "answer"),
                    "first": counted.first_answer,
                },
                "overlap": {
                    other: repetitions.between(hashes[split], hashes[other]) for other in splits if other != split
                },
                "classes": counted.classes(field) if field is not None else {},
            }
            for split, counted in splits.items()
        },
    }


class Counter:
    """Counts what is in parts of prepared rows, and writes their tokens; the same in every process."""

    def __init__(self, prepared: Prepared, tokenizer: Tokenizer | None) -> None:
        self.prepared, self.tokenizer = prepared, tokenizer
        self.loaded, self.measure, self.how = tokens.ways(prepared, tokenizer)
        self.exact = self.measure is not tokens.estimate
        self.template = tokens.rendered_by(prepared, self.loaded) if self.exact else None
        self._control = _CONTROL
        if self.loaded is not None:
            special = {token.content for token in self.loaded.added_tokens_decoder.values() if token.special}
            self._control = re.compile("|".join(map(re.escape, sorted(special)))) if special else _CONTROL

    @rows_passing()
    def count(
        self, part: Part, staging: Path | None, on_rows: Progress | None = None
    ) -> tuple["Split", Written | None]:
        """What is in the rows of a part, and what was written of them; on_rows is told of each batch.

        Raises:
            InputError: The chat template refuses a row, or does not come to an end.
        """
        facts = self.prepared.splits[part.split]
        counted = Split(len(facts.get("sources", [])), part.before, self._control)
        origins: Iterator[int | None] = itertools.repeat(None)
        if counted.sources:
            origins = itertools.islice(preparation.origins(self.prepared, part.split), part.before, None)
        with contextlib.ExitStack() as stack:
            writer = stack.enter_context(tokenised.Writer(staging / part.name)) if staging else None
            for batch in tokens.batches(tokenised.lines(self.prepared.directory, part)):
                before = part.before + counted.rows
                sizes = tokens.sizes(self.measure, batch, before, facts["source"], first=not counted.rows)
                for row, size, origin in zip(batch, sizes, origins, strict=False):
                    counted.add(row, size, origin)
                if writer:
                    writer.write(sizes)
                if on_rows:
                    on_rows(len(batch))
        return counted, writer.written if writer else None


class Split:
    """What is kept of rows of a split while they pass: counts, a few hashes a row, and a few examples."""

    def __init__(self, sources: int, before: int = 0, control: re.Pattern[str] = _CONTROL) -> None:
        self.control = control
        self.hashes = {name: array("q") for name in Hashes.NAMES}
        self.before = before
        self.rows = self.largest_token = 0
        self.problems: dict[str, RowsFound] = {name: {"count": 0, "examples": []} for name in _OF_TEXTS + _OF_TOKENS}
        self.histograms = _histograms()
        self.sources = [_histograms() for _ in range(sources)]
        self.first_answer = ""
        self.json = collections.Counter({"asked": 0, "looks": 0})
        # By field of a JSON answer, and under "" by the whole answer; None where there are too many values.
        self.values: dict[str, dict[str, ClassFacts] | None] = {"": {}}

    def add(self, row: dict[str, Any], size: Size, origin: int | None = None) -> None:
        self.rows += 1
        turns = tokens.written(row)
        answer = turns[-1][1]
        self.first_answer = answer[:SHOWN] if self.rows == 1 else self.first_answer
        answers = [text for role, text in turns if role == "assistant"]
        prompt = "\n".join(text for role, text in turns[:-1] if role != "assistant")
        whole = "\n".join(text for _, text in turns)
        # What is called is for the tool to read, and no class.
        call = not isinstance(row.get("prompt"), str) and "tool_calls" in tokens.turns_of(row)[-1]
        lower = prompt.lower()
        asks_json = not call and "json" in lower and bool(_JSON_ASKED.search(lower))
        looks_json, parsed, value = (False, False, None) if call else _parsed(answer)
        self.json["asked"] += asks_json
        self.json["looks"] += looks_json
        # A template may put a newline after the stop token of the last turn, so `verify.data` looks at three tokens.
        stopped = bool(size.stops) and size.stops[-1] > size.length - 3
        found = (
            any(text.strip().casefold() in _NOTHING for text in answers),
            any(map(_unrendered, answers)),
            _unrendered(prompt),
            looks_json and not parsed,
            asks_json and not parsed,
            "@" in whole and _EMAIL.search(whole),
            secrets.shaped(whole),
            self.control.search(whole),
            not stopped,
        )
        for problem in (*itertools.compress(_OF_TEXTS, found), *size.found):
            entry = self.problems[problem]
            entry["count"] += 1
            if len(entry["examples"]) < EXAMPLES:
                entry["examples"].append(self.before + self.rows)
        self.largest_token = max(self.largest_token, size.largest)
        self._hash(turns[:-1], answer)
        self._size(self.histograms, size, stopped)
        if origin is not None:
            self._size(self.sources[origin], size, stopped)
        self._classify(answer, value)

    def _hash(self, before: list[tuple[str, str]], answer: str) -> None:
        parts = [part for turn in before for part in turn]
        asked, plain_asked, plain_answer = "\0".join(parts), normalised(*parts), normalised(answer)
        compared = (f"{asked}\0\0{answer}", f"{plain_asked}\0\0{plain_answer}", asked, plain_asked, plain_answer)
        for kept, text in zip(self.hashes.values(), compared, strict=True):
            # Python's own hash of a text is another one in each process.
            kept.frombytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())

    @staticmethod
    def _size(histograms: "_Histograms", size: Size, stopped: bool) -> None:
        histograms["lengths"][size.length] += 1
        histograms["answer_starts"][size.spans[0][0] if size.spans else size.length] += 1
        for start, end in size.spans:
            histograms["span_starts"][start] += 1
            histograms["span_ends"][end] += 1
        for stop in size.stops:
            histograms["turn_stops"][stop] += 1
        if stopped:
            histograms["stops"][size.stops[-1]] += 1
        else:
            histograms["unstopped_lengths"][size.length] += 1

    def _classify(self, answer: str, value: Any) -> None:
        """Count the answer under each value that may be its class: its own text, and its fields'."""
        self._value("", answer.strip(), answer, ())
        for field, held in value.items() if isinstance(value, dict) else ():
            if field and not isinstance(held, (dict, list)):
                self._value(field, held if isinstance(held, str) else json.dumps(held), answer, value)

    def _value(self, field: str, value: str, answer: str, names: Iterable[str]) -> None:
        if field not in self.values and len(self.values) <= FIELDS:
            self.values[field] = {}
        values = self.values.get(field)
        if values is None:
            return
        if value not in values and (len(values) == CLASSES or len(value) > SHOWN):
            self.values[field] = None
            return
        facts = values.setdefault(
            value, {"rows": 0, "first_row": self.before + self.rows, "constant": answer, "starts": {}, "fields": {}}
        )
        facts["rows"] += 1
        facts["constant"] = facts["constant"] if facts["constant"] == answer else None
        _tally(facts["starts"], {answer[:2]: 1}, FORMS)
        _tally(facts["fields"], dict.fromkeys(names, 1), FIELDS)

    def merge(self, later: "Split") -> None:
        """Take in what was counted of the rows that follow."""
        self.first_answer = self.first_answer if self.rows else later.first_answer
        self.rows += later.rows
        self.largest_token = max(self.largest_token, later.largest_token)
        self.json.update(later.json)
        for problem, found in later.problems.items():
            entry = self.problems[problem]
            entry["count"] += found["count"]
            entry["examples"] = (entry["examples"] + found["examples"])[:EXAMPLES]
        for mine, theirs in zip([self.histograms, *self.sources], [later.histograms, *later.sources], strict=True):
            for name, values in theirs.items():
                mine[name].update(values)
        for field, theirs_of in later.values.items():
            if field in self.values:
                self.values[field] = _merged(self.values[field], theirs_of)
            elif len(self.values) <= FIELDS:
                self.values[field] = theirs_of

    def classes(self, field: str) -> dict[str, ClassFacts]:
        """Each class with its rows, most frequent first; none if the split has too many values to be classes."""
        values = self.values.get(field) or {}
        for facts in values.values():
            facts["constant"] = facts["constant"] and facts["constant"][:SHOWN]
        return dict(sorted(values.items(), key=lambda item: (-item[1]["rows"], item[0])))

    def facts(self, exact: bool) -> dict[str, Any]:
        found = _written(self.histograms)
        more = {"sources": [{"rows": each["lengths"].total(), **_written(each)} for each in self.sources]}
        return {
            **(more if self.sources else {}),
            "rows": self.rows,
            **found,
            "tokens": _within(found["lengths"]),
            "supervised_tokens": _within(found["span_ends"]) - _within(found["span_starts"]),
            "largest_token": self.largest_token,
            "end_of_turn_supervised": sum(found["stops"].values()) if exact else None,
            "problems": self.problems,
            "json": dict(self.json),
        }


_Histograms = dict[str, "collections.Counter[int]"]


def _histograms() -> _Histograms:
    return {name: collections.Counter() for name, held in Sized.__annotations__.items() if held == Histogram}


def _written(histograms: _Histograms) -> dict[str, Histogram]:
    return {name: {str(value): held[value] for value in sorted(held)} for name, held in histograms.items()}


def _tally(counts: dict[str, int], names: Mapping[str, int], most: int) -> None:
    """Count names, of which only the first so many different ones are kept."""
    for name, number in names.items():
        if name in counts or len(counts) < most:
            counts[name] = counts.get(name, 0) + number


def _merged(values: dict[str, ClassFacts] | None, later: dict[str, ClassFacts] | None) -> dict[str, ClassFacts] | None:
    """The values of a field with those of the rows that follow; None where they are too many to be classes."""
    if values is None or later is None or len(values.keys() | later.keys()) > CLASSES:
        return None
    for value, theirs in later.items():
        mine = values.setdefault(value, theirs)
        if mine is theirs:
            continue
        mine["rows"] += theirs["rows"]
        mine["constant"] = mine["constant"] if mine["constant"] == theirs["constant"] else None
        _tally(mine["starts"], theirs["starts"], FORMS)
        _tally(mine["fields"], theirs["fields"], FIELDS)
    return values


# Problems of a row's texts.
_OF_TEXTS = (
    *("empty", "unrendered", "unrendered_prompts", "json_unparsed", "asked_unparsed"),
    *("emails", "keys", "special_tokens", "unstopped"),
)
# Of its tokens, and of what the chat template makes of it.
_OF_TOKENS = (
    *("double_bos", "diverging_prompts", "stops_twice", "empty_reasoning"),
    *("header", "respaced", "rewritten", "clock"),
)


def _class_field(train: Split) -> str | None:
    """The field of JSON answers that is the class, "" for the whole answer, None for no classification.

    A classification has 2 to 50 classes of four rows each on average; a field that is one is in nine of ten answers.
    """
    fields = {field: values for field, values in train.values.items() if values and len(values) > 1}
    fitting = [
        field
        for field, values in fields.items()
        if len(values) * ROWS_PER_CLASS <= train.rows
        and sum(held["rows"] for held in values.values()) >= 0.9 * train.rows
    ]
    # What is called a class comes before what comes first, and any field before the whole answer.
    return min(fitting, key=lambda field: (not field, not CLASS_NAME.search(field)), default=None)


def normalised(*texts: str) -> str:
    """Each of the texts without case, punctuation, spacing and Unicode form, unless nothing else is there."""
    return "\0".join((_ascii(text) if text.isascii() else _any(text)) or text for text in texts)


def _any(text: str) -> str:
    return _PUNCTUATION.sub(" ", unicodedata.normalize("NFC", _INVISIBLE.sub("", text)).casefold()).strip()


def _ascii(text: str) -> str:
    """The same of what has one form and nothing invisible, in a fifth of the time."""
    return " ".join(text.lower().translate(_SPACES).split())


def _unrendered(text: str) -> bool:
    if "{" not in text or "```" in text:
        return False
    return text.lstrip().startswith("{{") or bool(_PLACEHOLDER.search(text))


def _parsed(answer: str) -> tuple[bool, bool, Any]:
    """Whether the answer begins as JSON, is JSON, and its value; also of JSON whose braces a template left doubled."""
    text = answer.strip()
    looks = text[:1] in ("{", "[")
    if text.startswith("```") and text.endswith("```"):
        text = text[3:-3].removeprefix("json").strip()
    if text[:1] in ("{", "["):
        plain = text.replace("{{", "{").replace("}}", "}") if text.startswith("{{") else text
        for each in dict.fromkeys((text, plain)):
            with contextlib.suppress(ValueError, RecursionError):
                return looks, each is text, json.loads(each)
    return looks, False, None
