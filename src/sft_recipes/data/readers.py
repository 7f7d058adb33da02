"""Rows from files and from the Hub, each with its place, and what is wrong with a file that cannot be read as rows."""

import contextlib
import csv
import dataclasses
import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft_recipes.data import shapes
from sft_recipes.errors import InputError, listed, nearest, shown
from sft_recipes.files import open_regular

# How many kinds of problems are shown; the others are counted.
SHOWN = 20
_QUOTED = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")(?:\.\.\.)?"""
# What two problems of one kind differ in: what is quoted, numbers, and what a name may have meant.
_VARYING = re.compile(rf" \(nearest: {_QUOTED}\)|{_QUOTED}(?:, {_QUOTED})*(?: and \d+ more)?|\d[\d,.]*|true|false")
# What `errors="surrogateescape"` makes of bytes that are not UTF-8.
_UNDECODABLE = re.compile("[\udc80-\udcff]")
_SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})(\..+)")
_OPENING = re.compile(r"\s*(?:\[\s*(\])?)?\s*")
_SEPARATOR, _SPACE = re.compile(r"\s*([,\]])\s*"), re.compile(r"\s*")

Row = dict[str, Any]


class Problems:
    """What is wrong in files, each kind once for a file, and how a file was read whose form left that open."""

    def __init__(self) -> None:
        self.count = 0
        self.notes: dict[str, None] = {}
        # The first problem of each kind, its place, and the places of all: how many, and the last.
        self._kinds: dict[tuple[str, str], tuple[str, str, list[Any]]] = {}
        self._more: set[tuple[str, str]] = set()

    def add(self, place: str, *problems: str) -> None:
        """Add the problems of a place: a file, or one with the number of a line or a row at its end."""
        self.count += len(problems)
        where = place.rstrip("0123456789")
        for problem in problems:
            # Of a file as a whole there is each problem once.
            kind = where, problem if where == place else _VARYING.sub("", problem)
            if kind not in self._kinds and len(self._kinds) == SHOWN:
                self._more.add(kind)
                continue
            rows = self._kinds.setdefault(kind, (place, problem, [0, ""]))[2]
            rows[:] = rows[0] + (rows[1] != place), place

    def stop(self) -> None:
        """Raise an `InputError` if there was any."""
        if self.count:
            told = (
                f"{place}: {problem}{f' (in {rows:,} rows)' if rows > 1 else ''}"
                for place, problem, (rows, _) in self._kinds.values()
            )
            raise InputError(*told, *([f"... and {len(self._more):,} more"] if self._more else []))


@dataclass(frozen=True)
class Source:
    """Where the rows of a split come from; `rows` reports what it cannot read and yields (place, row) for the rest."""

    name: str
    reader: str
    sha256: str
    rows: Callable[[Problems], Iterator[tuple[str, Row]]]


def file_source(name: str, key: str | None = None) -> Source:
    """A file of rows, which the recipe names by `key`."""
    path = Path(name)
    digest = hashlib.sha256()
    try:
        with open_regular(path) as file:
            head = file.read(1024)
            file.seek(0)
            while block := file.read(1 << 20):
                digest.update(block)
    except IsADirectoryError:
        raise InputError(f"{name} is a directory; name one file, or give the directory as dataset_name") from None
    except FileNotFoundError:
        if problem := _several(name):
            raise InputError(problem) from None
        siblings = [each.name for each in path.parent.iterdir()] if os.access(path.parent, os.R_OK) else []
        raise InputError(
            f"{name}: no such file{nearest(path.name, siblings)}; correct the path"
            + (f", or name your own file with SET={key}=..." if key else "")
        ) from None
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror}; make it a file that this user may read") from None
    suffix = path.suffix.lower()
    if problem := _wrong_content(head, suffix):
        raise InputError(f"{name} {problem}")
    if suffix not in _READERS:
        raise InputError(f"{name} has the suffix {path.suffix!r}; the supported ones are {', '.join(_READERS)}")
    return Source(name, suffix, digest.hexdigest(), lambda problems: _READERS[suffix](path, name, problems))


def _several(name: str) -> str | None:
    """What is wrong with a name that means more than one file."""
    parts = [part for part in re.split(r"[,\s]+", name) if part]
    pattern = len(parts) == 1 and any(char in name for char in "*?[")
    if not pattern and (len(parts) == 1 or any(Path(part).suffix.lower() not in _READERS for part in parts)):
        return None
    by_line = all(Path(part).suffix.lower() in (".jsonl", ".ndjson") for part in parts)
    how = f", e.g. with: cat {' '.join(parts)} > joined.jsonl" if by_line else ""
    return f"{name}: {'a pattern' if pattern else f'{len(parts)} files'}, and rows are read from one; join them{how}"


def _wrong_content(head: bytes, suffix: str) -> str | None:
    """Files that are something else than their name says, as their first bytes tell."""
    if not head:
        return "is empty; write at least one row"
    if head.startswith(b"\x1f\x8b"):
        return "is compressed with gzip; decompress it with gunzip and name the result"
    if head.startswith(b"version https://git-lfs"):
        return "is a git-LFS pointer and not the data; fetch the data with: git lfs pull"
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "is a web page, perhaps an error or login page; download the data itself"
    if (suffix == ".parquet") != head.startswith(b"PAR1"):
        return "is not a Parquet file" if suffix == ".parquet" else "is a Parquet file; name it .parquet"
    if suffix != ".parquet" and (head.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in head[:2]):
        return "is UTF-16; convert it with: iconv -f UTF-16 -t UTF-8"
    return None


def _not_utf8(text: str) -> str | None:
    found = _UNDECODABLE.search(text)
    if found is None:
        return None
    return f"byte 0x{ord(found[0]) - 0xDC00:02X} is not UTF-8; convert the file, e.g. with: iconv -f LATIN1 -t UTF-8"


# Where a value stands in its file, the value, and what is wrong with it.
_Value = tuple[str, Any, list[str]]


class _Decoder:
    """Decodes JSON, and says what Python takes for JSON and is none, or loses: NaN, and a key that is there twice."""

    def __init__(self) -> None:
        self._faults: list[str] = []
        self._json = json.JSONDecoder(object_pairs_hook=self._pairs, parse_constant=self._constant)

    def _pairs(self, found: list[tuple[str, Any]]) -> Row:
        keys = [key for key, _ in found]
        repeated = sorted({key for key in keys if keys.count(key) > 1}) if len(set(keys)) < len(keys) else []
        self._faults += [f"the key {key!r} occurs twice in an object; keep one" for key in repeated]
        return dict(found)

    def _constant(self, literal: str) -> None:
        self._faults.append(f"{literal} is not JSON; write null, a number or a string")

    def line(self, text: str) -> tuple[Any, list[str]]:
        """The value of a line, and what is wrong with it."""
        if error := _not_utf8(text):
            return None, [error]
        try:
            return self._json.decode(text), self.faults()
        except (ValueError, RecursionError) as raised:
            self.faults()
            return None, [_json_problem(raised)]

    def next(self, text: str, position: int) -> tuple[Any, int]:
        """The value that begins at a position, and where it ends."""
        return self._json.raw_decode(text, position)

    def faults(self) -> list[str]:
        """What was wrong since it was asked last."""
        found, self._faults = self._faults, []
        return found


def _read_json(path: Path, name: str, problems: Problems) -> Iterator[tuple[str, Row]]:
    decoder = _Decoder()
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        first, second = itertools.islice(itertools.chain((line for line in file if line.strip()), ("", "")), 2)
        file.seek(0)
        is_array = first.lstrip().startswith("[")
        if is_array or _goes_on(decoder, first, second):
            values = _values(file.read(), decoder, is_array)
        else:
            values = ((f":{number}", *decoder.line(line)) for number, line in enumerate(file, 1) if line.strip())
        for label, value, faults in values if is_array else _rows_of_one(values, name, problems):
            if faults:
                problems.add(name + label, *faults)
            elif not isinstance(value, dict):
                problems.add(name + label, f"a row holds {shown(value)}; write an object with named columns")
            else:
                yield name + label, value


def _goes_on(decoder: _Decoder, first: str, second: str) -> bool:
    """Whether an object covers several lines, as pretty-printed ones do; a line that was cut off is no such object."""
    ends_early = [_json_problem(json.JSONDecodeError("", first, len(first)))]
    return decoder.line(first)[1] == ends_early and bool(second) and bool(decoder.line(second)[1])


def _rows_of_one(values: Iterable[_Value], name: str, problems: Problems) -> Iterator[_Value]:
    """The values as they are; of an object that is all there is in its file, the rows that it may hold."""
    values = iter(values)
    head = list(itertools.islice(values, 2))
    if len(head) == 1 and isinstance(head[0][1], dict) and not head[0][2]:
        try:
            rows, how = shapes.rows_of(head[0][1])
        except InputError as error:
            problems.add(name, *error.problems)
            return
        if how:
            problems.notes[how] = None
            head = [(f" row {number}", row, []) for number, row in enumerate(rows, 1)]
    yield from head
    yield from values


def _values(text: str, decoder: _Decoder, is_array: bool) -> Iterator[_Value]:
    """The values of an array, or the objects one after the other, wherever their lines end."""
    undecodable = [(n, error) for n, line in enumerate(text.split("\n"), 1) if (error := _not_utf8(line))]
    yield from ((f":{number}", None, [error]) for number, error in undecodable)
    opening = _OPENING.match(text)
    if undecodable or opening is None:
        return
    number, position, closed = 0, opening.end(), bool(opening[1])
    between = _SEPARATOR if is_array else _SPACE
    try:
        while not closed:
            value, position = decoder.next(text, position)
            number += 1
            yield f" row {number}", value, decoder.faults()
            separator = between.match(text, position)
            if separator is None:
                raise json.JSONDecodeError("Expecting ',' delimiter", text, position)
            position = separator.end()
            closed = separator[1] == "]" if is_array else position == len(text)
        if position < len(text):
            raise json.JSONDecodeError("Extra data", text, position)
    except json.JSONDecodeError as error:
        yield f":{error.lineno}", None, [_json_problem(error)]
    except (ValueError, RecursionError) as error:
        yield f" row {number + 1}", None, [_json_problem(error)]


def _json_problem(error: Exception) -> str:
    if not isinstance(error, json.JSONDecodeError):
        # Python's own words are about Python.
        why = "nested too deeply" if isinstance(error, RecursionError) else "a number of too many digits"
        return f"not readable as JSON ({why}); write a plain object"
    before, after = error.doc[: error.pos].rstrip(), error.doc[error.pos :].strip()
    if after.startswith("'"):
        return "single quotes, as Python prints a dict, are not JSON; write double quotes, e.g. with json.dumps"
    if after.startswith(",") or (before.endswith(",") and after.startswith(("}", "]"))):
        return "a comma follows the last item; delete it"
    if not after or error.msg.startswith("Unterminated string"):
        return "the JSON ends too early: the file was cut off, or an object covers several lines; write one a line"
    return f"not JSON: {error.msg} at column {error.colno}; write one object a line, or one array of objects"


def _read_csv(path: Path, name: str, problems: Problems) -> Iterator[tuple[str, Row]]:
    delimiter = usual = "\t" if path.suffix.lower() == ".tsv" else ","
    # The limit of the module is 128 KiB a cell, which long documents pass.
    csv.field_size_limit(2**31 - 1)
    header: list[str] = []
    line = 1
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        head = next((row for row in file if row.strip()), "")
        file.seek(0)
        others = [each for each in ",;\t" if each in head]
        if usual not in head and len(others) == 1:
            delimiter = others[0]
            problems.notes[f"columns: separated by {delimiter!r}, as the header is"] = None
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            for cells in reader:
                place, line = f"{name}:{line}", reader.line_num + 1
                if not cells:
                    continue
                if error := _not_utf8("".join(cells)):
                    problems.add(place, error)
                elif not header:
                    header = cells
                    if len(set(header)) < len(header) or "" in header:
                        problems.add(place, f"the header {listed(header)} has an empty or repeated name; name each")
                        return
                elif len(cells) != len(header):
                    fix = f"put a cell that holds {delimiter!r} or a line end in double quotes"
                    problems.add(place, f"{len(cells)} cells, but the header names {len(header)}; {fix}")
                else:
                    yield place, dict(zip(header, cells, strict=True))
        except csv.Error as error:
            problems.add(f"{name}:{line}", f"not CSV: {error}; put a cell in double quotes and double those inside it")


def _read_parquet(path: Path, name: str, problems: Problems) -> Iterator[tuple[str, Row]]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            classes = _classes((file.schema_arrow.metadata or {}).get(b"huggingface", b"{}"))
            for batch in file.iter_batches(batch_size=1000):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{name} row {number}", _by_name(row, classes, problems)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        problems.add(f"{name} after row {number}", f"not readable as Parquet ({error}); write the file again")


_READERS: dict[str, Callable[[Path, str, Problems], Iterator[tuple[str, Row]]]] = {
    ".jsonl": _read_json,
    ".ndjson": _read_json,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}


def _classes(written: bytes) -> dict[str, list[str]]:
    """The names of classes by their ids in each column that has such, as `datasets` writes them into Parquet files."""
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
        features = json.loads(written)["info"]["features"].items()
        classes = {name: each["names"] for name, each in features if each.get("_type") == "ClassLabel"}
        return {name: [*map(str, names)] for name, names in classes.items()}
    return {}


def _by_name(row: Row, classes: dict[str, list[str]], problems: Problems) -> Row:
    """A row with the names of its classes instead of their ids; -1 is none."""
    for column, names in classes.items():
        if isinstance(number := row.get(column), int) and -1 <= number < len(names):
            row = {**row, column: names[number] if number >= 0 else None}
            problems.notes[f"labels: ids in {column} are read by the names that the set has, 0 is {names[0]!r}"] = None
    return row


def hub_sources(name: str, config: str | None, train_split: str, test_split: str | None) -> dict[str, Source]:
    import datasets

    if missing := _missing_shards(Path(name)):
        raise InputError(f"dataset_name {name} lacks {listed(missing)} of its shards; copy or download it again")
    try:
        loaded = datasets.load_dataset(name, config)
    except Exception as error:  # the library raises a dozen kinds, and each means that there are no rows
        cause: BaseException = error
        while cause.__cause__:
            # What is wrong with a file is said below what the library says of it.
            cause = cause.__cause__
        reason = (str(cause).splitlines() or [""])[0].rstrip(".")
        raise InputError(
            f"dataset_name {name} cannot be loaded ({type(cause).__name__}: {reason}); check the name and "
            "dataset_config, or give local files as train_file, or point HF_HOME to a cache that holds it or "
            "HF_ENDPOINT to a mirror"
        ) from error
    if train_split not in loaded:
        near = nearest(train_split, list(loaded))
        raise InputError(f"{name} has no split {train_split!r}{near}; set dataset_train_split to {listed(loaded)}")
    sources = {"train": _dataset_source(f"{name} {train_split}", loaded[train_split])}
    if test_split is not None and test_split in loaded:
        sources["validation"] = _dataset_source(f"{name} {test_split}", loaded[test_split])
    return sources


def _missing_shards(directory: Path) -> list[str]:
    """The files of a directory that are missing by the names of the others, as `train-00001-of-00003.parquet` is."""
    found = ((path.parent, _SHARD.fullmatch(path.name)) for path in directory.rglob("*-of-*"))
    groups = {(parent, shard[1], shard[2], shard[3]) for parent, shard in found if shard}
    wanted = (
        parent / f"{name}-{number:05}-of-{total}{suffix}"
        for parent, name, total, suffix in sorted(groups)
        for number in range(int(total))
    )
    return [str(path.relative_to(directory)) for path in wanted if not path.is_file()]


def _dataset_source(name: str, dataset: Any) -> Source:
    for column, feature in dataset.features.items():
        if hasattr(feature, "decode"):  # images, sound: bytes are enough to say that they are there
            dataset = dataset.cast_column(column, dataclasses.replace(feature, decode=False))
    classes = {column: feature.names for column, feature in dataset.features.items() if hasattr(feature, "int2str")}
    digest = hashlib.sha256(json.dumps(classes, sort_keys=True).encode() if classes else b"")
    for row in dataset:
        # The fingerprint of the library depends on paths and times, the rows do not.
        digest.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")

    def rows(problems: Problems) -> Iterator[tuple[str, Row]]:
        for number, row in enumerate(dataset, 1):
            yield f"{name} row {number}", _by_name(row, classes, problems)

    return Source(name, "hub", digest.hexdigest(), rows)
