"""Rows from one file, each with its place, and what is wrong with a file that cannot be read as rows."""

import contextlib
import csv
import gzip
import hashlib
import io
import itertools
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, cast

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
_OPENING = re.compile(r"\s*(?:\[\s*(\])?)?\s*")
_SEPARATOR, _SPACE = re.compile(r"\s*([,\]])\s*"), re.compile(r"\s*")

# Characters of a row, a million tokens of English, which is more than models read. A tokenizer takes seconds and
# 200 MiB for each million characters, so a row that is a whole file by mistake would take all there is.
LONGEST_ROW = 4_000_000

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
        raise InputError(f"{name} is a directory; name one file") from None
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
    suffix = form(path)
    if problem := _wrong_content(path, head, suffix):
        raise InputError(f"{name} {problem}")
    if suffix not in _READERS:
        supported = f"{', '.join(_READERS)}, and those of text with {' or '.join(COMPRESSED)} behind them"
        raise InputError(f"{name} has the suffix {path.suffix!r}; the supported ones are {supported}")
    return Source(name, suffix, digest.hexdigest(), lambda problems: _rows(path, name, problems))


def form(path: Path) -> str:
    """The suffix that says what is in a file: that before `.gz` or `.zst`, of a text that is compressed."""
    suffix = path.suffix.lower()
    within = Path(path.stem).suffix.lower()
    return within if suffix in COMPRESSED and within not in (*BINARY, "") else suffix


def _rows(path: Path, name: str, problems: Problems) -> Iterator[tuple[str, Row]]:
    try:
        yield from _READERS[form(path)](path, name, problems)
    except _DAMAGED as error:
        if path.suffix.lower() not in COMPRESSED:
            raise
        problems.add(name, _damaged(error))


# What is raised where a compressed file is damaged or cut off: by pyarrow an OSError.
_DAMAGED = (EOFError, zlib.error, OSError)


def _damaged(error: Exception) -> str:
    return f"the compressed data are damaged or cut off ({error}); copy, download or compress the file again"


def _open(path: Path, newline: str | None = None) -> TextIO:
    """A file as text, decompressed if it is compressed; bytes that are not UTF-8 are told where they are read."""
    how: dict[str, Any] = {"encoding": "utf-8-sig", "errors": "surrogateescape", "newline": newline}
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return cast(TextIO, gzip.open(path, "rt", **how))
    if suffix == ".zst":
        import pyarrow

        return io.TextIOWrapper(pyarrow.input_stream(str(path), compression="zstd"), **how)
    return path.open(**how)


def _several(name: str) -> str | None:
    """What is wrong with a name that means more than one file."""
    parts = [part for part in re.split(r"[,\s]+", name) if part]
    if len(parts) == 1 or any(form(Path(part)) not in _READERS for part in parts):
        return None
    return f"{name}: {len(parts)} files; write them as a list, e.g. train_file: [{', '.join(parts)}]"


def _wrong_content(path: Path, head: bytes, suffix: str) -> str | None:
    """Files that are something else than their name says, as their first bytes tell."""
    compression = path.suffix.lower()
    if not head:
        return "is empty; write at least one row"
    if head.startswith(b"version https://git-lfs"):
        return "is a git-LFS pointer and not the data; fetch the data with: git lfs pull"
    for ending, magic in COMPRESSED.items():
        if head.startswith(magic) != (compression == ending):
            made = {".gz": "gzip", ".zst": "zstd"}[ending]
            if compression == ending:
                return f"is not compressed with {made}; name it without {ending}"
            return f"is compressed with {made}; name it {path.name}{ending}"
    if compression in COMPRESSED and suffix == compression:
        return f"is compressed, and its name does not say what is in it; name it such as rows.jsonl{compression}"
    if compression in COMPRESSED:
        try:
            with _open(path) as file:
                head = file.read(1024).encode(errors="surrogateescape")
        except _DAMAGED as error:
            return f"cannot be read: {_damaged(error)}"
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "is a web page, perhaps an error or login page; download the data itself"
    if (suffix == ".parquet") != head.startswith(b"PAR1"):
        return "is not a Parquet file" if suffix == ".parquet" else "is a Parquet file; name it .parquet"
    if suffix not in BINARY and (head.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in head[:2]):
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
        row = dict(found)
        if len(row) < len(found):
            keys = [key for key, _ in found]
            repeated = (key for key in sorted(row) if keys.count(key) > 1)
            self._faults += [f"the key {key!r} occurs twice in an object; keep one" for key in repeated]
        return row

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
    first = second = ""
    with _open(path) as file:
        # An array may be one line.
        is_array = file.read(1024).lstrip().startswith("[")
    if not is_array:
        with _open(path) as file:
            first, second = itertools.islice(itertools.chain((line for line in file if line.strip()), ("", "")), 2)
        is_array = first.lstrip().startswith("[")
    with _open(path) as file:
        if is_array or _goes_on(decoder, first, second):
            values = _values(file, decoder, is_array)
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


def _values(file: TextIO, decoder: _Decoder, is_array: bool) -> Iterator[_Value]:
    """The values of an array, or the objects one after the other, wherever their lines end.

    Of a large file there is a window in memory, which is as long as the value that is read.
    """
    window = _Window(file)
    opening = _OPENING.match(window.text)
    number, closed = 0, bool(opening and opening[1])
    position = opening.end() if opening else 0
    between = _SEPARATOR if is_array else _SPACE
    try:
        while not closed and not window.undecodable:
            try:
                value, end = decoder.next(window.text, position)
                separator = between.match(window.text, end)
                if separator is None:
                    raise json.JSONDecodeError("Expecting ',' delimiter", window.text, end)
                whole = separator.end() < len(window.text)
            except json.JSONDecodeError:
                # Of a value that is cut off in the window; not so if far more of it is there than a row can have.
                if window.ended or (is_array and len(window.text) - position > 16 * LONGEST_ROW):
                    raise
                decoder.faults()
                window.more()
                continue
            faults = decoder.faults()
            if not whole and window.more():
                continue
            number += 1
            yield f" row {number}", value, faults
            closed = separator[1] == "]" if is_array else separator.end() == len(window.text)
            position = separator.end() - window.forget(end)
        if not window.undecodable and position < len(window.text):
            raise json.JSONDecodeError("Extra data", window.text, position)
    except json.JSONDecodeError as error:
        error.colno += window.column if error.lineno == 1 else 0
        yield f":{error.lineno + window.lines}", None, [_json_problem(error)]
    except (ValueError, RecursionError) as error:
        yield f" row {number + 1}", None, [_json_problem(error)]
    while window.undecodable and window.more():
        window.forget(len(window.text))
    yield from ((f":{line}", None, [error]) for line, error in window.undecodable)


class _Window:
    """The part of a text file that is being read."""

    BLOCK = 1 << 16

    def __init__(self, file: TextIO) -> None:
        self.file = file
        self.text = ""
        self.ended = False
        self.lines = 0  # lines that end before the window
        self.column = 0  # characters of the window's first line that are before it
        self.undecodable: list[tuple[int, str]] = []
        """Lines with bytes that are not UTF-8, and what is said of them."""
        self.more()

    def more(self) -> bool:
        """Make the window longer, by as much as it is long at least; whether there was more."""
        read = self.file.read(max(self.BLOCK, len(self.text)))
        self.ended = not read
        if _UNDECODABLE.search(read):
            line = self.lines + self.text.count("\n") + 1
            self.undecodable += [
                (n, error) for n, each in enumerate(read.split("\n"), line) if (error := _not_utf8(each))
            ]
        self.text += read
        return bool(read)

    def forget(self, end: int) -> int:
        """Let go what is before a place, if that is much; how many characters that were."""
        if end < self.BLOCK:
            return 0
        ended = self.text.count("\n", 0, end)
        self.column = end - self.text.rfind("\n", 0, end) - 1 if ended else self.column + end
        self.lines += ended
        self.text = self.text[end:]
        return end


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
    delimiter = usual = "\t" if form(path) == ".tsv" else ","
    # The limit of the module is 128 KiB a cell, which long documents pass.
    csv.field_size_limit(2**31 - 1)
    header: list[str] = []
    line = 1
    with _open(path, newline="") as file:
        head = next((row for row in file if row.strip()), "")
    with _open(path, newline="") as file:
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


def _read_columns(path: Path, name: str, problems: Problems) -> Iterator[tuple[str, Row]]:
    """The rows of a file of Parquet or Arrow, with the names of their classes."""
    import pyarrow

    number, classes = 0, dict[str, list[str]]()
    batches, kind = (_of_parquet, "Parquet") if form(path) == ".parquet" else (_of_arrow, "Arrow")
    try:
        for schema, batch in batches(path):
            classes = classes if number else classes_of(schema)
            for start in range(0, batch.num_rows, 1000):
                for row in batch.slice(start, 1000).to_pylist():
                    number += 1
                    yield f"{name} row {number}", by_name(row, classes, problems)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        problems.add(f"{name} after row {number}", f"not readable as {kind} ({error}); write the file again")


def _of_parquet(path: Path) -> Iterator[tuple[Any, Any]]:
    """The batches of a file, each with the file's schema."""
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        yield from ((file.schema_arrow, batch) for batch in file.iter_batches(batch_size=1000))


def _of_arrow(path: Path) -> Iterator[tuple[Any, Any]]:
    import pyarrow

    with pyarrow.memory_map(str(path)) as file:
        # `datasets` writes streams; a file of Arrow's other form, Feather, begins with its name.
        is_file = file.read(6) == b"ARROW1"
        file.seek(0)
        reader = pyarrow.ipc.open_file(file) if is_file else pyarrow.ipc.open_stream(file)
        batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader
        yield from ((reader.schema, batch) for batch in batches)


# How the files begin that are compressed.
COMPRESSED = {".gz": b"\x1f\x8b", ".zst": b"\x28\xb5\x2f\xfd"}
BINARY = (".parquet", ".arrow")
# What a `Source` is read by where an object has a null for each key that another row's has.
COLUMNAR = (*BINARY, "arrow", "hub")
_READERS: dict[str, Callable[[Path, str, Problems], Iterator[tuple[str, Row]]]] = {
    ".jsonl": _read_json,
    ".ndjson": _read_json,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_columns,
    ".arrow": _read_columns,
}


def classes_of(schema: Any) -> dict[str, list[str]]:
    """The names of classes by their ids in each column that has such, as `datasets` writes them beside a schema."""
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"].items()
        classes = {name: each["names"] for name, each in features if each.get("_type") == "ClassLabel"}
        return {name: [*map(str, names)] for name, names in classes.items()}
    return {}


def by_name(row: Row, classes: dict[str, list[str]], problems: Problems) -> Row:
    """A row with the names of its classes instead of their ids; -1 is none."""
    for column, names in classes.items():
        if isinstance(number := row.get(column), int) and -1 <= number < len(names):
            row = {**row, column: names[number] if number >= 0 else None}
            problems.notes[f"labels: ids in {column} are read by the names that the set has, 0 is {names[0]!r}"] = None
    return row
