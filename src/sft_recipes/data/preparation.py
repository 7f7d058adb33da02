"""From a user's rows, in files or on the Hub, to the directory of JSON lines that TRL trains on.

Every row is read, checked and brought into one of TRL's two shapes. A row that cannot be trained on as it stands is
an error that names its place; none is dropped, cut or repaired.
"""

import hashlib
import inspect
import itertools
import json
import uuid
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sft_recipes.data import formats, templates
from sft_recipes.data import sources as found_sources
from sft_recipes.data.formats import Rules
from sft_recipes.data.readers import COLUMNAR, LONGEST_ROW, Problems, Row, Source, file_source
from sft_recipes.data.turns import Reader
from sft_recipes.environment import rows_passing
from sft_recipes.errors import InputError, listed, refuse
from sft_recipes.files import publish, staged
from sft_recipes.recipes import sources as named_sources
from sft_recipes.recipes.recipe import Recipe
from sft_recipes.recipes.schema import as_yaml
from sft_recipes.recipes.sources import Entry
from sft_recipes.terminal import count

CACHE = Path(".cache/data")
GROUPS = "groups.json"
# The source of each training row where they were drawn by weight, two bytes a row. `datasets` looks at no hidden file.
_ORIGINS = ".origins"
# Part of every fingerprint: raise it when the same sources would be prepared differently.
PREPARATION_VERSION = 4

_JSON = json.JSONEncoder(ensure_ascii=False)
_TEXT: dict[str, Any] = {"encoding": "utf-8", "newline": "\n"}
# Rows between two calls of a progress function.
PROGRESS_ROWS = 1000


@dataclass(frozen=True)
class Prepared:
    """A directory that `datasets.load_dataset(str(directory))` reads, and what is known about it."""

    directory: Path  # with `train.jsonl`, `validation.jsonl` and `test.jsonl` where there are such, and `facts.json`
    fingerprint: str  # SHA-256 over the sources' content and everything that decides what is made of it
    kind: str  # "prompt_completion" (loss on the one answer of a row) or "messages" (loss on every assistant turn)
    conversational: bool  # whether the rows are turns, which a chat template renders, or plain text
    masked: bool  # whether marks in the rows leave answers out of the loss
    holds: tuple[str, ...]  # what is in the rows that not every chat template renders, of `templates.PARTS`
    variables: tuple[str, ...]  # what the rows tell the chat template by chat_template_kwargs
    format: str  # what the user's rows were in: one of `formats.FORMATS`, never "auto"
    columns: dict[str, str]  # the user's column for each field of the format that every row of the first source has
    # Of each: `source`, that one's `sha256` and `rows`, its own `prepared_rows`; where there are several sources, the
    # same of each of them as `sources`.
    splits: dict[str, dict[str, Any]]
    notes: tuple[str, ...]  # one sentence for each decision that was made


def source_of(recipe: Recipe) -> dict[str, Any]:
    """Where the recipe's rows come from and how they are read, as `prepare` takes it."""
    # Nothing is held out when nothing is evaluated.
    held_out = recipe["validation_split_size"] if recipe["eval_strategy"] != "no" else 0.0
    return {key: recipe[key] for key in ARGUMENTS} | {"validation_split_size": held_out}


def prepare(
    *,
    train_file: str | list[Any] | None,
    validation_file: str | list[Any] | None,
    test_file: str | list[Any] | None = None,
    dataset_name: str | None = None,
    dataset_config: str | None = None,
    dataset_train_split: str = "train",
    dataset_test_split: str = "test",
    data_format: str = "auto",
    data_columns: Mapping[str, str] | None = None,
    group_column: str | None = None,
    task: str | None = None,
    drop_reasoning: bool = False,
    stopping_strategy: str = "first_exhausted",
    validation_split_size: float = 0.0,
    test_split_size: float = 0.0,
    cache: Path,
    on_rows: Callable[[int], None] | None = None,
) -> Prepared:
    """Check and convert the rows of `train_file` or `dataset_name` into a directory below `cache`.

    The validation rows are those of `validation_file`, or of the Hub dataset's test split, or the share
    `validation_split_size` of the training rows, or none. The rows of `test_file` decide nothing about the others; in
    its place, `test_split_size` of the training rows are, and beside it nobody sees those.
    The values of `group_column` in the rows held out, which the evaluation goes by, are kept beside them (`groups`).
    Answers that are numbers or truth values are classes where the `task` is classification.
    `on_rows` is told how many rows have been read, every `PROGRESS_ROWS`; never for a directory that is there already.

    Raises:
        InputError: with everything that is wrong; nothing is left in `cache` then.
    """
    columns = dict(data_columns or {})
    classes = task == "classification"

    def rules_of(entry: Entry) -> Rules:
        own = entry.data_format or data_format, dict(entry.data_columns or columns)
        open_formats = formats.candidates(*own)
        return Rules(open_formats, own[1], group_column, Reader(classes=classes, drop_reasoning=drop_reasoning))

    shared = rules_of(Entry())
    if (train_file is None) == (dataset_name is None):
        given = "neither is" if train_file is None else "both are"
        raise InputError(f"give one of train_file and dataset_name: {given} given")
    asked = {"validation": validation_split_size, "test": test_split_size}
    for split, share in asked.items():
        if not 0 <= share < 1:
            raise InputError(f"{split}_split_size is {share}; write a share from 0 up to, not with, 1")
    if sum(asked.values()) >= 1:
        raise InputError(f"{_shares(asked)} leave no row to train on; write shares that are less than 1 together")

    files = {"train": train_file, "validation": validation_file, "test": test_file}
    # Rows of one file are in one form in all splits; those of several sources may each be in their own.
    several = any(isinstance(file, list) for file in files.values())
    sources: dict[str, list[_Part]] = {}
    if dataset_name is not None:
        wanted = {"train": dataset_train_split} | ({} if validation_file else {"validation": dataset_test_split})
        found = found_sources.hub(dataset_name, dataset_config, wanted)
        sources = {split: [_Part(Entry(dataset=dataset_name), source, shared)] for split, source in found.items()}
    problems: list[str] = []
    for split, file in files.items():
        try:
            named = named_sources.entries(f"{split}_file", file)
        except InputError as error:
            problems += error.problems
            continue
        for entry in named:
            try:
                source = found_sources.find(entry, f"{split}_file", split)
                rules = rules_of(entry) if several else shared
            except InputError as error:
                problems += error.problems
                continue
            # One chat template renders all.
            rules.holds, rules.variables = shared.holds, shared.variables
            sources.setdefault(split, []).append(_Part(entry, source, rules))
    refuse(problems)
    if "validation" in sources:
        del asked["validation"]
    shares = {split: float(share) for split, share in asked.items() if share}

    contents = {split: _content(parts, files[split]) for split, parts in sources.items()}
    decisive = [PREPARATION_VERSION, contents, data_format, columns, shares]
    decisive += [] if group_column is None else [group_column]
    decisive += ["classes"] if classes else []
    decisive += ["drop_reasoning"] if drop_reasoning else []
    weighted = any(part.entry.weight for part in sources["train"])
    decisive += [stopping_strategy] if weighted else []
    fingerprint = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
    directory = cache / fingerprint[:16]
    facts = _complete(directory, fingerprint)
    if facts is None:
        with staged(cache / f".{directory.name}.{uuid.uuid4().hex}") as staging:
            facts = {"fingerprint": fingerprint, **_write(staging, sources, shares, stopping_strategy, on_rows)}
            (staging / "facts.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
            publish(staging, directory, lambda: _complete(directory, fingerprint) is not None)
    for split, split_facts in facts["splits"].items():
        # The directory may have been made from files of the same content under other names.
        parts = sources.get(split, sources["train"])
        split_facts["source"] = _named(parts)
        for part, of_source in zip(parts, split_facts.get("sources", []), strict=False):
            of_source["source"] = part.source.name
    notes = _notes(facts, shares)
    if validation_split_size and "validation" not in shares:
        name = facts["splits"]["validation"]["source"]
        notes.append(f"validation_split_size {validation_split_size} is not used: the validation rows are {name}")
    known = {key: facts[key] for key in ("kind", "conversational", "masked", "format", "columns", "splits")}
    # What was prepared before there were such has none of them.
    known |= {key: tuple(facts.get(key, ())) for key in ("holds", "variables")}
    return Prepared(directory, fingerprint, **known, notes=tuple(notes))


# What it takes of where rows come from and how they are read.
ARGUMENTS = [name for name in inspect.signature(prepare).parameters if name not in ("cache", "on_rows")]


def groups(prepared: Prepared, split: str) -> list[str | None]:
    """The value of `group_column` in each row of a split; None where the row has none, or the split was not kept.

    Where the rows are of several sources and no column was asked for, the source of each.
    """
    path = prepared.directory / GROUPS
    facts = prepared.splits[split]
    if not path.is_file() and len(facts.get("sources", [])) > 1:
        # By the names of files alone: pages that others see say nothing of where those lie.
        names = [Path(each["source"]).name for each in facts["sources"]]
        unique = len(set(names)) == len(names)
        told = [name if unique else f"{number}: {name}" for number, name in enumerate(names, 1)]
        return [told[number] for number in itertools.islice(origins(prepared, split), facts["prepared_rows"])]
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return kept.get(split) or [None] * facts["prepared_rows"]


def origins(prepared: Prepared, split: str) -> Iterator[int]:
    """For each row of a split that has several `sources`, the place in them of the one that it is from."""
    path = prepared.directory / _ORIGINS
    if split == "train" and path.is_file():
        with path.open("rb") as file:
            while block := file.read(1 << 16):
                yield from array("H", block)
        return
    for number, of_source in enumerate(prepared.splits[split]["sources"]):
        yield from itertools.repeat(number, of_source["prepared_rows"])


def prompts(
    name: str, data_format: str, data_columns: Mapping[str, str] | None, *, conversational: bool
) -> list[tuple[Row, Any]]:
    """The rows of a file as they are, each with what a model is asked: a text, or a prompt of `templates`.

    They are read and checked as training rows are, but need no answer; one that is there is not looked at. The format
    is that of the training rows, never "auto", and `conversational` whether those were turns or plain text.

    Raises:
        InputError: With everything that is wrong.
    """
    rules = Rules([data_format], data_columns or {}, None, Reader(answers=False))
    rules.prompt_type = list if conversational else str
    problems = Problems()
    found = []
    for place, row in file_source(name).rows(problems):
        rules.recognise(name, row, problems)
        faults: list[str] = []
        answered = rules.normalise(row, faults)
        problems.add(place, *faults)
        if not faults:
            asked = answered["messages"][:-1] if "messages" in answered else answered["prompt"]
            found.append((row, templates.prompt_of(answered, asked)))
    if not found and not problems.count:
        problems.add(name, "has no rows; write at least one")
    problems.stop()
    return found


def _complete(directory: Path, fingerprint: str) -> dict[str, Any] | None:
    """The facts of a prepared directory, or None if it is absent or something of it is missing."""
    try:
        facts: dict[str, Any] = json.loads((directory / "facts.json").read_text(encoding="utf-8"))
        whole = facts["fingerprint"] == fingerprint
        whole &= all((directory / f"{split}.jsonl").is_file() for split in facts["splits"])
    except (OSError, ValueError, KeyError):
        return None
    return facts if whole else None


@dataclass(eq=False)
class _Part:
    """A source of a split, with what its rows have to be, and how many there were."""

    entry: Entry
    source: Source
    rules: Rules
    read: int = 0
    written: Counter[str] = field(default_factory=Counter)  # by the split that they are for
    drawn: int | None = None  # how many were drawn of those for training, where it was by weight


def _named(parts: list[_Part]) -> str:
    return ", ".join(part.source.name for part in parts)


def _content(parts: list[_Part], given: Any) -> list[Any]:
    """What decides about the rows of a split, but for what is decided for all of them."""
    one = [[part.source.reader, part.source.sha256] for part in parts]
    if not isinstance(given, list):
        return one[0]
    asked = [[part.entry.rows, part.entry.weight, part.entry.data_format, part.entry.data_columns] for part in parts]
    return [[*each, *own] for each, own in zip(one, asked, strict=True)]


def _sha256(parts: list[_Part]) -> str:
    """That of the one source, or of all that decides about several."""
    if len(parts) == 1:
        return parts[0].source.sha256
    return hashlib.sha256(json.dumps(_content(parts, [])).encode()).hexdigest()


@rows_passing()
def _write(
    staging: Path,
    sources: Mapping[str, list[_Part]],
    shares: Mapping[str, float],
    stopping_strategy: str,
    on_rows: Callable[[int], None] | None,
) -> dict[str, Any]:
    """Write the splits into `staging` and return the facts about them."""
    problems = Problems()
    origins = dict.fromkeys(shares, "train") | {split: split for split in sources}
    origins = {split: origins[split] for split in ("train", "validation", "test") if split in origins}
    groups: dict[str, list[str | None]] = {split: [] for split in origins if split != "train"}
    evaluated = "test" if "test" in groups else "validation"
    weights = [part.entry.weight or 0.0 for part in sources["train"]]
    total = 0
    apart = True
    learnt: list[tuple[str | None, str | None, int]] = []
    with ExitStack() as stack:
        files = {split: stack.enter_context((staging / f"{split}.jsonl").open("w", **_TEXT)) for split in origins}
        for split, number, part in [(each, *part) for each in sources for part in enumerate(sources[each])]:
            source, rules = part.source, part.rules
            rules.reader.columnar = source.reader in COLUMNAR
            if any(weights) and split == "train":
                files["train"] = stack.enter_context(_drawn_from(staging, number).open("w", **_TEXT))
            for place, row in itertools.islice(source.rows(problems), part.entry.rows):
                part.read += 1
                total += 1
                if on_rows and not total % PROGRESS_ROWS:
                    on_rows(total)
                faults: list[str] = []
                rules.recognise(source.name, row, problems)
                found = rules.normalise(row, faults, place)
                apart = apart and (split == "test" or not rules.several)
                line = whole = _JSON.encode(_apart(found) if apart else found)
                draws = bool(shares) and split == "train"
                if apart and (draws or len(line) > LONGEST_ROW):
                    whole = _JSON.encode(found)
                if len(whole) > LONGEST_ROW:
                    most = f"a row has at most {LONGEST_ROW:,}, which is more than a model reads"
                    faults.append(f"the row has {len(whole):,} characters; {most}, so write it as several rows")
                target = _drawn(whole, shares) if draws else split
                # Rows for the evaluation at the end must have it; others may.
                group = rules.group(row, faults if target == evaluated else [])
                problems.add(place, *faults)
                # Rows drawn for a test that has a file of its own are nobody's.
                if not problems.count and split in (target, origins[target]):
                    files[target].write(line + "\n")
                    part.written[target] += 1
                    if target in groups and rules.group_column is not None:
                        groups[target].append(group)
            if not part.read and not problems.count:
                problems.add(source.name, "has no rows; write at least one")
            elif part.read < (part.entry.rows or 0) and not problems.count:
                has = count(part.read, "row")
                problems.add(
                    source.name, f"has {has}, and rows: {part.entry.rows} asks for more; write no more than that"
                )
            if split != "test":
                held = dict.fromkeys(each.rules for name in sources if name != "test" for each in sources[name])
                learnt = [(each.several, each.masked, each.shortened) for each in held]
    every = list(dict.fromkeys(part.rules for parts in sources.values() for part in parts))
    first = sources["train"][0]
    several = next((each[0] for each in learnt if each[0]), None)
    masked = next((each[1] for each in learnt if each[1]), None)
    shortened = sum(each[2] for each in learnt)
    if several and masked:
        problems.add(
            masked,
            f"leaves an answer out of the loss, and {several} has several answers to learn, which no loss of TRL does "
            "in one training; write rows with several answers once for each of them, ending with it",
        )
    for part in (part for parts in sources.values() for part in parts if len(every) > 1 and not problems.count):
        if part.rules.conversational != first.rules.conversational:
            is_text = "plain text" if part.rules.conversational else "turns"
            problems.add(
                part.source.name,
                f"has {'turns' if is_text == 'plain text' else 'plain text'}, and "
                f"{first.source.name} has {is_text}; write all in one of them",
            )
        elif several and part.rules.format == "prompt_completion":
            problems.add(
                part.source.name,
                f"has prompts and completions, and {several} has several answers to learn; write both as messages",
            )
    problems.stop()
    one_answer = not several
    if not all(any(part.written[split] for part in sources[origin]) for split, origin in origins.items()):
        raise InputError(
            f"{_shares(shares)} {'puts' if len(shares) == 1 else 'put'} all "
            f"{sum(part.read for part in sources['train']):,} rows of "
            f"{_named(sources['train'])} on one side (equal rows stay together): give "
            f"{' and '.join(f'a {split}_file' for split in shares)}, more rows or another share"
        )
    if any(weights):
        _mix(staging, sources["train"], weights, stopping_strategy)
    holds, variables = first.rules.holds, first.rules.variables
    if several or variables:
        for split in origins:
            _rewrite(staging / f"{split}.jsonl", joined=bool(several), variables=bool(variables))
    if holds or variables:
        _write_features(staging, one_answer=one_answer, variables=variables)
    if first.rules.group_column is not None:
        (staging / GROUPS).write_text(json.dumps(groups), encoding="utf-8")
    facts: dict[str, Any] = {
        "kind": "prompt_completion" if one_answer else "messages",
        "conversational": first.rules.conversational,
        "masked": bool(masked or shortened),
        "holds": [part for part in templates.PARTS if part in holds],
        "variables": sorted(variables),
        "format": first.rules.format,
        "formats": {rules.format: rules.detected for rules in every},
        "columns": first.rules.settled,
        "unused": sorted({name for rules in every for name in rules.reader.unused}),
        "read": list(dict.fromkeys([*problems.notes, *(note for rules in every for note in rules.reader.notes)])),
        "shortened": shortened,
        "stopping_strategy": stopping_strategy if any(weights) else None,
        "splits": {split: _facts(sources[origin], split) for split, origin in origins.items()},
    }
    return facts | {"notes": _notes(facts, shares)}


def _facts(parts: list[_Part], split: str) -> dict[str, Any]:
    """What is known of a split; of several sources also of each: what there was of it to draw from, and was drawn."""
    each: list[dict[str, Any]] = [
        {
            "source": part.source.name,
            "sha256": part.source.sha256,
            "format": part.rules.format,
            "rows": part.read,
            "available": part.written[split],
            "prepared_rows": part.written[split] if split != "train" or part.drawn is None else part.drawn,
            "weight": part.entry.weight if split == "train" else None,
        }
        for part in parts
    ]
    rows, prepared = (sum(of_part[key] for of_part in each) for key in ("rows", "prepared_rows"))
    found = {"source": _named(parts), "sha256": _sha256(parts), "rows": rows, "prepared_rows": prepared}
    return found | ({"sources": each} if len(parts) > 1 else {})


def _drawn_from(staging: Path, number: int) -> Path:
    return staging / f".source{number}"


def _mix(staging: Path, parts: list[_Part], weights: list[float], stopping_strategy: str) -> None:
    """Draw the training rows from their sources by weight."""
    rows = [part.written["train"] for part in parts]
    if empty := [part.source.name for part, number in zip(parts, rows, strict=True) if not number]:
        raise InputError(f"all rows of {listed(empty)} are held out; give it more rows, or leave it out")
    longest = max(number * sum(weights) / weight for number, weight in zip(rows, weights, strict=True))
    if stopping_strategy == "all_exhausted" and longest > found_sources.MOST_REPEATS * sum(rows):
        raise InputError(
            f"stopping_strategy: all_exhausted with these weights would draw about {longest:,.0f} rows from "
            f"{sum(rows):,}; write weights that are nearer to the sources' rows, or first_exhausted"
        )
    drawn, kept = [0] * len(parts), array("H")
    with ExitStack() as stack:
        train = stack.enter_context((staging / "train.jsonl").open("w", **_TEXT))
        origins = stack.enter_context((staging / _ORIGINS).open("wb"))
        files = [stack.enter_context(_drawn_from(staging, number).open(**_TEXT)) for number in range(len(parts))]
        for number in found_sources.drawn(rows, weights, stopping_strategy):
            line = files[number].readline()
            if not line:
                files[number].seek(0)
                line = files[number].readline()
            train.write(line)
            drawn[number] += 1
            kept.append(number)
            if len(kept) == 1 << 16:
                kept.tofile(origins)
                kept = array("H")
        kept.tofile(origins)
    for number, part in enumerate(parts):
        _drawn_from(staging, number).unlink()
        part.drawn = drawn[number]


def _drawn(line: str, shares: Mapping[str, float]) -> str:
    """The split that a training row is drawn for: by its content alone, so equal rows stay on one side."""
    # A row with half of a character is refused, but not here.
    number = int.from_bytes(hashlib.sha256(line.encode(errors="surrogatepass")).digest()[:8], "big")
    below = 0.0
    for split, share in shares.items():
        below += share
        if number < below * 2**64:
            return split
    return "train"


def _shares(shares: Mapping[str, float]) -> str:
    return " and ".join(f"{split}_split_size {share}" for split, share in shares.items())


def _apart(row: Row) -> Row:
    """A row of messages as prompt and completion; TRL then needs no help of the chat template for the loss."""
    if "messages" not in row:
        return row
    messages = row["messages"]
    parts = {"prompt": messages[:-1], "completion": messages[-1:], **row}
    del parts["messages"]
    return parts


def _rewrite(path: Path, *, joined: bool, variables: bool) -> None:
    """Turn rows into messages again that were written before one was found that has several answers to learn.

    Where rows set variables of the chat template, each row gets an object of them, which TRL needs then.
    """
    converted = path.with_suffix(".converted")
    with path.open(**_TEXT) as lines, converted.open("w", **_TEXT) as file:
        for line in lines:
            if variables or (joined and line.startswith('{"prompt"')):
                row = json.loads(line)
                if joined and "prompt" in row:
                    row = {"messages": row.pop("prompt") + row.pop("completion"), **row}
                if variables:
                    row.setdefault("chat_template_kwargs", {})
                line = _JSON.encode(row) + "\n"
            file.write(line)
    converted.replace(path)


def _write_features(staging: Path, *, one_answer: bool, variables: Mapping[str, type]) -> None:
    """The columns as `datasets` reads them beside the rows, since it would know those of the first 10 MB alone."""
    import yaml

    def texts(*names: str) -> list[dict[str, Any]]:
        return [{"name": name, "dtype": "string"} for name in names]

    def turns(column: str) -> dict[str, Any]:
        function = {"name": "function", "struct": texts("name", "arguments")}
        calls = {"name": "tool_calls", "list": [*texts("id", "type"), function]}
        said = texts("role", "content", "reasoning_content", "name", "tool_call_id")
        return {"name": column, "list": [*said, calls]}

    columns = ("prompt", "completion") if one_answer else ("messages",)
    features = [*map(turns, columns), *texts("tools")]
    if variables:
        types = {bool: "bool", int: "int64", float: "float64", str: "string"}
        fields = [{"name": name, "dtype": types[variables[name]]} for name in sorted(variables)]
        features.append({"name": "chat_template_kwargs", "struct": fields})
    card = yaml.safe_dump({"dataset_info": {"features": features}}, sort_keys=False)
    (staging / "README.md").write_text(f"---\n{card}---\n", encoding="utf-8")


def _notes(facts: dict[str, Any], shares: Mapping[str, float]) -> list[str]:
    notes = [
        f"format: {name}, {'recognised by its columns' if detected else 'as the recipe says'}"
        for name, detected in facts["formats"].items()
    ]
    notes += facts["read"]
    # Of keys of turns, the name after their place.
    unknown = [name for name in facts["unused"] if name.rpartition("[].")[2] not in formats.HARMLESS]
    if harmless := [name for name in facts["unused"] if name not in unknown]:
        notes.append(f"not used: {listed(harmless)}")
    if unknown:
        notes.append(f"not used: {listed(unknown)}; write it into the prompt if an answer follows from it")
    if facts["shortened"]:
        ends = count(facts["shortened"], "row")
        notes.append(f"{ends} end at the last answer that is to be learnt; what follows has no part in the loss")
    if facts.get("holds"):
        held = [part for part in facts["holds"] if part != "call answers"]
        notes.append(f"rendered by the chat template: {', '.join(held)}")
    if facts.get("variables"):
        notes.append(f"chat_template_kwargs: {listed(facts['variables'])}, of each row")
    several = "every assistant turn, since some rows have several"
    notes.append(f"loss: on {several if facts['kind'] == 'messages' else 'the one answer that ends each row'}")
    for split, of_split in facts["splits"].items():
        drawn = split in shares and of_split["sha256"] == facts["splits"]["train"]["sha256"]
        by_hash = f", chosen by a hash of the row ({split}_split_size {shares[split]})" if drawn else ""
        for each in of_split.get("sources", [of_split]):
            prepared, rows, name = each["prepared_rows"], each["rows"], each["source"]
            number = count(rows, "row") if prepared == rows else f"{prepared:,} of {count(rows, 'row')}"
            if weight := each.get("weight"):
                number = f"{count(prepared, 'row')} drawn from {rows:,}"
                name += f" by its weight {as_yaml(weight)}"
            notes.append(f"{split}: {number} of {name}{by_hash}")
    if strategy := facts.get("stopping_strategy"):
        last = "first source" if strategy == "first_exhausted" else "last source"
        notes.append(f"weights: rows are drawn until the {last} is exhausted (stopping_strategy: {strategy})")
    if "validation" not in facts["splits"]:
        notes.append("validation: none (no validation file or split, and validation_split_size is 0)")
    return notes
