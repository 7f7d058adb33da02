"""The ratios that must hold on any machine (`make bench`), most of them of two commands timed in turn.

What is a ratio of two measurements made side by side says something of the program; seconds alone would be of the
machine.
"""

import functools
import json
import os
import resource
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from sft_recipes.benchmark import commands, steps, tune
from sft_recipes.benchmark import scale as scales
from sft_recipes.benchmark.device import Device
from sft_recipes.benchmark.scale import LIGHT, Scale
from sft_recipes.benchmark.section import Section
from sft_recipes.evaluate import likelihood, scoring
from sft_recipes.plan import execution
from sft_recipes.plan import job as jobs
from sft_recipes.runs.run import Run

# Stock TRL writes no tracker's files that are not asked for, and asks no test rows.
ALONE = f"report_to=none {commands.UNJUDGED}"
# For equal work: on a base in 4 bit stock TRL keeps adapters in bfloat16, and on CPUs with AVX512-BF16 it trains on
# without gradients through the base once it has evaluated.
SAME_WORK = f"load_in_4bit=false {ALONE}"
PAIRS = 3
MISSPELT = "lerning_rate"
# Rows of a step, as one of the origin's four GPUs had them, timed steps of each round, and tokens that it padded to.
ORIGIN_BATCH, ORIGIN_STEPS, ORIGIN_PADDED = 16, 2, 512
# Large enough that a CPU's time goes into its products, and small enough for some minutes.
SHAPE = (
    "4 of the 30 layers of SmolLM2 135M",
    {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "max_position_embeddings": 8192,
        "num_attention_heads": 9,
        "num_hidden_layers": 4,
        "num_key_value_heads": 3,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100_000,
        "tie_word_embeddings": True,
        "vocab_size": 49_152,
    },
)
# What a CPU computes a whole base in.
PLAIN = {"dtype": "float32", "bf16": False, "load_in_4bit": False}
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
    """All of them with the seconds that they take on two cores, the longest last, so that what is cut off is no other.

    What there is not that much time for is left out.
    """
    # The threads that our launcher gives one process; accelerate's own default would be one.
    shown = {**environment, "OMP_NUM_THREADS": environment.get("OMP_NUM_THREADS", str(os.cpu_count() or 1))}
    # As people have it: Python keeps what it has compiled.
    shown.pop("PYTHONDONTWRITEBYTECODE", None)
    tasks: dict[str, tuple[float, Callable[[], dict[str, Any]]]] = {
        "light_commands": (10, lambda: light_commands(section, shown)),
        "misspelt_key": (15, lambda: misspelt_key(section, shown)),
        "plan_memory": (80, lambda: plan_memory(section, shown)),
        "scoring": (40, lambda: score(section, shown)),
        "rows": (40, lambda: rows(section, shown)),
        "second_plan": (30, lambda: second_plan(section, shown)),
        "origin": (340, lambda: origin(scale, device, work / "origin")),
        "overhead": (420, lambda: overhead(section, shown)),
    }
    section.plan(tasks)
    for name, (seconds, task) in tasks.items():
        section.measure(name, functools.partial(_timed, task), expected=seconds)
        device.free()


def _timed(task: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What it finds, and the seconds that it took to find it."""
    began = time.monotonic()
    return {**task(), "took_seconds": round(time.monotonic() - began, 1)}


def overhead(section: Section, environment: Mapping[str, str]) -> dict[str, Any]:
    """Wall time of the demo, on its base in float32, through us and through stock `trl sft` on the exported recipe."""
    _export("stock.yaml", environment, section)
    # The demo's base and the files are there and read before anything is timed.
    _trained(section, environment)
    pairs = []
    for number in range(1, PAIRS + 1):
        ours = _train(f"ours-{number}", section, environment, SAME_WORK)
        pairs.append((ours, _stock("stock.yaml", environment, section)))
    return held(
        "wall time of the demo on a whole base, times that of stock trl sft",
        statistics.median(ours / stock for ours, stock in pairs),
        most=1.02,
        settings=SAME_WORK,
        seconds=pairs,
    )


def _train(name: str, section: Section, environment: Mapping[str, str], words: str) -> float:
    """Seconds of a whole training of the demo with these settings."""
    arguments = ["train", "demo", "--name", name, "--set", words]
    return commands.command(arguments, environment, section.left)[0]


def _trained(section: Section, environment: Mapping[str, str]) -> Run:
    """A run of the demo, trained when it is first asked for."""
    run = Run(Path("runs/demo"))
    if not run.directory.exists():
        _train(run.name, section, environment, ALONE)
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
    _, output = commands.command(["plan", "demo", "--set", ALONE, "--json"], environment, section.left)
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
    """Real tokens a second on rows of the origin's lengths: as `execution: auto` has it, and as the origin had it.

    The same rows in the same steps, the same loss of them and the same random base, in turn within one process. The
    origin's is what the documented recipe says, with every row padded to its max_length.
    """
    words = steps.tokenizer()
    name, config = (scale.model, scale.config) if scale.gpu else SHAPE
    longest, number = ORIGIN_PADDED, ORIGIN_BATCH * (1 + ORIGIN_STEPS)
    folder = work / "base"
    words.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    lengths = scales.row_lengths("origin", number, longest)
    with (work / "rows.jsonl").open("w", encoding="utf-8") as written:
        written.writelines(json.dumps(row) + "\n" for row in of_lengths(lengths, words))
    settings: dict[str, Any] = {
        "model_name_or_path": str(folder),
        "train_file": str(work / "rows.jsonl"),
        "global_batch_size": ORIGIN_BATCH,
        "logging_steps": 1,
        "max_steps": 1 + ORIGIN_STEPS,
        # Of rows as few as these nothing is read ahead.
        "dataloader_num_workers": 0,
        **steps.STEPS_ALONE,
        **({} if scale.gpu else PLAIN),
    }
    asked: dict[str, dict[str, Any]] = {"origin": {"pad_to_multiple_of": longest}, "ours": {"execution": "auto"}}
    arms, executed = [], {}
    for arm, own in asked.items():
        job = jobs.check("default", overrides=settings | own, accel="single_gpu" if scale.gpu else "cpu")
        if job.data is None or job.data["splits"]["train"]["lengths"] != Counter(map(str, lengths)):
            raise RuntimeError("the rows have not the lengths that they were made for")
        recipe = job.resolved.derive(output_dir=(str(work / "out"), "kept nowhere"))
        # The same weights for both.
        same = {"dtype": recipe["dtype"], "seed": recipe["seed"]}
        base = steps.random_base(config, device, four_bit=recipe["load_in_4bit"], **same)
        arms.append(steps.Arm(arm, steps.ours(recipe, base, words), device))
        executed[arm] = {key: recipe[key] for key in (*execution.KEYS, "pad_to_multiple_of")}
    steps.take_turns(arms, 1, ORIGIN_STEPS, rounds=1)
    # Before the first step an adapter changes nothing, so that dropout's other masks do not either.
    first, other = (next(entry["loss"] for entry in arm.trainer.state.log_history) for arm in arms)
    if abs(other / first - 1) > tune.TOLERANCE["float32" if recipe["dtype"] == "float32" else "16 bit"]:
        raise RuntimeError(f"the two do not learn the same: their first losses are {first} and {other}")
    steps.take_turns(arms, 1, ORIGIN_STEPS, rounds=1)
    facts = {arm.name: arm.facts() for arm in arms}
    rates = {name: each["tokens_per_second"] for name, each in facts.items()}
    return held(
        "real tokens a second on rows as long as the origin's, times those of its execution",
        rates["ours"] / rates["origin"],
        least=2.5,
        model=name,
        config=config,
        first_losses=[first, other],
        executed=executed,
        arms=facts,
    )


def of_lengths(lengths: list[int], words: Any) -> Iterator[dict[str, str]]:
    """Rows of text that have so many tokens each, with answers as long as the origin's."""
    said = sorted(word[1:] for word in words.get_vocab() if word[0] == "\u0120" and word[1:].isalpha())

    def text(number: int, tokens: int) -> str:
        return "." + "".join(f" {said[(number * 7919 + place * 104_729) % len(said)]}" for place in range(tokens - 1))

    turns = [{"role": "user", "content": text(0, 1)}, {"role": "assistant", "content": text(0, 1)}]
    around = len(words.apply_chat_template(turns, return_dict=False)) - 2
    for number, length in enumerate(lengths):
        yield {
            "instruction": text(number, length - scales.ANSWER - around),
            "output": text(number, scales.ANSWER),
        }


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
