"""Files that are whole or not there, and what tells that they are the same."""

import errno
import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO


def open_regular(path: Path) -> BinaryIO:
    """Open a file that a user has named; a directory, a pipe or a device, which may never end, is not read.

    Raises:
        OSError: It cannot be read; `strerror` says why.
    """
    try:
        # Opening a pipe waits for a writer otherwise.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError:
        raise OSError(errno.EINVAL, "Its name holds a character that no name can hold") from None
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "Is a directory")
    raise OSError(errno.EINVAL, "Not a file, but a pipe or a device")


def write_whole(path: Path, text: str) -> None:
    """Write a file that is either the old one or the new one, also after a crash."""
    # Two processes may write the same file at once, such as the census of a model.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def json_lines(path: Path, *, cut_off: bool = False) -> list[Any]:
    """The values of a JSON-lines file in order.

    Args:
        path: of the file.
        cut_off: leave out a last line that a crash cut off, which only a file that grows can have.

    Raises:
        ValueError: Another line is no JSON.
    """
    # Not by `splitlines`, to which more characters end a line than to JSON lines.
    *lines, last = path.read_bytes().split(b"\n")
    values = [json.loads(line) for line in lines if line.strip()]
    try:
        return values + ([json.loads(last)] if last.strip() else [])
    except ValueError:
        if not cut_off:
            raise
        return values


def sealed(directory: Path, besides: str) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file below a directory but those of one name, after they are on the disk."""
    files = {}
    for path in sorted(path for path in directory.rglob("*") if path.is_file() and path.name != besides):
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
