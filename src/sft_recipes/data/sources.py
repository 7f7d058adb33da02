"""The sources of a split: a file, all files of a directory or a pattern, what `save_to_disk` wrote, a Hub dataset."""

import dataclasses
import glob
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sft_recipes.data.readers import Problems, Row, Source, by_name, file_source, form
from sft_recipes.errors import InputError, listed, nearest
from sft_recipes.recipes.sources import Entry

_SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})(\..+)")
# By which names `datasets` tells the files of a directory that are of one split (its `data_files.SPLIT_KEYWORDS`).
_SPLITS = {
    "train": r"train|training",
    "validation": r"validation|valid|dev|val",
    "test": r"test|testing|eval|evaluation",
}
# What lies beside rows in a directory and is none.
_BESIDE = re.compile(r"[._].*|readme.*|licen[cs]e.*", re.IGNORECASE)
# The generator of `datasets.interleave_datasets`: seeds of a recipe decide about training, and not about its rows.
SEED = 0
# Rows drawn for each row that there is, beyond which weights are taken for a mistake.
MOST_REPEATS = 100


def find(entry: Entry, key: str, usual: str) -> Source:
    """The rows that a recipe names by `key`; `usual` is the split that is read where several could be.

    Raises:
        InputError: They are not there, cannot be read, or are not of one form.
    """
    if entry.dataset:
        split = entry.split or usual
        return hub(entry.dataset, entry.config, {usual: split}, f"{key}: dataset")[usual]
    name, path = entry.name, Path(entry.name)
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _saved(name, entry.split, key, usual)
    if entry.split is not None:
        raise InputError(f"{key}: split is of Hub datasets and what save_to_disk wrote, which {name} is not; drop it")
    if path.is_dir():
        files = (each for each in path.rglob("*") if each.is_file())
        names = sorted(str(each) for each in files if not _hidden(each.relative_to(path)))
        return _together(name, names, "a directory without files of rows; name another")
    if glob.has_magic(name) and not path.exists():
        found = sorted(each for each in glob.glob(name, recursive=True) if Path(each).is_file())  # noqa: PTH207
        return _together(name, found, "the pattern matches no file; correct it")
    return file_source(name, key)


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts) or bool(_BESIDE.fullmatch(path.name))


def _together(name: str, files: list[str], nothing: str) -> Source:
    """The rows of several files of one form, one file after the other in the order of their names."""
    if not files:
        raise InputError(f"{name}: {nothing}")
    by_form: dict[str, str] = {}
    by_split: dict[str, str] = {}
    for file in files:
        by_form.setdefault(form(Path(file)), file)
        if split := _split_of(Path(file)):
            by_split.setdefault(split, file)
    several, how = next(
        ((each, how) for each, how in ((by_form, "forms"), (by_split, "splits")) if len(each) > 1), ({}, "")
    )
    if several:
        shown = listed(several.values())
        first = Path(several.get("train", files[0]))
        example = first if how == "splits" else first.with_name(f"*{''.join(first.suffixes)}")
        other = ", or the directory as dataset_name, whose splits are told apart" if how == "splits" else ""
        raise InputError(f"{name} holds files of several {how} ({shown}); name those of one, such as {example}{other}")
    if missing := _missing_shards(map(Path, files)):
        raise InputError(f"{name} lacks {listed(missing)} of its shards; copy or download it again")
    parts = [file_source(file) for file in files]
    if len(parts) == 1:
        return dataclasses.replace(parts[0], name=name)
    digest = hashlib.sha256("".join(f"{part.reader} {part.sha256}\n" for part in parts).encode())

    def rows(problems: Problems) -> Iterator[tuple[str, Row]]:
        return itertools.chain.from_iterable(part.rows(problems) for part in parts)

    return Source(name, parts[0].reader, digest.hexdigest(), rows)


def _split_of(path: Path) -> str:
    """The split that a file is of by its name or its directory's; empty where that says nothing."""
    words = r"(?:.*[-._ 0-9])?(?:{})(?:[-._ 0-9].*)?"
    names = (path.name.lower(), path.parent.name.lower())
    pairs = ((name, split) for name in names for split in _SPLITS)
    return next((split for name, split in pairs if re.fullmatch(words.format(_SPLITS[split]), name)), "")


def _missing_shards(paths: Iterable[Path]) -> list[str]:
    """Files that are missing by the names of the others, as `train-00001-of-00003.parquet` is."""
    found = ((path.parent, _SHARD.fullmatch(path.name)) for path in paths)
    groups = {(parent, shard[1], shard[2], shard[3]) for parent, shard in found if shard}
    wanted = (
        parent / f"{name}-{number:05}-of-{total}{suffix}"
        for parent, name, total, suffix in sorted(groups)
        for number in range(int(total))
    )
    return [str(path) for path in wanted if not path.is_file()]


def hub(name: str, config: str | None, splits: dict[str, str], key: str = "dataset_name") -> dict[str, Source]:
    """Splits of a Hub dataset, or of a directory that `datasets` reads, each under what it is to be called.

    Raises:
        InputError: It cannot be loaded, or has not the split that is to be trained on, the first one.
    """
    import datasets

    if missing := _missing_shards(Path(name).rglob("*-of-*")):
        inside = [str(Path(each).relative_to(name)) for each in missing]
        raise InputError(f"{key} {name} lacks {listed(inside)} of its shards; copy or download it again")
    try:
        loaded = datasets.load_dataset(name, config)
    except Exception as error:  # the library raises a dozen kinds, and each means that there are no rows
        cause: BaseException = error
        while cause.__cause__:
            # What is wrong with a file is said below what the library says of it.
            cause = cause.__cause__
        reason = (str(cause).splitlines() or [""])[0].rstrip(".")
        wanted = "dataset_config" if key == "dataset_name" else "config"
        raise InputError(
            f"{key} {name} cannot be loaded ({type(cause).__name__}: {reason}); check the name and "
            f"{wanted}, or give local files as train_file, or point HF_HOME to a cache that holds it or "
            "HF_ENDPOINT to a mirror"
        ) from error
    first = next(iter(splits.values()))
    if first not in loaded:
        wanted = "dataset_train_split" if key == "dataset_name" else "split"
        raise InputError(
            f"{name} has no split {first!r}{nearest(first, list(loaded))}; set {wanted} to {listed(loaded)}"
        )
    return {
        called: _dataset(f"{name} {split}", loaded[split], "hub")
        for called, split in splits.items()
        if split in loaded
    }


def _saved(name: str, split: str | None, key: str, usual: str) -> Source:
    """What `save_to_disk` wrote, of which the Arrow files are read where they are."""
    import datasets

    try:
        loaded = datasets.load_from_disk(name)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise InputError(f"{name} is not whole as save_to_disk writes it ({reason}); save it again") from None
    if isinstance(loaded, datasets.DatasetDict):
        wanted = split or usual
        if wanted not in loaded:
            write = f"{key}: [{{file: {name}, split: {next(iter(loaded), 'train')}}}]"
            near = nearest(wanted, list(loaded))
            raise InputError(f"{name} has no split {wanted!r}{near}, it has {listed(loaded)}; write {write}")
        name, loaded = f"{name} {wanted}", loaded[wanted]
    elif split is not None:
        raise InputError(f"{key}: {name} is one split, saved by itself; drop split: {split}")
    return _dataset(name, loaded, "arrow")


def _dataset(name: str, dataset: Any, reader: str) -> Source:
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
            yield f"{name} row {number}", by_name(row, classes, problems)

    return Source(name, reader, digest.hexdigest(), rows)


def drawn(rows: list[int], weights: list[float], stopping_strategy: str) -> Iterator[int]:
    """Which source each row is drawn from, as `datasets.interleave_datasets` does with these probabilities and `SEED`.

    A source that comes to its end begins again. Upstream's own holds all draws in memory, and takes 30 microseconds to
    read each; a test holds that these are the same.

    Args:
        stopping_strategy: first_exhausted ends with the first source of which all rows have been drawn, all_exhausted
            with the last one.
    """
    import numpy as np

    ends = any if stopping_strategy == "first_exhausted" else all
    shares = np.array(weights) / sum(weights)
    generator = np.random.default_rng(SEED)
    left, exhausted = list(rows), [False] * len(rows)
    while True:
        for source in generator.choice(len(rows), size=1000, p=shares).tolist():
            if ends(exhausted):
                return
            yield source
            left[source] -= 1
            if not left[source]:
                exhausted[source], left[source] = True, rows[source]
