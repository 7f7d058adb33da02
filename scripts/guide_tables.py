"""The generated tables of recipes/README.md and docs/choosing.md: what recipes say, and what plan computes of them."""

import dataclasses
import functools
import itertools
import json
from pathlib import Path
from typing import Any

from sft_recipes.benchmark.scale import ANSWER, LENGTHS
from sft_recipes.plan import plan
from sft_recipes.recipes import recipe as recipes
from sft_recipes.recipes import schema, topology, why
from sft_recipes.recipes.recipe import Recipe

PRESETS = ("default", "high_capacity", "memory_efficient", "quick_test")
# The seed's table, in its order.
PRESET_KEYS = (
    "lora_r",
    "num_train_epochs",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "max_length",
    "learning_rate",
)
# The rows that times are computed for: as many as the seed's approach document assumes, as long as those of the
# origin, which the benchmark times too.
ROWS = 10_453
QUANTILES, MEAN = LENGTHS["origin"], 184
ORIGIN_REPOSITORY = "https://github.com/rramchan12/HateSpeechDetection_ver2"
REFERENCE = Path(".cache/docs/reference.jsonl")


def link(key: str, page: str) -> str:
    """A key, linked to what is known of it; `page` is the path of docs/hyperparameters.md from here."""
    return f"[`{key}`]({page}#{why.anchor(key, why.entry(key) or {})})"


def resolved(name: str) -> Recipe:
    """A recipe on the topology that it is paired with, or else on one process."""
    recipe = recipes.load(name)
    return topology.resolve(recipe, topology.read(recipe["accelerate_config"] or "cpu", name))


def preset_table() -> str:
    """The four presets by the values in which they differ; what differs from the default is bold."""
    shown = {name: resolved(name) for name in PRESETS}
    heads = [f"[`{name}`]({name}.yaml)" for name in PRESETS]
    lines = [f"| parameter | {' | '.join(heads)} |", f"|---|{'---|' * len(PRESETS)}"]
    for key in PRESET_KEYS:
        values = [schema.as_yaml(recipe[key]) for recipe in shown.values()]
        marked = [value if value == values[0] else f"**{value}**" for value in values]
        lines.append(f"| {link(key, '../docs/hyperparameters.md')} | {' | '.join(marked)} |")
    return "\n".join(lines)


def idea_table() -> str:
    """One row a recipe: its idea."""
    lines = ["| recipe | idea |", "|---|---|"]
    return "\n".join(
        [*lines, *(f"| [`{name}`]({name}.yaml) | {recipes.load(name)['description']} |" for name in recipes.names())]
    )


def recipe_table() -> str:
    """Every recipe by what it says otherwise than the one it extends, or than the default."""
    lines = ["| recipe | extends | what it says otherwise |", "|---|---|---|"]
    default = recipes.load("default")
    for name in recipes.names():
        recipe = recipes.load(name)
        said = [
            f"{link(each['key'], '../docs/hyperparameters.md')} {schema.as_yaml(each['value'])}"
            for each in plan.differences(dataclasses.replace(recipe, base=recipe.base or default))
        ]
        base = f"[`{recipe.base.name}`]({recipe.base.name}.yaml)" if recipe.base else ""
        lines.append(f"| [`{name}`]({name}.yaml) | {base} | {', '.join(said)} |")
    return "\n".join(lines)


def reference_rows() -> Path:
    """The rows that times are computed for, written once: text of the lengths above, without meaning."""
    if not REFERENCE.is_file():
        REFERENCE.parent.mkdir(parents=True, exist_ok=True)
        rows = []
        for n in range(ROWS):
            share = n / (ROWS - 1)
            (low, short), (high, long) = next(pair for pair in itertools.pairwise(QUANTILES) if share <= pair[1][0])
            tokens = short + (long - short) * (share - low) / (high - low)
            # Four characters count as a token. A number, so that no row repeats another.
            answer, prompt = "y" * 4 * (ANSWER - 1), f"{n:08}" + "x" * round(4 * (tokens - ANSWER) - 8)
            rows.append(json.dumps({"prompt": prompt, "completion": answer}))
        REFERENCE.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return REFERENCE


@functools.cache
def planned(name: str, gpu: str | None = None) -> dict[str, Any]:
    """What plan says of a recipe and the reference rows, on the hardware that the recipe is for."""
    rows = f"train_file={json.dumps(str(reference_rows()))} data_format=auto validation_file=null task=null"
    model = " model_name_or_path=Qwen/Qwen3-0.6B" if name == "demo" else ""
    return plan.plan(name, gpu=gpu, overrides=[rows + " test_file=null group_column=null" + model])


def costs() -> str:
    """What each recipe trains, takes and lasts, by plan."""
    lines = [
        f"For {ROWS:,} rows of about {MEAN} tokens, with one answer of {ANSWER}: as many as the seed assumes, and as",
        "long as the origin's.",
        "",
        "| recipe | on | trained parameters | tokens a step | steps | memory of a GPU | time of training |",
        "|---|---|---|---|---|---|---|",
    ]
    same: dict[str, list[str]] = {}
    for name in recipes.names():
        if name == "demo":
            continue
        gpu = "rtx-4090" if name == "single_24gb" else None
        figures = planned(name, gpu)
        card, processes = figures["gpu"], figures["topology"]["processes"]
        where = f"{processes} x {card['name'].removesuffix('-80gb')}" if card else "CPU"
        time = figures["time"]
        cells = [
            where,
            millions(figures["adapter"]["trainable_parameters"]),
            f"{figures['batch']['tokens_per_step']:,}",
            f"{figures['schedule']['steps']:,}",
            f"{gib(figures['memory']['device' if card else 'process'])}{'' if card else ', of the host'}",
            span(time["seconds"]) if time["seconds"] else "a run tells",
        ]
        # On these rows, which are short and have one answer each, some recipes do the same.
        same.setdefault(" | ".join(cells), []).append(f"[`{name}`](../recipes/{name}.yaml)")
    return "\n".join([*lines, *(f"| {', '.join(names)} | {cells} |" for cells, names in same.items())])


def millions(number: int) -> str:
    return f"{number / 1e6:,.1f} M" if number < 1e9 else f"{number / 1e9:.2f} B"


def gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"


def span(seconds: list[float]) -> str:
    """Whole minutes, as rough as the estimate is."""
    low, high = (round(each / 60) for each in seconds)
    return f"{low} to {high} min"


# Every line of the seed's selection guide, its use cases, trade-offs and notes; what holds, and what is advised here.
GUIDE = (
    (
        "standard training: `default`, research-backed and proven effective",
        "Its origin's run was no better than one constant answer (F1 0.631 against 0.634 on the same rows), and was "
        "not 4-bit ([how that came](contradictions.md#10-all-configurations-use-nf4)). To reproduce the seed, or as a "
        "baseline: yes.",
        "`all_linear`",
    ),
    (
        "first production run: `default`, validated parameters",
        "They were validated by another model's score, below that of always answering hate "
        "([which](contradictions.md#11-validated-by-an-f1-of-0615)). What validates a first run is its own verdict on "
        "rows it has not seen.",
        "`all_linear`, or `classification` for labels, after `make plan` and `make preview`",
    ),
    (
        "the model underfits, or the default underperforms on a complex classification: `high_capacity`",
        "Rank is the second thing to try: attention alone is what holds the default back. Its file moves alpha with "
        "the rank, so it also takes larger steps.",
        "`all_linear`, then `high_capacity_all_linear`",
    ),
    (
        "validation loss plateaus early, or nuanced distinctions are to be learned: `high_capacity`",
        "A plateau is [no sign of too little capacity](contradictions.md#7-a-plateau-means-too-little-capacity), and "
        "no source ties nuance to rank.",
        "the rows that are wrong (`make report`)",
    ),
    (
        "out of memory, or GPUs of less than 80 GB: `memory_efficient`",
        "On these rows it takes {saved} less than `default`, all of it activations; weights and optimizer stay.",
        "`make fit`, which keeps the global batch and cuts no answer",
    ),
    (
        "testing the pipeline, quick experiments: `quick_test`, 30 to 40 minutes",
        "{quick} steps of {full} on these rows. It tests its own rank, length of run and warm-up, not those of the "
        "recipe that is to run, and its result judges nothing.",
        "`make rehearse` for any recipe, in less than a minute",
    ),
    (
        "long sequences: `default`, which supports 512 tokens",
        "What is longer than {default} tokens loses its end, which is the answer; plan counts how many.",
        "`long_context`: {longest:,} tokens a row, {long} by plan",
    ),
    (
        "short sequences only: `memory_efficient`, 256 tokens suffice and save memory",
        "A batch is padded to its longest row, so a limit that no row reaches saves nothing; what it saves here it "
        "saves by its smaller micro-batch, and is slower by it.",
        "`default` or `all_linear` with any limit above the longest row",
    ),
    (
        "production training, baseline experiments: `default`",
        "A baseline it is. For production see the second line.",
        "as there",
    ),
    (
        "`high_capacity` where VRAM suffices, as on four A100 of 80 GB",
        "It takes {capacity}: rank is no question of memory here.",
        "any GPU that holds the default",
    ),
    (
        "trade-off: the effective batch is maintained",
        "In rows; in tokens [it halves](contradictions.md#5-effective-batch-maintained) where rows are longer.",
        "`global_batch_size` is what is written, and accumulation follows",
    ),
    (
        "trade-off: 30 % more time",
        "See below, and [what it depends on](contradictions.md#3-about-30--slower).",
        "`make plan` of both",
    ),
    (
        "trade-off: shorter sequences may truncate longer examples",
        "They do, and what is cut is the answer; of the origin's 2,686 rows 19.",
        "plan names the rows that lose their answer",
    ),
    (
        "all configurations: 4-bit, AdamW with cosine, bfloat16, recomputed activations, an effective batch of 64",
        "The presets keep all of it, and here 4-bit is verified before the first step. That 64 is optimal has no "
        "source.",
        "each key in [hyperparameters.md](hyperparameters.md)",
    ),
)


def guide() -> str:
    """The seed's guide with what holds, its figures filled in by plan."""
    default, efficient = planned("default"), planned("memory_efficient")
    figures = {
        "saved": gib(default["memory"]["device"] - efficient["memory"]["device"]),
        "quick": planned("quick_test")["schedule"]["steps"],
        "full": default["schedule"]["steps"],
        "default": recipes.load("default")["max_length"],
        "longest": recipes.load("long_context")["max_length"],
        "long": gib(planned("long_context")["memory"]["device"]),
        "capacity": gib(planned("high_capacity")["memory"]["device"]),
    }
    lines = [f"| {' | '.join(cell.format(**figures) for cell in cells)} |" for cells in GUIDE]
    return "\n".join(["| the seed: when to take what | what holds | here |", "|---|---|---|", *lines])


# What the origin's own files say (finetuning/pipeline/lora/configs) and neither the seed nor the presets do, and why.
ORIGIN = {
    ("high_capacity", "num_train_epochs"): (5, "the seed's table says three, and its example is of rank alone"),
    ("memory_efficient", "per_device_eval_batch_size"): (2, "one for all presets; evaluation keeps no activations"),
    ("quick_test", "save_total_limit"): (1, "three checkpoints of a small adapter cost nothing"),
    ("quick_test", "early_stopping_threshold"): (0.0, "without effect either way, since its patience is 0"),
}


def origin() -> str:
    """Where the presets are not what the origin's files of the same names say."""
    lines = [f"| preset | key | {why.cited(ORIGIN_REPOSITORY)} | here | why |", "|---|---|---|---|---|"]
    for (name, key), (value, reason) in ORIGIN.items():
        here = schema.as_yaml(recipes.load(name)[key])
        lines.append(f"| [`{name}`](../recipes/{name}.yaml) | `{key}` | {schema.as_yaml(value)} | {here} | {reason} |")
    return "\n".join(lines)


def claims() -> str:
    """What the seed says without a measurement, and what is computed or was measured here."""
    figures = {name: planned(name) for name in (*PRESETS, "all_linear")}
    default, efficient = figures["default"], figures["memory_efficient"]
    ratios = [a / b - 1 for a, b in zip(efficient["time"]["seconds"], default["time"]["seconds"], strict=True)]
    slower = " to ".join(f"{each:+.0%}".replace("%", " %") for each in sorted(ratios))
    smallest = gib(efficient["memory"]["device"])
    run = json.loads(Path("docs/demo/run.json").read_text(encoding="utf-8"))
    losses = [entry["eval_loss"] for entry in run["measured"]["eval_loss"]]
    threshold = recipes.load("default")["early_stopping_threshold"]
    steps = {name: figures[name]["schedule"]["steps"] for name in ("default", "all_linear")}
    warmup = default["schedule"]["warmup_steps"]
    rows = [
        (
            "Full training takes 2 to 3 hours.",
            f"`default` {span(default['time']['seconds'])} for {ROWS:,} rows on four A100, by plan.",
        ),
        (
            "`quick_test` takes 30 to 40 minutes.",
            f"{span(figures['quick_test']['time']['seconds'])}, by plan.",
        ),
        (
            "`memory_efficient` is about 30 % slower.",
            f"{slower}, by plan: rows of this length fill neither length, so it computes nearly the same tokens in "
            "twice the micro-batches, each of which has a fixed cost.",
        ),
        (
            "`memory_efficient` is for GPUs of less than 80 GB.",
            f"It takes {smallest}, and `default` {gib(default['memory']['device'])}: both fit into 24 GB.",
        ),
        (
            "`high_capacity` should still fit on 80 GB.",
            f"It takes {gib(figures['high_capacity']['memory']['device'])}.",
        ),
        (
            "An effective batch of 64 is optimal.",
            f"No source says so. On these rows it makes {steps['default']:,} steps, and the batch of `all_linear` "
            f"{steps['all_linear']:,} in fewer epochs.",
        ),
        (
            "100 warm-up steps.",
            f"{warmup / steps['default']:.0%}".replace("%", " %")
            + f" of these {steps['default']:,} steps; plan warns where the rows are fewer.",
        ),
        (
            "Early stopping asks for an improvement of 1 %.",
            f"`early_stopping_threshold` {threshold} is nats: {threshold / losses[-1]:.1%} of the demo's final loss, "
            f"{threshold / losses[0]:.1%} of its first.".replace("%", " %"),
        ),
    ]
    return "\n".join(
        ["| the seed says | what holds |", "|---|---|", *(f"| {said} | {holds} |" for said, holds in rows)]
    )
