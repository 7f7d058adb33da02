"""A comparison or a leaderboard as text for the terminal, as Markdown and as CSV."""

import csv
import io
import re
from collections.abc import Iterator
from typing import Any

from sft_recipes.evaluate.terms import NAMES
from sft_recipes.report.compare import METRICS, p_value
from sft_recipes.terminal import count, duration

Table = tuple[str, list[str], list[list[str]]]

VERDICTS = {
    "better": "better than base and baselines",
    "not_distinguishable": "not distinguishable from base or a baseline",
    "worse": "worse than base or a baseline",
    "none": "none",
}
# How an entry stands to the first of its board, from how the first stands to it.
STANDING = {
    "better": "worse",
    "not_distinguishable": "not distinguishable",
    "worse": "better",
    "none": "not tested",
}


def render(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The facts of `compare.compare` or `compare.leaderboard` as (subject, text) for `terminal.say`."""
    for board in facts.get("boards", [facts]):
        yield "rows", heading(board)
        for title, header, rows in tables(board):
            columns = zip(header, *rows, strict=True)
            widths = [max(map(len, column)) for column in columns]
            lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in [header, *rows]]
            yield title, "\n".join(lines)
        for note in board["notes"]:
            yield "note", note
    for each in facts.get("left_out", []):
        yield "left out", each["reason"]


def as_markdown(facts: dict[str, Any]) -> str:
    """The same as a Markdown document, everything from the runs escaped."""
    lines = ["# Leaderboard" if "boards" in facts else "# Comparison", ""]
    for board in facts.get("boards", [facts]):
        lines += [_escaped(heading(board)), ""]
        for title, header, rows in tables(board):
            cells = [header, ["---"] * len(header), *([_escaped(cell) for cell in row] for row in rows)]
            lines += [f"## {title.capitalize()}", "", *(f"| {' | '.join(row)} |" for row in cells), ""]
        lines += [f"- {_escaped(note)}" for note in board["notes"]] + [""]
    if facts.get("left_out"):
        lines += ["## Left out", "", *(f"- {_escaped(each['reason'])}" for each in facts["left_out"]), ""]
    return "\n".join(lines).rstrip() + "\n"


def as_csv(facts: dict[str, Any]) -> str:
    """One line for each run of a comparison, or for each row of a leaderboard, with base and baseline.

    Numbers are whole; an empty cell is what is not known. Text that a spreadsheet would take for a formula gets an
    apostrophe in front (owasp.org/www-community/attacks/CSV_Injection).
    """
    lines = [
        _flat(row, board)
        for board in facts.get("boards", [facts])
        for row in board.get("rows") or [*board["runs"], *board["references"]]
    ]
    file = io.StringIO()
    writer = csv.DictWriter(file, list(dict.fromkeys(key for line in lines for key in line)), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _cell(value) for key, value in line.items()} for line in lines)
    return file.getvalue()


def heading(board: dict[str, Any]) -> str:
    """What was scored and learned from."""
    data = board["data"]
    return _printable(
        f"{board['task']}, {count(data['scored'], 'row')} of {data['rows_source']} ({board['split']}, fingerprint "
        f"{data['rows_fingerprint'][:12]}); trained on {data['train_source']} ({count(data['train_rows'], 'row')}, "
        f"fingerprint {data['fingerprint'][:12]})"
    )


def tables(board: dict[str, Any]) -> list[Table]:
    """The tables of a comparison, or the one of a board, as (title, header, rows), every cell a line of text."""
    found = _board(board) if "rows" in board else _comparison(board)
    return [
        (title, [_printable(cell) for cell in header], [[_printable(cell) for cell in row] for row in rows])
        for title, header, rows in found
    ]


def _comparison(facts: dict[str, Any]) -> Iterator[Table]:
    names = [run["name"] for run in facts["runs"]]
    changed = [[each["key"], *(each["values"][name] for name in names)] for each in facts["differences"]]
    yield "differs", ["key", *names], changed or [["nothing", *([""] * len(names))]]
    rows = [[_named(row), *_metrics(row, facts)] for row in facts["entries"] + facts["references"]]
    header = [METRICS[key] for key in facts["metrics"]]
    yield "metrics", ["", *header], rows
    if len(facts["entries"]) < len(facts["runs"]):
        each_run = [[row["name"], *_metrics(row, facts)] for row in facts["runs"]]
        spread = [
            [f"{row['name']}: least to most", *_spreads(row, facts)]
            for row in facts["entries"]
            if len(row["runs"]) > 1
        ]
        yield "seeds", ["", *header], each_run + spread
    if facts["pairs"]:
        yield (
            "tests",
            ["paired, on the same rows", "McNemar"],
            [[each["text"], _mcnemar(each)] for each in facts["pairs"]],
        )
    yield "cost", ["", *COSTS], [[row["name"], *_costs(row["cost"])] for row in facts["entries"]]
    if facts["environment"]:
        elsewhere = [[each["key"], *(each["values"][name] for name in names)] for each in facts["environment"]]
        yield "elsewhere", ["", *names], elsewhere


def _named(row: dict[str, Any]) -> str:
    """A run by its name, a trivial baseline by what it is called."""
    return NAMES.get(row["name"], row["name"]) if row.get("kind") == "baseline" else row["name"]


def _board(board: dict[str, Any]) -> Iterator[Table]:
    rows = []
    for row in board["rows"]:
        if row["kind"] == "run":
            pair = row["first_against_it"]
            standing = f"{STANDING[pair['outcome']]} ({p_value(pair['p_holm'])})" if pair else "the first"
            verdict = VERDICTS[row["verdict"]["outcome"]] if row["verdict"] else "see its runs"
            rest = [standing, verdict, *_costs(row["cost"])]
        else:
            rest = [row["kind"], *([""] * (len(COSTS) + 1))]
        rows.append([_named(row), _estimate(row["metrics"][board["primary"]]), *rest])
    yield "board", ["", METRICS[board["primary"]], "against the first", "verdict", *COSTS], rows


COSTS = ["training", "tokens/s", "peak memory", "steps", "on", "trainable", "evaluation rows/s"]


def _costs(cost: dict[str, Any]) -> list[str]:
    seconds = cost["training_seconds"]
    return [
        "not known (resumed)" if seconds is None else duration(seconds),
        _number(cost["tokens_per_second"]),
        f"{cost['peak_memory_bytes'] / 2**30:.2f} GiB",
        _number(cost["steps"]),
        cost["hardware"],
        _number(cost["trainable_parameters"]),
        _number(cost["evaluation_rows_per_second"]),
    ]


def _number(value: float | None) -> str:
    return "not known" if value is None else f"{value:,.0f}"


def _metrics(row: dict[str, Any], facts: dict[str, Any]) -> list[str]:
    return [_estimate(row["metrics"].get(key)) for key in facts["metrics"]]


def _spreads(row: dict[str, Any], facts: dict[str, Any]) -> list[str]:
    found = [row["metrics"].get(key) or {} for key in facts["metrics"]]
    return [f"{each['min']:.3f} to {each['max']:.3f}" if "min" in each else "" for each in found]


def _estimate(estimate: dict[str, Any] | None) -> str:
    if estimate is None or estimate["value"] is None:
        return ""
    bounds = "" if estimate["low"] is None else f" ({estimate['low']:.3f} to {estimate['high']:.3f})"
    return f"{estimate['value']:.3f}{bounds}"


def _mcnemar(pair: dict[str, Any]) -> str:
    test = pair["mcnemar"]
    if test is None:
        return ""
    return f"only {pair['a']} right: {test['only_a']}, only {pair['b']}: {test['only_b']}; {p_value(test['p_holm'])}"


def _flat(row: dict[str, Any], board: dict[str, Any]) -> dict[str, Any]:
    """A row of a table as one level of keys."""
    flat = {
        "kind": row.get("kind", "run"),
        "name": row["name"],
        "entry": row.get("entry"),
        "runs": " ".join(row["runs"]),
        "recipe": row.get("recipe"),
        "seed": " ".join(map(str, row.get("seeds", []))),
        "split": board["split"],
        "scored_rows": board["data"]["scored"],
        "rows_fingerprint": board["data"]["rows_fingerprint"],
        "data_fingerprint": board["data"]["fingerprint"],
    }
    for key in board["metrics"]:
        estimate = row["metrics"].get(key) or {}
        flat |= {key: estimate.get("value"), f"{key}_low": estimate.get("low"), f"{key}_high": estimate.get("high")}
    flat["verdict"] = (row.get("verdict") or {}).get("outcome")
    if "rows" in board:
        pair = row.get("first_against_it") or {}
        flat |= {"against_first": STANDING.get(pair.get("outcome", "")), "p_holm": pair.get("p_holm")}
    flat |= row.get("cost", {})
    return flat | {each["key"]: each["values"].get(row["name"]) for each in board.get("differences", [])}


def _cell(value: Any) -> Any:
    formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
    return f"'{value}" if formula and not re.fullmatch(r"[+-]?[\d.]+(e[+-]?\d+)?", value) else value


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is, also within a table."""
    return re.sub(r"([\\`*\[\]<>&|])", r"\\\1", text)


def _printable(text: str) -> str:
    """Text on one line and without control characters, as they are written in Python."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
