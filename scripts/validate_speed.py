"""Published speeds, what they say of a card, and how well that foretells others: `python scripts/validate_speed.py`.

Fits the seconds of a micro-batch to the rows of tests/plan/measured_speed.csv, all by one convention:

    seconds = fixed x size + operations / (efficiency x peak)

with `speed.size` (layers of 32, or parameters of 8e9 where weights are sharded) and the operations of
`speed.flops_per_token`, recomputation counted as work. The fixed part is fitted to the rows of the A100 that vary in
size, for 4-bit and 16-bit weights, whole and sharded, with one efficiency for each group of rows that differ in size
alone. A card's efficiency is the range of its groups; where all are of one publication, it is as wide as the A100's
around its median. Writes src/sft_recipes/plan/speeds.json, which plan reads, and docs/speed.md.
"""

import csv
import dataclasses
import json
import os
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from validate_memory import model_of, percent, setup_of

from sft_recipes.plan import gpus, speed
from sft_recipes.plan.memory import Setup, shards_weights

ROOT = Path(__file__).parents[1]
PUBLISHED = ROOT / "tests" / "plan" / "measured_speed.csv"
SPEEDS = ROOT / "src" / "sft_recipes" / "plan" / "speeds.json"
PAGE = ROOT / "docs" / "speed.md"
MARK = "<!-- what follows is written by scripts/validate_speed.py -->\n"
# The card with rows of enough sizes to tell a fixed part from the rest.
FITTED_ON = "a100-80gb"

Fixed = dict[tuple[bool, bool], float]


@dataclasses.dataclass(frozen=True)
class Row:
    """A published speed: its micro-batch in seconds, and at the card's peak."""

    facts: dict[str, str]
    setup: Setup
    card: str
    seconds: float
    ideal: float
    size: float

    @property
    def kind(self) -> tuple[bool, bool]:
        return self.setup.four_bit, shards_weights(self.setup)

    @property
    def place(self) -> tuple[str, bool]:
        return self.card, self.kind[1]

    @property
    def publication(self) -> str:
        return "/".join(self.facts["source"].split("/")[3:5])

    @property
    def group(self) -> tuple[str, tuple[bool, bool]]:
        return self.facts["group"], self.kind


def published() -> list[Row]:
    """All rows, also those that are not counted."""
    with PUBLISHED.open(encoding="utf-8", newline="") as file:
        return [_row(facts) for facts in csv.DictReader(file)]


def _row(facts: dict[str, str]) -> Row:
    setup, model, spec = setup_of(facts), model_of(facts["model"]), gpus.find(facts["gpu"])
    ideal = setup.tokens * speed.flops_per_token(model, setup) / ((spec.bf16_tflops or 0) * 1e12)
    seconds = setup.tokens / float(facts["tokens_per_second"])
    return Row(facts, setup, spec.speed_of or spec.name, seconds, ideal, speed.size(model, setup))


def counted(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if not row.facts["excluded"]]


def fit(rows: Sequence[Row]) -> Fixed:
    """The fixed seconds of a micro-batch, by (4-bit, sharded), by least squares of the relative error."""
    fixed = {}
    for kind in ((False, False), (True, False), (False, True), (True, True)):
        chosen = [row for row in rows if row.kind == kind and row.card == FITTED_ON and row.setup.use_peft]
        groups = sorted({row.group for row in chosen})
        shares = [
            [row.size / row.seconds, *(row.ideal / row.seconds * (row.group == group) for group in groups)]
            for row in chosen
        ]
        fixed[kind] = max(0.0, float(np.linalg.lstsq(np.array(shares), np.ones(len(chosen)), rcond=None)[0][0]))
    return fixed


def efficiencies(rows: Iterable[Row], fixed: Fixed) -> dict[tuple[str, bool], dict[Any, float]]:
    """The efficiency of each group, by card and whether weights are sharded: least squares of the relative error."""
    members: dict[tuple[str, bool], dict[Any, list[Row]]] = {}
    for row in rows:
        members.setdefault(row.place, {}).setdefault(row.group, []).append(row)

    def efficiency(group: list[Row]) -> float:
        ideal = np.array([row.ideal / row.seconds for row in group])
        left = np.array([1 - fixed[row.kind] * row.size / row.seconds for row in group])
        return float(ideal @ ideal / (ideal @ left))

    return {place: {name: efficiency(group) for name, group in groups.items()} for place, groups in members.items()}


def bands(rows: Sequence[Row], fixed: Fixed) -> dict[tuple[str, bool], tuple[float, float]]:
    """Lowest and highest efficiency of each card, with whole weights and with sharded ones."""
    every = efficiencies(rows, fixed)
    found = {}
    for (card, sharded), groups in every.items():
        low, high = min(groups.values()), max(groups.values())
        if len({row.publication for row in rows if row.place == (card, sharded)}) == 1:
            usual = list(every[FITTED_ON, sharded].values())
            middle = statistics.median(groups.values()) / statistics.median(usual)
            low, high = min(low, min(usual) * middle), max(high, min(1.0, max(usual) * middle))
        found[card, sharded] = low, high
    return found


def error(row: Row, fixed: Fixed, band: tuple[float, float]) -> float:
    """How far the published seconds are outside what is foretold, relative to them; 0 within."""
    slow, fast = (fixed[row.kind] * row.size + row.ideal / efficiency for efficiency in band)
    return min(0.0, slow / row.seconds - 1) + max(0.0, fast / row.seconds - 1)


def held_out(rows: Sequence[Row]) -> tuple[list[list[str]], list[float]]:
    """For each publication what the others foretell of its rows, as lines of a table; and every error."""
    lines, every = [], []
    for name in sorted({row.publication for row in rows}):
        others = [row for row in rows if row.publication != name]
        fixed = fit(others)
        known = bands(others, fixed)
        for card, sharded in sorted({row.place for row in rows if row.publication == name}):
            own = [row for row in rows if row.publication == name and row.place == (card, sharded)]
            cells = [name, card, "sharded" if sharded else "whole", str(len(own))]
            if (card, sharded) in known:
                errors = [error(row, fixed, known[card, sharded]) for row in own]
                every += errors
                cells += [str(sum(each == 0 for each in errors)), percent(max(errors, key=abs))]
            else:
                cells += ["", "no other rows"]
            lines.append(cells)
    return lines, every


def speeds(rows: Sequence[Row]) -> dict[str, Any]:
    """What plan reads."""
    fixed = fit(rows)
    efficiency: dict[str, dict[str, Any]] = {}
    for (card, sharded), (low, high) in sorted(bands(rows, fixed).items()):
        own = [row for row in rows if row.place == (card, sharded)]
        efficiency.setdefault(card, {})["sharded" if sharded else "whole"] = {
            "low": round(low, 2),
            "high": round(high, 2),
            "rows": len(own),
            "publications": sorted({row.publication for row in own}),
        }
    return {
        "fixed_seconds": {
            weights: {bits: round(fixed[bits == "4 bit", weights == "sharded"], 3) for bits in ("4 bit", "16 bit")}
            for weights in ("whole", "sharded")
        },
        "efficiency": efficiency,
    }


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))


def listed(row: Row, fixed: Fixed) -> list[str]:
    setup = row.setup
    words = ["all weights" if not setup.use_peft else "QLoRA" if setup.four_bit else "LoRA"]
    words += ["recomputed" if setup.checkpointing else "nothing recomputed"]
    words += [f"sharded over {setup.processes}"] if row.kind[1] else []
    cells = [row.facts["row"], row.facts["model"], f"{row.facts['gpu']}", ", ".join(words)]
    cells += [f"{setup.length:,} x {setup.tokens // setup.length}", f"{float(row.facts['tokens_per_second']):,.0f}"]
    return [*cells, f"{row.ideal / (row.seconds - fixed[row.kind] * row.size):.2f}"]


def sources(rows: Iterable[Row]) -> str:
    groups: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        key = tuple(row.facts[each] for each in ("software", "note", "source"))
        groups.setdefault(key, []).append(row.facts["row"])
    return "\n".join(
        f"- {', '.join(names)}: {software}.{f' {note[0].upper()}{note[1:]}.' if note else ''} <{source}>"
        for (software, note, source), names in groups.items()
    )


def page() -> str:
    """The generated part of docs/speed.md."""
    every = published()
    rows = counted(every)
    fixed, (held, errors) = fit(rows), held_out(rows)
    known = bands(rows, fixed)
    inside, beside = sum(each == 0 for each in errors), sum(abs(each) <= 0.1 for each in errors)
    reasons: dict[str, list[str]] = {}
    for row in every:
        if row.facts["excluded"]:
            reasons.setdefault(row.facts["excluded"], []).append(row.facts["row"])
    found = speeds(rows)
    header = ["#", "model", "card", "what is trained", "row x rows", "tokens/s of a card", "efficiency"]
    return "\n\n".join(
        [
            "## The fixed part",
            table(
                ["seconds", "4 bit", "16 bit"],
                [
                    [name, *(f"{each[bits]:.3f}" for bits in ("4 bit", "16 bit"))]
                    for name, each in found["fixed_seconds"].items()
                ],
            ),
            "## Efficiency of each card",
            table(
                ["card", "weights", "groups", "median", "range that plan takes"],
                [
                    [
                        card,
                        "sharded" if sharded else "whole",
                        str(len(groups)),
                        f"{middle:.2f}",
                        f"{low:.2f} to {high:.2f}",
                    ]
                    for (card, sharded), groups in sorted(efficiencies(rows, fixed).items())
                    for (low, high), middle in [(known[card, sharded], statistics.median(groups.values()))]
                ],
            ),
            "## Held out",
            f"Fixed part and efficiency fitted without a publication, and its rows foretold: of {len(errors)} rows "
            f"{inside} are within the range and {beside} within it or 10 % beside it. The error is how far the range "
            "misses the published seconds, below 0 where they were more than it says.",
            table(["publication", "card", "weights", "rows", "within", "worst error"], held),
            "## The rows",
            table(header, (listed(row, fixed) for row in rows)),
            "## Not counted",
            "\n".join(f"- {', '.join(names)}: {reason}." for reason, names in reasons.items()),
            table(header[:-1], (listed(row, fixed)[:-1] for row in every if row.facts["excluded"])),
            "## Sources",
            sources(every),
        ]
    )


def main() -> None:
    os.chdir(ROOT)
    SPEEDS.write_text(json.dumps(speeds(counted(published())), indent=1) + "\n", encoding="utf-8")
    prose = PAGE.read_text(encoding="utf-8").partition(MARK)[0]
    PAGE.write_text(f"{prose}{MARK}\n{page()}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
