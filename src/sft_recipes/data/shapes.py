"""The rows of a file that is one JSON object, as tools export many rows at once, where it is not in doubt which."""

from typing import Any

from sft_recipes.errors import InputError, listed

Row = dict[str, Any]

# How pandas writes one row a line.
_RECORDS = 'df.to_json("rows.jsonl", orient="records", lines=True)'
_TURNS = ({"role", "content"}, {"from", "value"})
# An object with one of these is a row, whatever lists it holds beside them.
_OF_A_ROW = {"messages", "conversations", "prompt", "completion", "instruction", "output"}


def rows_of(document: Row) -> tuple[list[Row], str]:
    """The rows that the one object of a file holds, and how it holds them; ([], "") if it is a row itself.

    Raises:
        InputError: It holds rows, and in doubt is which, or what is a row.
    """
    values = list(document.values())
    lists = {} if document.keys() & _OF_A_ROW else {key: held for key, held in document.items() if _are_rows(held)}
    if len(lists) > 1:
        first = next(iter(lists))
        write = f"write each into a file of its own, e.g. with: jq -c '.{first}[]' FILE > {first}.jsonl"
        raise InputError(f"holds lists of rows under {listed(lists)}, and one file is one split; {write}")
    if lists:
        (key,) = lists
        beside = document.keys() - {key}
        return lists[key], f"rows: the list {key!r} of its one object" + (
            f", without {listed(sorted(beside))} beside it" if beside else ""
        )
    columns, data = document.get("columns"), document.get("data")
    if isinstance(columns, list) and isinstance(data, list) and document.keys() <= {"columns", "data", "index"}:
        if all(isinstance(row, list) and len(row) == len(columns) for row in data):
            rows = [dict(zip(map(str, columns), row, strict=True)) for row in data]
            return rows, "rows: as pandas writes them with orient='split'"
        raise InputError(f"holds columns and data of other lengths; write one row a line, with pandas: {_RECORDS}")
    if values and all(isinstance(value, dict) and value for value in values):
        return _by_index(document)
    if len(values) > 1 and all(isinstance(value, list) and value for value in values):
        plain = not any(isinstance(each, (dict, list)) for value in values for each in value)
        if plain and len({len(value) for value in values}) == 1:
            rows = [dict(zip(document, row, strict=True)) for row in zip(*values, strict=True)]
            return rows, "rows: one list for each column"
    return [], ""


def _by_index(document: Row) -> tuple[list[Row], str]:
    """The rows of an object of objects: pandas' columns by their index, or its rows by theirs."""
    inner = next(iter(document.values()))
    by_column = all(each.keys() == inner.keys() for each in document.values()) and _numbers(inner)
    if by_column and not _numbers(document):
        rows = [{column: held[index] for column, held in document.items()} for index in inner]
        return rows, "rows: as pandas writes them with orient='columns'"
    if _numbers(document) and not by_column:
        return list(document.values()), "rows: as pandas writes them with orient='index'"
    raise InputError(
        f"holds objects by {listed(list(document)[:3])}, and it is not told whether these are rows or columns; write "
        f"one row a line, with pandas: {_RECORDS}"
    )


def _numbers(names: Row) -> bool:
    return all(name.isdecimal() for name in names)


def _are_rows(value: Any) -> bool:
    """Whether a value is a list of objects, and not the turns of a conversation."""
    objects = isinstance(value, list) and bool(value) and all(isinstance(each, dict) for each in value)
    return objects and not all(any(keys <= each.keys() for keys in _TURNS) for each in value)
