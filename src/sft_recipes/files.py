"""Files that are whole or not there, and what tells that they are the same."""

import hashlib
import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any


def write_whole(path: Path, text: str) -> None:
    """Write a file that is either the old one or the new one, also after a crash."""
    # Two processes may write the same file at once, such as the census of a model.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def json_lines(path: Path, *, cut_off: bool = False) -> list[Any]:
    """The values of a JSON-lines file in order.

    Args:
        path: of the file.
        cut_off: leave out a last line that a crash cut off, which only a file that grows can have.

    Raises:
        ValueError: Another line is no JSON; says which.
    """
    # Not by `splitlines`, to which more characters end a line than to JSON lines.
    lines = path.read_bytes().split(b"\n")
    values = []
    for number, line in enumerate(lines, 1):
        try:
            values += [json.loads(line)] if line.strip() else []
        except (ValueError, RecursionError) as error:
            if number < len(lines) or not cut_off:
                raise ValueError(f"line {number} is no JSON: {error}") from None
    return values


def sealed(directory: Path, besides: str = "", *, only: Collection[str] = ()) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file below a directory but those of one name, after they are on the disk.

    Args:
        directory: of the files.
        besides: a name that is left out.
        only: the names that are taken; all without it.
    """
    files = {}
    found = [directory / name for name in only] or directory.rglob("*")
    for path in sorted(path for path in found if path.is_file() and path.name != besides):
        with path.open("rb") as file:
            digest = digest_of(file)
            os.fsync(file.fileno())
        files[path.relative_to(directory).as_posix()] = {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}
    return files


def digest_of(file: Any) -> Any:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest
