"""Where the rows of a split come from: one name, or a list of files, directories, patterns and Hub datasets."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from sft_recipes.errors import did_you_mean, nearest, refuse
from sft_recipes.recipes import places, schema

if TYPE_CHECKING:
    from sft_recipes.recipes.recipe import Recipe

KEYS = ("train_file", "validation_file", "test_file")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One source of a split, as a recipe names it."""

    file: str | None = None  # a file, a directory or a pattern; None for a Hub dataset
    dataset: str | None = None  # a Hub id, or a directory that `datasets.load_dataset` reads
    config: str | None = None  # the configuration of a Hub dataset
    split: str | None = None
    """Of a Hub dataset or of what `save_to_disk` wrote; None for the one that is usual."""
    rows: int | None = None  # how many of its rows are read, the first ones; None for all
    weight: float | None = None
    """Its share of the draws of `datasets.interleave_datasets`, before all are made to sum to 1."""
    data_format: str | None = None  # its own, instead of the recipe's
    data_columns: Mapping[str, str] | None = None  # its own, instead of the recipe's

    @property
    def name(self) -> str:
        """What it is called."""
        return self.file or self.dataset or ""


TEXTS = ("file", "dataset", "config", "split", "data_format")
FIELDS = tuple(field.name for field in dataclasses.fields(Entry))


def entries(key: str, value: Any) -> list[Entry]:
    """The sources of a split, by its key and that one's value.

    Raises:
        InputError: With all that is wrong with a list of them.
    """
    if isinstance(value, list):
        refuse(_of_list(key, value))
    return _entries(value)


def _entries(value: Any) -> list[Entry]:
    listed = value if isinstance(value, list) else [] if value is None else [value]
    return [Entry(**each) if isinstance(each, Mapping) else Entry(file=each) for each in listed]


def renamed(value: Any, rename: Any) -> Any:
    """The value of a split's key with the names of its files changed by a function."""
    if isinstance(value, list):
        return [renamed(each, rename) for each in value]
    if isinstance(value, Mapping):
        return {**value, "file": rename(value["file"])} if isinstance(value.get("file"), str) else value
    return rename(value) if isinstance(value, str) else value


def problems(recipe: "Recipe") -> Iterator[tuple[str, str]]:
    """What is wrong with the sources of a recipe before any is read, as (key, problem)."""
    weighted = False
    for key in KEYS:
        value = recipe[key]
        if not isinstance(value, list):
            continue
        found = [*_of_list(key, value)]
        yield from ((key, problem) for problem in found)
        if not found:
            weighted |= any(entry.weight for entry in _entries(value))
    usual = schema.own()["stopping_strategy"]["default"]
    if recipe["stopping_strategy"] != usual and not weighted:
        none = "stopping_strategy says when drawing by weights ends, and no source of train_file has a weight"
        yield "stopping_strategy", f"{none}; drop it"


def _of_list(key: str, value: list[Any]) -> Iterator[str]:
    if not value:
        yield f"{key}: an empty list; name a file, or null for none"
        return
    wrong = False
    for number, each in enumerate(value, 1):
        for problem in _of_entry(each):
            wrong = True
            yield f"{key}: source {number}: {problem}"
    if wrong:
        return
    found = _entries(value)
    if twice := next((each for n, each in enumerate(found) if each in found[:n]), None):
        yield f"{key}: {twice.name} is named twice; name it once" + (
            ", and give each source a weight if it is to count more" if key == "train_file" else ""
        )
    weighted = [each for each in found if each.weight is not None]
    if weighted and key != "train_file":
        yield f"{key}: rows that are held out are each read once; drop the weights, or write rows: N"
    elif weighted and len(weighted) < len(found):
        bare = next(each for each in found if each.weight is None)
        yield f"{key}: {bare.name} has no weight, and others have; give each source one, or none"


def _of_entry(each: Any) -> Iterator[str]:
    """What is wrong with one source."""
    if isinstance(each, str):
        each = {"file": each}
    if not isinstance(each, Mapping):
        yield f"expected a name or a mapping such as {{file: a.jsonl, weight: 0.7}}, got {schema.short(each)}"
        return
    for name in each.keys() - set(FIELDS):
        yield f"{name}: no such key of a source{nearest(name, FIELDS)}; there are {', '.join(FIELDS)}"
    for name in [name for name in TEXTS if name in each]:
        if not isinstance(each[name], str):
            yield f"{name}: expected text, got {schema.short(each[name])}"
        elif found := schema.no_place(each[name]):
            yield f"{name}: {found}"
    if ("file" in each) == ("dataset" in each):
        yield "name exactly one of file (a file, directory or pattern) and dataset (a Hub id)"
    elif isinstance(each.get("dataset"), str) and (found := places.nowhere("dataset", each["dataset"], "dataset")):
        yield found
    if "config" in each and "dataset" not in each:
        yield "config is of a Hub dataset, and this is a file; drop it"
    rows, weight = each.get("rows", 1), each.get("weight", 1)
    if not isinstance(rows, int) or isinstance(rows, bool) or not 1 <= rows <= schema.LARGEST_NUMBER:
        yield f"rows: {schema.short(rows)} is no number of rows; write a whole number from 1"
    if not isinstance(weight, (int, float)) or isinstance(weight, bool) or not 0 < weight <= schema.LARGEST_NUMBER:
        yield f"weight: {schema.short(weight)} is no weight; write a number above 0, or delete the source"
    columns, choices = each.get("data_columns", {}), schema.own()["data_format"]["choices"]
    if not isinstance(columns, Mapping) or not all(isinstance(name, str) for name in columns.values()):
        yield f"data_columns: expected a mapping of texts to texts, got {schema.short(columns)}"
    if isinstance(chosen := each.get("data_format"), str) and chosen not in choices:
        yield f"data_format: {chosen} is not one of {', '.join(choices)}{did_you_mean(chosen, choices)}"
