"""The tables of a comparison or a leaderboard, and both as text for the terminal, as Markdown and as CSV."""

from collections.abc import Iterator
from typing import Any

from sft_recipes.evaluate.terms import COLUMNS, NAMES
from sft_recipes.report import page, table
from sft_recipes.report.quality import PAIRED
from sft_recipes.report.table import Cell, Code, Estimate, Table, p_value, p_values
from sft_recipes.terminal import count, duration, gib

Facts = dict[str, Any]

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
    "none": PAIRED["none"],
}
COSTS = ["training", "in all", "tokens/s", "steps", "trainable", "peak memory", "hardware", "evaluation rows/s"]


def render(facts: Facts) -> Iterator[tuple[str, str]]:
    """The facts of `compare.compare` or `compare.leaderboard` as (subject, text) for `terminal.say`."""
    for board in facts.get("boards", [facts]):
        yield "rows", table.one_line(heading(board))
        for each in tables(board):
            yield each.subject, "\n".join(table.lines(each))
        for note in board["notes"]:
            yield "note", note
    for each in facts.get("left_out", []):
        yield "left out", table.one_line(each["reason"])


def as_markdown(facts: Facts) -> str:
    """The same as a Markdown document, everything from the runs escaped."""
    boards = [
        {"heading": heading(board), "tables": tables(board), "notes": board["notes"]}
        for board in facts.get("boards", [facts])
    ]
    title = "Leaderboard" if "boards" in facts else "Comparison"
    text = page.markdown("comparison.md", title=title, boards=boards, left_out=facts.get("left_out", []))
    return text.rstrip() + "\n"


def as_csv(facts: Facts) -> str:
    """One line for each run of a comparison, or for each row of a leaderboard, with base and baseline."""
    boards = facts.get("boards", [facts])
    return table.as_csv(
        [_flat(row, board) for board in boards for row in board.get("rows") or [*board["runs"], *board["references"]]]
    )


def heading(board: Facts) -> str:
    """What was scored and learned from."""
    data = board["data"]
    return (
        f"{board['task']}, {count(data['scored'], 'row')} of {data['rows_source']} ({board['split']}, fingerprint "
        f"{data['rows_fingerprint'][:12]}); trained on {data['train_source']} ({count(data['train_rows'], 'row')}, "
        f"fingerprint {data['fingerprint'][:12]})"
    )


def tables(board: Facts) -> list[Table]:
    """The table of a board, or those of a comparison that have rows, in their order."""
    every = [_board(board)] if "rows" in board else of_comparison(board).values()
    return [each for each in every if each.rows]


def of_comparison(facts: Facts) -> dict[str, Table]:
    """The tables of a comparison by their subject."""
    header = ["", *(COLUMNS[key] for key in facts["metrics"])]
    entries, grouped = facts["entries"], [row for row in facts["entries"] if len(row["runs"]) > 1]
    metrics: list[list[Cell]] = [
        [_name(row), None if "kind" in row else len(row["runs"]), *_metrics(row, facts)]
        for row in entries + facts["references"]
    ]
    seeds = [[row["name"], *_metrics(row, facts)] for row in facts["runs"] if grouped]
    seeds += [[f"{row['name']}: least to most", *_spreads(row, facts)] for row in grouped]
    costs = [[row["name"], *_costs(row["cost"])] for row in entries]
    every = [
        _by_run(facts, "differences", "What the runs do differently", "differs"),
        Table("Metrics, of several seeds the mean", ["", "runs", *header[1:]], metrics, subject="metrics"),
        Table("Every run", header, seeds, subject="seeds"),
        _tests(facts),
        Table("What each took", ["", *COSTS], costs, subject="cost"),
        _by_run(facts, "environment", "What the runs ran on differently", "elsewhere"),
    ]
    return {each.subject: each for each in every}


def _by_run(facts: Facts, part: str, title: str, subject: str) -> Table:
    names = [run["name"] for run in facts["runs"]]
    rows = [[Code(each["key"]), *(each["values"].get(name, "") for name in names)] for each in facts[part]]
    if part == "differences" and not rows:
        rows = [["nothing", *([""] * len(names))]]
    return Table(title, ["key", *names], rows, "words", subject)


def _tests(facts: Facts) -> Table:
    rows: list[list[Cell]] = []
    for pair in facts["pairs"]:
        test = pair["mcnemar"]
        only = [f"{test['only_a']:,} and {test['only_b']:,}", *p_values(test, "p_holm")] if test else [None, None]
        difference = Estimate.of(pair["difference"], "+")
        chance = [*p_values(pair, "p", "p_holm"), PAIRED[pair["outcome"]]]
        rows.append([f"{pair['a']} against {pair['b']}", difference, *chance, *only, " and ".join(pair["includes"])])
    header = ["", COLUMNS[facts["primary"]], "p", "p, Holm", "the first is"]
    header += ["only one right", "McNemar p, Holm", "over"]
    sentences = [pair["text"] for pair in facts["pairs"]]
    return Table("Paired tests on the same rows", header, rows, subject="tests", sentences=sentences)


def _name(row: Facts) -> str:
    """A run by its name, a trivial baseline by what it is called."""
    name: str = row["name"]
    return NAMES.get(name, name) if "kind" in row and row["kind"] != "run" else name


def _board(board: Facts) -> Table:
    rows: list[list[Cell]] = []
    for row in board["rows"]:
        if row["kind"] == "run":
            pair = row["first_against_it"]
            standing = STANDING[pair["outcome"]] if pair else "the first"
            if pair and pair["p_holm"] is not None:
                standing += f" ({p_value(pair['p_holm'])})"
            verdict = VERDICTS[row["verdict"]["outcome"]] if row["verdict"] else "see its runs"
            rest = [standing, verdict, *_costs(row["cost"])]
        else:
            rest = [row["kind"], *([""] * (len(COSTS) + 1))]
        rows.append([_name(row), Estimate.of(row["metrics"][board["primary"]]), *rest])
    header = ["", COLUMNS[board["primary"]], "against the first", "verdict", *COSTS]
    return Table("Board", header, rows, subject="board")


def _costs(cost: Facts) -> list[Cell]:
    def rounded(key: str) -> int | None:
        return None if cost[key] is None else round(cost[key])

    seconds, memory = cost["training_seconds"], cost["peak_memory_bytes"]
    return [
        "not known (resumed)" if seconds is None else duration(seconds),
        duration(cost["seconds"]),
        *map(rounded, ("tokens_per_second", "steps", "trainable_parameters")),
        None if memory is None else gib(memory, 2),
        cost["hardware"],
        rounded("evaluation_rows_per_second"),
    ]


def _metrics(row: Facts, facts: Facts) -> list[Cell]:
    return [Estimate.of(row["metrics"].get(key)) for key in facts["metrics"]]


def _spreads(row: Facts, facts: Facts) -> list[Cell]:
    found = [row["metrics"].get(key) or {} for key in facts["metrics"]]
    return [f"{each['min']:.3f} to {each['max']:.3f}" if "min" in each else None for each in found]


def _flat(row: Facts, board: Facts) -> Facts:
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
