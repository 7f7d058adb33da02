"""The ratios that must hold on any machine (`make bench`), most of them of two commands timed in turn.

What is a ratio of two measurements made side by side says something of the program; seconds alone would be of the
machine.
"""

import dataclasses
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from sft_recipes.benchmark import commands, measure, steps
from sft_recipes.benchmark.device import Device
from sft_recipes.benchmark.scale import LIGHT, Scale
from sft_recipes.benchmark.section import Section
from sft_recipes.evaluate import likelihood, scoring
from sft_recipes.runs.run import Run

# For equal work: stock TRL keeps adapters on a quantised base in bfloat16, and on CPUs with AVX512-BF16 it trains on
# without gradients through the base once it has evaluated, so both evaluate at the end alone. It asks no test rows.
SAME_WORK = (
    "adapter_dtype=bfloat16 eval_on_start=false eval_strategy=epoch save_strategy=epoch "
    f"report_to=none {commands.UNJUDGED}"
)
PAIRS = 3
MISSPELT = "lerning_rate"
# Rows of the origin's lengths in micro-batches of 4, several to a step.
ORIGIN_BATCH, ORIGIN_STEPS = 16, 2
# As the evaluation derives it from the demo's answers, one word each.
MAX_NEW_TOKENS = 32
ROWS, FEW_ROWS = 30_000, 1_000


def held(
    what: str, value: float, *, most: float | None = None, least: float | None = None, **facts: Any
) -> dict[str, Any]:
    """A measurement with what it must be.

    Args:
        what: What the value is, read before it.
        value: What was found.
        most: It holds up to here.
        least: It holds from here.
        facts: What it was computed from.
    """
    holds = (most is None or value <= most) and (least is None or value >= least)
    bound = f"at most {most:g}" if most is not None else f"at least {least:,g}"
    return {"what": what, "value": round(value, 3), "bound": bound, "holds": holds, **facts}


def ratios(section: Section, scale: Scale, device: Device, work: Path, environment: Mapping[str, str]) -> None:
    """All of them, the longest last, so that what is cut off is no other."""
    # The threads that our launcher gives one process; accelerate's own default would be one.
    shown = {**environment, "OMP_NUM_THREADS": environment.get("OMP_NUM_THREADS", str(os.cpu_count() or 1))}
    # As people have it: Python keeps what it has compiled.
    shown.pop("PYTHONDONTWRITEBYTECODE", None)
    tasks: dict[str, Callable[[], dict[str, Any]]] = {
        "light_commands": lambda: light_commands(section, shown),
        "misspelt_key": lambda: misspelt_key(section, shown),
        "plan_memory": lambda: plan_memory(section, shown),
        "scoring": lambda: score(section, shown),
        "origin": lambda: origin(scale, device, work),
        "rows": lambda: rows(section, shown),
        "second_plan": lambda: second_plan(section, shown),
        "overhead": lambda: overhead(section, shown),
    }
    section.plan(tasks)
    for name, task in tasks.items():
        section.measure(name, task, expected=5)
        device.free()


def overhead(section: Section, environment: Mapping[str, str]) -> dict[str, Any]:
    """Wall time of the demo through us and through stock `trl sft` on the exported recipe, in turn."""
    _export("stock.yaml", environment, section)
    # The demo's base and the files are there and read before anything is timed.
    _trained(section, environment)
    pairs = []
    for number in range(1, PAIRS + 1):
        ours = _train(f"ours-{number}", section, environment)
        pairs.append((ours, _stock("stock.yaml", environment, section)))
    return held(
        "wall time of the demo, times that of stock trl sft",
        statistics.median(ours / stock for ours, stock in pairs),
        most=1.02,
        seconds=pairs,
    )


def _train(name: str, section: Section, environment: Mapping[str, str]) -> float:
    """Seconds of a whole training of the demo that does what stock TRL does."""
    arguments = ["train", "demo", "--name", name, "--set", SAME_WORK]
    return commands.command(arguments, environment, section.left)[0]


def _trained(section: Section, environment: Mapping[str, str]) -> Run:
    """A run of the demo, trained when it is first asked for."""
    run = Run(Path("runs/ours-0"))
    if not run.directory.exists():
        _train(run.name, section, environment)
    return run


def _export(name: str, environment: Mapping[str, str], section: Section, **changes: Any) -> None:
    """The demo's recipe as stock TRL takes it, with these changes."""
    commands.command(["export", "demo", "--set", SAME_WORK, "--out", name], environment, section.left)
    recipe = yaml.safe_load(Path(name).read_text(encoding="utf-8"))
    Path(name).write_text(yaml.safe_dump({**recipe, "output_dir": "stock", **changes}), encoding="utf-8")


def _stock(recipe: str, environment: Mapping[str, str], section: Section, code: int = 0) -> float:
    """Seconds of a whole `trl sft`."""
    trl = [str(Path(sys.executable).with_name("trl"))]
    arguments = ["sft", "--config", recipe, "--accelerate_config", "accelerate_configs/cpu.yaml"]
    return commands.command(arguments, environment, section.left, of=trl, code=code)[0]


def light_commands(section: Section, environment: Mapping[str, str]) -> dict[str, Any]:
    """The slowest of the commands that read no rows and no weights, each the median of three.

    Seconds of the processor beside those of the clock tell a slow program from a busy machine.
    """
    before = _processor_seconds()
    found = {" ".join(each): _median(each, section, environment) for each in LIGHT}
    spent = (_processor_seconds() - before) / (PAIRS * len(LIGHT))
    return held(
        "seconds of the slowest light command",
        max(found.values()),
        most=0.5,
        seconds=found,
        mean_processor_seconds=round(spent, 3),
    )


def _processor_seconds() -> float:
    """Of the processes that this one has started and that have ended."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def misspelt_key(section: Section, environment: Mapping[str, str]) -> dict[str, Any]:
    """How long one waits for what is wrong with a recipe."""
    arguments = ["train", "demo", "--set", f"{MISSPELT}=1e-4"]
    ours = _median(arguments, section, environment, code=2)
    _export("misspelt.yaml", environment, section, **{MISSPELT: 1e-4})
    stock = _stock("misspelt.yaml", environment, section, code=2)
    return held("seconds until a misspelt key is refused", ours, most=1, stock_trl=stock)


def _median(arguments: Any, section: Section, environment: Mapping[str, str], code: int = 0) -> float:
    return statistics.median(
        commands.command(arguments, environment, section.left, code=code)[0] for _ in range(PAIRS)
    )


def plan_memory(section: Section, environment: Mapping[str, str]) -> dict[str, Any]:
    """What plan says that a process of the demo takes, against what one took."""
    _, output = commands.command(["plan", "demo", "--set", SAME_WORK, "--json"], environment, section.left)
    planned = json.loads(output)["memory"]["process"]
    measured = _trained(section, environment).facts()["measured"]["peak_memory_bytes"]
    return held(
        "error of the memory that plan says a process of the demo takes",
        abs(planned / measured - 1),
        most=0.15,
        planned_bytes=planned,
        measured_bytes=measured,
    )


def score(section: Section, environment: Mapping[str, str]) -> dict[str, Any]:
    """Rows a second of the demo's evaluation by the likelihood of each label and by greedy generation, in turn.

    Both score the test rows with the base and the tuned model in one process, tokenising included and loading not,
    after a pass of each over 100 rows that is not counted.
    """
    run = _trained(section, environment)
    recipe = yaml.safe_load(run.recipe.read_text(encoding="utf-8"))
    prompts, labels = _asked()
    ways: dict[str, Callable[[Any, Any, list[Any]], Any]] = {
        "likelihood": lambda model, tokenizer, asked: likelihood.likelihoods(model, tokenizer, asked, labels),
        "generation": lambda model, tokenizer, asked: scoring.generate(model, tokenizer, asked, MAX_NEW_TOKENS),
    }
    seconds: dict[str, dict[str, list[float]]] = {name: {way: [] for way in ways} for name in ("base", "tuned")}
    models = scoring.each_model(recipe, run.adapter, [*seconds] * (PAIRS + 1), on_cpu=True)
    for number, (name, model, tokenizer) in enumerate(models):
        for way, scored in ways.items():
            began = time.perf_counter()
            for _ in scored(model, tokenizer, prompts if number >= len(seconds) else prompts[:100]):
                pass
            seconds[name][way].append(time.perf_counter() - began)

    def faster(*models: str) -> float:
        """The median over the rounds of how many times the rows are scored in the same time."""
        passes = range(1, PAIRS + 1)
        took = {way: [sum(seconds[name][way][each] for name in models) for each in passes] for way in ways}
        return statistics.median(b / a for a, b in zip(took["likelihood"], took["generation"], strict=True))

    return held(
        "rows scored by likelihood, base and tuned, times those by generation in the same time",
        faster("base", "tuned"),
        least=3,
        base=round(faster("base"), 3),
        tuned=round(faster("tuned"), 3),
        rows_per_second={
            name: {way: round(len(prompts) / statistics.median(took[1:]), 1) for way, took in of_model.items()}
            for name, of_model in seconds.items()
        },
    )


def _asked() -> tuple[list[Any], list[str]]:
    """The demo's test rows as prompts, and its labels."""
    rows = [json.loads(line) for line in Path("data/demo/test.jsonl").read_text(encoding="utf-8").splitlines()]
    prompts = [[{"role": "user", "content": f"{row['instruction']}\n\n{row['input']}"}] for row in rows]
    return prompts, sorted({row["output"] for row in rows})


def origin(scale: Scale, device: Device, work: Path) -> dict[str, Any]:
    """Real tokens a second on rows of the origin's lengths, against every row padded to 512."""
    several = dataclasses.replace(scale, speed_batch={"origin": ORIGIN_BATCH}, warm=1, timed=ORIGIN_STEPS)
    found = measure.speed_of("origin", several, device, steps.tokenizer(), work / "origin")
    rates = {arm: facts["tokens_per_second"] for arm, facts in found["arms"].items()}
    return held(
        "real tokens a second on rows as long as the origin's, times those of its execution",
        rates["ours"] / rates["origin"],
        least=2.5,
        **found,
    )


def rows(section: Section, environment: Mapping[str, str]) -> dict[str, Any]:
    """Rows of 100 tokens that a first plan reads, tokenises and looks at in a second, its start not counted."""
    seconds = {number: commands.command(_plan_of(number), environment, section.left)[0] for number in (FEW_ROWS, ROWS)}
    return held(
        "rows of 100 tokens that plan reads in a second",
        (ROWS - FEW_ROWS) / (seconds[ROWS] - seconds[FEW_ROWS]),
        least=15_000,
        seconds=seconds,
    )


def second_plan(section: Section, environment: Mapping[str, str]) -> dict[str, Any]:
    """How long a plan of rows takes that were planned before, the median of three."""
    asked = _plan_of(ROWS)
    # Where the rows were measured, it is the second one already.
    commands.command(asked, environment, section.left)
    return held(f"seconds of a second plan of {ROWS:,} rows", _median(asked, section, environment), most=1)


def _plan_of(number: int) -> list[str]:
    """The command that plans so many rows, which are written."""
    file = Path(f"rows-{number}.jsonl")
    with file.open("w", encoding="utf-8") as written:
        written.writelines(json.dumps(row) + "\n" for row in _rows(number))
    return ["plan", "demo", "--data", str(file)]


def _rows(number: int) -> Iterator[dict[str, str]]:
    """Different rows of about 100 tokens of the demo's vocabulary."""
    said = [row[0]["content"].split("\n\n")[1] for row in _asked()[0]]
    for each in range(number):
        text = " ".join(said[(each * step) % len(said)] for step in (1, 7, 11))
        yield {"instruction": f"{each}. {text}", "output": ("refund", "cancel")[each % 2]}
