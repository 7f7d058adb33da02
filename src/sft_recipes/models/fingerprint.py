"""What tells one base model from another of the same name: the hashes of its config, tokenizer and weights.

A snapshot in the Hub's cache is known by its commit, and its files by the names of their blobs, which are their hashes
already. The files of a directory are read once and known again by path, size, time and inode.
"""

import json
from pathlib import Path
from typing import Any

from sft_recipes.files import sha256, write_whole
from sft_recipes.models.base_model import CACHE, FETCHED
from sft_recipes.recipes import places
from sft_recipes.terminal import say

# The first kind that a directory has is the one that is loaded.
WEIGHTS = ("*.safetensors", "*.bin")
# What takes longer than a breath to read is said.
LARGE = 2 * 2**30


def fingerprint(name: str, revision: str = "main") -> dict[str, Any] | None:
    """`commit` (None for a directory) and the hash of each of the model's `files`; None if it is not on this machine.

    Args:
        name: a directory, or a name on the Hub.
    """
    local = Path(name).expanduser()
    if local.is_dir():
        return {"commit": None, "files": _hashed(_files(local))}
    snapshot = places.directory_with("config.json", name, revision)
    if snapshot is None:
        return None
    # Where the cache has no links, the files have no hashes for names, and the commit says it all.
    blobs = {path.name: path.resolve().name for path in _files(snapshot) if path.is_symlink()}
    return {"commit": snapshot.name, "files": blobs}


def differences(before: dict[str, Any] | None, now: dict[str, Any] | None) -> list[str]:
    """What is not the same in two fingerprints, each in a few words; nothing where one of them is not known."""
    if before is None or now is None:
        return []
    if before["commit"] != now["commit"]:
        return [f"commit {before['commit'] or 'none, a directory'} -> {now['commit'] or 'none, a directory'}"]
    # What a snapshot did not hold yet was fetched since.
    names = before["files"].keys() | ({} if now["commit"] else now["files"].keys())
    words = {(True, True): "has other content", (True, False): "is missing", (False, True): "was not there"}
    return [
        f"{name} {words[name in before['files'], name in now['files']]}"
        for name in sorted(names)
        if before["files"].get(name) != now["files"].get(name)
    ]


def _files(directory: Path) -> list[Path]:
    found = {kind: [path for path in directory.glob(kind) if path.is_file()] for kind in (*FETCHED, *WEIGHTS)}
    weights = next((found[kind] for kind in WEIGHTS if found[kind]), [])
    return sorted([*(path for kind in FETCHED for path in found[kind]), *weights])


def _hashed(paths: list[Path]) -> dict[str, str]:
    """SHA-256 of each file by its name."""
    kept_in = CACHE / "hashes.json"
    try:
        kept = dict(json.loads(kept_in.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        kept = {}
    found, asked = {}, {}
    for path in paths:
        stat = path.stat()
        asked[path] = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
    new = {path for path in paths if kept.get(str(path.resolve()), [])[:-1] != asked[path]}
    if (size := sum(asked[path][0] for path in new)) > LARGE:
        say("base", f"reading {size / 1e9:.1f} GB of {paths[0].parent} once, to know it again")
    for path in paths:
        if path in new:
            kept[str(path.resolve())] = [*asked[path], sha256(path)]
        found[path.name] = kept[str(path.resolve())][-1]
    if new:
        CACHE.mkdir(parents=True, exist_ok=True)
        write_whole(kept_in, json.dumps(kept))
    return found
