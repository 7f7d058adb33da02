"""Files that are whole or not there, and what tells that they are the same."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
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


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the other's place once it is written: readers see the old file or the new one.

    No two writers share it, be they processes, threads or machines, and a failed one leaves nothing.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def staged(directory: Path) -> Iterator[Path]:
    """An empty directory to work in, which is gone afterwards if it was not given another name."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def publish(staging: Path, directory: Path, is_whole: Callable[[], bool]) -> None:
    """Give a directory its name; where another process was faster, what that has made is as good if it is whole."""
    try:
        staging.rename(directory)
    except OSError:
        if not is_whole():
            shutil.rmtree(directory)
            staging.rename(directory)


def write_whole(path: Path, text: str) -> None:
    """Write a file that is either the old one or the new one, also after a crash."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[int]:
    """Hold a lock file for this process and those that inherit the descriptor given.

    The system releases it when the last of them has ended, however they end.

    Raises:
        BlockingIOError: Somebody else holds it, and `wait` is false.
    """
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield file.fileno()


def json_lines(path: Path, *, cut_off: bool = False) -> list[Any]:
    """The values of a JSON-lines file in order.

    Args:
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
        besides: a name that is left out.
        only: the names that are taken; all without it.
    """
    files = {}
    found = [directory / name for name in only] or directory.rglob("*")
    for path in sorted(path for path in found if path.is_file() and path.name != besides):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        files[path.relative_to(directory).as_posix()] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    return files


def difference(directory: Path, files: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The first of the files of a directory that is not as `sealed` gave it, in a few words; None if all are."""
    for name, was in files.items():
        path = directory / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != was["bytes"]:
            return f"{name} has {path.stat().st_size} bytes instead of {was['bytes']}"
        if sha256(path) != was["sha256"]:
            return f"{name} does not match its checksum"
    return None


def taken(out: Path) -> str | None:
    """Why a new file or directory that OUT= names cannot be made, and what to do instead; None where it can."""
    if out.exists():
        return f"{out} exists and is never overwritten; name another OUT=, or delete it"
    return None if out.absolute().parent.is_dir() else f"{out.parent} is no directory; make it, or name another OUT="


def sha256(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
