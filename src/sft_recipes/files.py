"""Files that are whole or not there, and what tells that they are the same."""

import hashlib
import os
from pathlib import Path
from typing import Any


def write_whole(path: Path, text: str) -> None:
    """Write a file that is either the old one or the new one, also after a crash."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


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
