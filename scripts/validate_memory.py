"""Memory estimates beside measurements: `python scripts/validate_memory.py [--trace published measured]`.

Compares the formula (`memory.py`), and the trace (`trace.py`), with the published measurements of
tests/plan/measured_memory.csv and with those of benchmarks/, which `make gpu` wrote. The traces are kept in
docs/memory/traces.json, and docs/memory.md is written from all of it; a test compares the two.
"""

import argparse
import csv
import dataclasses
import functools
import json
import os
import re
import statistics
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import performance_tables

from sft_recipes.benchmark import ratios, results
from sft_recipes.models import base_model
from sft_recipes.plan import memory
from sft_recipes.plan.memory import Setup
from sft_recipes.plan.trace import trace
from sft_recipes.recipes import recipe as recipes
from sft_recipes.recipes import topology

ROOT = Path(__file__).parents[1]
PUBLISHED = ROOT / "tests" / "plan" / "measured_memory.csv"
MODELS = ROOT / "tests" / "plan" / "models.json"
PAGE = ROOT / "docs" / "memory.md"
RESULTS = ROOT / "docs" / "memory"
TRACES = RESULTS / "traces.json"
PROCESSES = RESULTS / "processes.json"
REAL = ROOT / "docs" / "demo" / "smollm2.json"
# What plan's figure for a process on a CPU is to be within.
NEAR = 0.15
PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate")


@dataclasses.dataclass(frozen=True)
class Row:
    """A measurement, and the estimates of the same step, in bytes."""

    name: str
    model: str
    setup: Setup
    measured: float
    formula: float
    traced: float | None
    facts: dict[str, str]

    @property
    def counted(self) -> bool:
        return not self.facts.get("excluded")

    def error(self, estimate: float | None) -> float | None:
        """Relative to the measurement; None where there is no estimate."""
        return None if estimate is None else estimate / self.measured - 1


def published() -> list[Row]:
    """The published measurements, with the traces that were kept."""
    traces = kept_traces()["peaks"]
    with PUBLISHED.open(encoding="utf-8", newline="") as file:
        return [_row(facts, traces.get(facts["row"])) for facts in csv.DictReader(file)]


def _row(facts: dict[str, str], traced: float | None) -> Row:
    setup = setup_of(facts)
    model = model_of(facts["model"])
    formula = memory.estimate(model, setup).allocated
    return Row(facts["row"], facts["model"], setup, float(facts["measured_gb"]) * 1e9, formula, traced, facts)


def setup_of(facts: dict[str, str]) -> Setup:
    """The columns that are fields of a setup, in the fields' types."""
    read: dict[type, Callable[[str], Any]] = {
        bool: lambda text: {"true": True, "false": False}[text],
        tuple: lambda text: tuple(text.split()),
    }
    kinds = {field.name: type(field.default) for field in dataclasses.fields(Setup)}
    return Setup(**{key: read.get(kinds[key], kinds[key])(text) for key, text in facts.items() if key in kinds})


@functools.cache
def model_of(name: str) -> base_model.Model:
    known = json.loads(MODELS.read_text(encoding="utf-8")) | base_model.bundled()
    return base_model.from_config(name, known[name]["config"], known[name]["source"])


def measured() -> list[tuple[dict[str, Any], list[Row]]]:
    """What `make gpu` measured: the result of each machine and its rows."""
    traces = kept_traces()["measured"]
    found = []
    for file, facts in results.newest().items():
        rows = []
        for number, (name, each) in enumerate(results.measurements(facts, "memory").items(), 1):
            setup, model = performance_tables.setup_of(each), performance_tables.model_of(each)
            formula = memory.estimate(model, setup).allocated
            traced = traces.get(file, {}).get(name)
            rows.append(Row(str(number), each["model"], setup, each["peak"], formula, traced, {}))
        if rows:
            found.append((facts, rows))
    return found


def processes() -> tuple[dict[str, Any], list[Row]]:
    """What processes took on a CPU (`measure_processes.py`), and where; the estimate is of the whole process."""
    kept = json.loads(PROCESSES.read_text(encoding="utf-8"))
    rows = []
    for number, each in enumerate(kept["cases"].values(), 1):
        setup, model = performance_tables.setup_of(each), base_model.from_config(each["model"], each["config"], "here")
        formula = memory.estimate(model, setup).process
        facts = {"excluded": "fitted to"} if each["fitted"] else {}
        rows.append(Row(str(number), each["model"], setup, each["measured"], formula, None, facts))
    return kept, [*rows, real(str(len(rows) + 1))]


def real(number: str) -> Row:
    """The run of a real model that README shows, thirty steps with their evaluations (docs/demo/smollm2.json)."""
    run = json.loads(REAL.read_text(encoding="utf-8"))
    recipe, longest = recipes.load("demo", overrides=["load_in_4bit=false"]), run["in_effect"]["data"]["longest_row"]
    tokens = recipe["per_device_train_batch_size"] * longest
    setup = Setup.of(recipe, topology.read("cpu", "README"), tokens, longest)
    # The shape of the benchmark's random model is a part of it.
    model = base_model.from_config("SmolLM2 135M", {**ratios.SHAPE[1], "num_hidden_layers": 30}, "README")
    formula = memory.estimate(model, setup).process
    return Row(number, model.name, setup, run["measured"]["peak_memory_bytes"], formula, None, {})


def process_section() -> str:
    """The table of these, and the worst of those that nothing was fitted to, in each direction."""
    kept, rows = processes()
    held_out = [row.formula / row.measured - 1 for row in rows if row.counted]
    near = sum(abs(error) <= NEAR for error in held_out)
    found = (
        f"Of {len(held_out)} processes that nothing was fitted to, {near} are within {NEAR:.0%}: median error "
        f"{statistics.median(abs(error) for error in held_out):.1%}, the worst {min(held_out):+.1%} and "
        f"{max(held_out):+.1%}."
    )
    lines = [
        [
            f"{row.name}{'' if row.counted else ' *'}",
            row.model,
            settings(row.setup),
            f"{row.setup.tokens // row.setup.length} x {row.setup.length}",
            *(f"{size / 1e6:,.0f}" for size in (row.measured, row.formula)),
            percent(row.error(row.formula)),
        ]
        for row in rows
    ]
    heads = ["#", "model", "setting", "tokens", "measured, MB", "plan, MB", "error"]
    stack = ", ".join(f"{name} {number}" for name, number in kept["versions"].items())
    fitted = "The constants were fitted to these, and to steps of the 12M and 56M shapes on 4 x 512 tokens."
    where = f"(* {fitted} {kept['libc']}, {kept['cpus']} cores, {stack})"
    missing = [f"Not measured yet: {', '.join(kept['not_measured'])}."] if kept["not_measured"] else []
    return "\n\n".join([found, performance_tables.table(heads, lines), where, *missing])


def kept_traces() -> dict[str, Any]:
    """The peaks that were traced, by row of the published measurements, and by file and name of those of ours."""
    empty: dict[str, Any] = {"peaks": {}, "measured": {}}
    return empty | (json.loads(TRACES.read_text(encoding="utf-8")) if TRACES.is_file() else {})


def trace_rows(kinds: Iterable[str]) -> None:
    """Trace every row that is `published` or `measured` by us, and keep the peaks beside those of the other kind."""
    kept = kept_traces()
    if "published" in kinds:
        kept["peaks"] = {row.name: trace(model_of(row.model).config, row.setup)["peak"] for row in published()}
    if "measured" in kinds:
        kept["measured"] = {
            file: {
                name: trace(performance_tables.model_of(each).config, performance_tables.setup_of(each))["peak"]
                for name, each in results.measurements(facts, "memory").items()
            }
            for file, facts in results.newest().items()
        }
    TRACES.write_text(json.dumps({**kept, "versions": versions()}, indent=1) + "\n", encoding="utf-8")


def versions() -> dict[str, str]:
    return {name: version(name) for name in PACKAGES}


def percent(error: float | None) -> str:
    return "" if error is None else f"{error:+.1%}"


def gigabytes(size: float | None) -> str:
    return "" if size is None else f"{size / 1e9:.{2 if size >= 1e9 else 4}f}"


def settings(setup: Setup) -> str:
    """What distinguishes a measurement, for a reader of the table."""
    plain = "float32" if setup.base_bytes == 4 else "bfloat16"
    bits = f"NF4{' in float32' if setup.base_bytes == 4 else ''}" if setup.four_bit else plain
    bits += " (double)" if setup.four_bit and setup.double_quant else ""
    targets = "all" if "all-linear" in setup.targets else " ".join(each[0] for each in setup.targets)
    trained = f"r {setup.rank} on {targets}" if setup.use_peft else "all weights trained"
    words = [bits, trained, "checkpointing" if setup.checkpointing else "no checkpointing"]
    words += ["evaluated"] if setup.eval_tokens and setup.on_cpu else []
    words += [f"{setup.processes} processes"] if setup.processes > 1 and setup.on_cpu else []
    if setup.adapter_bytes == 2:
        words.append("bfloat16 adapters")
    if not setup.fused_head:
        words.append("head not fused")
    return ", ".join(words)


def table(rows: Iterable[Row]) -> str:
    lines = [
        "| # | model | setting | tokens | measured | formula | error | trace | error |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        estimates = [gigabytes(row.formula), percent(row.error(row.formula))]
        estimates += [gigabytes(row.traced), percent(row.error(row.traced))]
        cells = [
            row.name,
            row.model,
            settings(row.setup),
            f"{row.setup.tokens:,}",
            gigabytes(row.measured),
            *estimates,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def summary(rows: Iterable[Row]) -> str:
    """Median and worst error of each estimate."""
    counted = [row for row in rows if row.counted]
    sentences = []
    for name, errors in (
        ("Formula", [row.error(row.formula) for row in counted]),
        ("Trace", [row.error(row.traced) for row in counted]),
    ):
        known = [each for each in errors if each is not None]
        if known:
            worst = max(known, key=abs)
            middle = statistics.median(abs(each) for each in known)
            sentences.append(f"{name}: median error {middle:.1%}, worst {worst:+.1%}, over {len(known)} measurements.")
    return "\n".join(sentences)


def left_out(rows: Iterable[Row]) -> str:
    """The rows that are not counted, by reason."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if not row.counted:
            reasons.setdefault(row.facts["excluded"], []).append(row.name)
    return "\n".join(f"- {', '.join(names)}: {reason}." for reason, names in reasons.items())


def sources(rows: Iterable[Row]) -> str:
    """Where each measurement is published, on what it was made, and what must be known to read it."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        key = tuple(row.facts[each] for each in ("hardware", "software", "measured_as", "note", "source"))
        groups.setdefault(key, []).append(row.name)
    lines = []
    for (hardware, software, kind, note, source), names in groups.items():
        lines.append(f"- {', '.join(names)}: {hardware}; {software}; {kind}. {note + '. ' if note else ''}<{source}>")
    return "\n".join(lines)


def sections() -> dict[str, str]:
    """The generated parts of docs/memory.md, by their marker's name."""
    rows = published()
    parts = []
    for kept, found in measured():
        stack = ", ".join(f"{name} {number}" for name, number in kept["versions"].items())
        parts.append(f"### {kept['hardware']['name']}\n\n{summary(found)}\n\n{table(found)}\n\n({stack})")
    return {
        "published": f"{summary(rows)}\n\n{table(row for row in rows if row.counted)}",
        "left out": f"{left_out(rows)}\n\n{table(row for row in rows if not row.counted)}",
        "measured": "\n\n".join(parts) or "Nothing was measured yet.",
        "processes": process_section(),
        "sources": sources(rows),
    }


def render(text: str) -> str:
    """docs/memory.md with its generated sections replaced."""
    for name, content in sections().items():
        pattern = rf"(<!-- generated: {name} -->).*?(<!-- end -->)"
        # A function, because backslashes of a replacement text would be read as groups.
        text, found = re.subn(pattern, functools.partial(_between, content), text, flags=re.DOTALL)
        if found != 1:
            sys.exit(f"{PAGE} has {found} sections 'generated: {name}', not one")
    return text


def _between(content: str, section: re.Match[str]) -> str:
    return f"{section[1]}\n\n{content}\n\n{section[2]}"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--trace", nargs="+", choices=("published", "measured"), help="trace these rows anew")
    os.chdir(ROOT)
    if kinds := options.parse_args().trace:
        trace_rows(kinds)
    rows = published()
    print(table(rows), summary(rows), f"Not counted:\n{left_out(rows)}", sep="\n\n")
    for kept, found in measured():
        print(f"\n{kept['hardware']['name']}\n\n{table(found)}\n\n{summary(found)}")
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
