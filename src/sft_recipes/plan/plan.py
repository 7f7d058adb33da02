"""What a recipe will do before it costs anything: rows, steps, parameters, memory, time, and findings.

No torch and no weights: a page in a second or two, on any machine. `facts` gives the figures (docs/plan.md describes
them), `render` the page.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sft_recipes.data import packing, preparation, survey
from sft_recipes.errors import InputError
from sft_recipes.evaluate import questions
from sft_recipes.models import base_model
from sft_recipes.plan import gpus, lint, memory, schedule, speed, trace
from sft_recipes.plan.lint import Case
from sft_recipes.plan.lint.speed import largest_micro_batch
from sft_recipes.recipes import recipe as recipes
from sft_recipes.recipes import topology
from sft_recipes.recipes.recipe import Recipe
from sft_recipes.recipes.schema import as_yaml
from sft_recipes.recipes.topology import Topology
from sft_recipes.terminal import count, duration, share

# The version of what `facts` returns; it grows when a reader of today would misread it.
SCHEMA = 1
GIB = 2**30
# What the shipped accelerate configs are written for.
PLANNED_GPU = "a100-80gb"
PACKED_LENGTHS = (512, 1024, 2048, 4096)

Progress = Callable[[int], None]


def plan(
    name: str,
    *,
    accel: str | None = None,
    processes: int | None = None,
    overrides: Sequence[str] = (),
    gpu: str | None = None,
    traced: bool = False,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """The figures and findings of a recipe on a topology.

    Args:
        name: the recipe.
        accel: an accelerate config; without it the recipe's, or what the visible hardware decides.
        processes: another number of processes.
        overrides: `key=value` words.
        gpu: a name of gpus.json; without it the visible GPU, or an A100-80GB.
        traced: also run the real modules on tensors without data (`trace.py`), which takes up to a minute.
        on_progress: is told how many rows have been read.

    Raises:
        InputError: The recipe, its data or a name is wrong.
    """
    recipe = recipes.load(name, recipes.parse_overrides(overrides))
    visible = topology.visible_gpus()
    chosen = topology.choose(recipe, accel, processes, visible)
    if chosen.use_cpu and gpu is not None:
        raise InputError(
            f"GPU={gpu} says nothing of {chosen.name}, which runs on the CPU; drop it, or choose ACCEL=ddp"
        )
    card = None if chosen.use_cpu else _card(gpu, visible)
    prepared, absent = _rows(recipe, on_progress)
    case = dataclasses.replace(case_of(recipe, chosen, visible, prepared, on_progress), gpu=card)
    rows = at_length(case)
    figures: dict[str, Any] = {
        "schema": SCHEMA,
        "recipe": {
            "name": recipe.name,
            "description": recipe["description"],
            "extends": recipe.base.name if recipe.base else None,
            "differences": differences(recipe),
        },
        "topology": chosen.facts() | {"description": chosen.describe()},
        "gpu": dataclasses.asdict(card) if card else None,
        "model": _model(case),
        "data": {"absent": absent} if prepared is None else {"notes": list(prepared.notes), **rows},
        "evaluation": _evaluation(recipe, prepared) if prepared else None,
        "batch": _batch(case, rows),
        "schedule": dataclasses.asdict(case.schedule) if case.schedule else None,
        "adapter": _adapter(case),
        "memory": _memory(case, traced),
    }
    found = lint.findings(case)
    return figures | {
        "time": _time(case, rows, figures["batch"]),
        "findings": [dataclasses.asdict(finding) for finding in found],
        "blocking": sum(finding.stops for finding in found),
    }


def to_fit(
    name: str, overrides: Sequence[str] = (), on_progress: Progress | None = None
) -> tuple[Recipe, base_model.Model, packing.Lengths, float]:
    """A recipe, its base, its training rows by length (empty if they are not here) and their supervised share.

    Raises:
        InputError: The recipe or its data is wrong, or the config of its base is not at hand.
    """
    recipe = recipes.load(name, recipes.parse_overrides(overrides))
    prepared, _ = _rows(recipe, on_progress)
    model = base_model.find(recipe["model_name_or_path"], str(recipe["model_revision"]))
    if model is None:
        raise InputError(
            f"the config of {recipe['model_name_or_path']} is not at hand; get it with make plan RECIPE={name} FETCH=1"
        )
    if prepared is None:
        return recipe, model, {}, 1.0
    train = survey.survey(prepared, survey.find_tokenizer(recipe), on_progress=on_progress)["splits"]["train"]
    kept = survey.at_length(train, recipe["max_length"])
    share = kept["supervised_tokens"] / kept["tokens"] if kept["tokens"] else 1.0
    return recipe, model, survey.kept_lengths(train, recipe["max_length"]), share


def case_of(
    recipe: Recipe,
    chosen: Topology,
    visible: Sequence[topology.Gpu],
    prepared: preparation.Prepared | None,
    on_progress: Progress | None = None,
) -> Case:
    """Everything that the rules look at, for a recipe whose rows are prepared or are not there."""
    model = base_model.find(recipe["model_name_or_path"], str(recipe["model_revision"]))
    counted = None
    if prepared is not None:
        counted = survey.survey(prepared, survey.find_tokenizer(recipe), on_progress=on_progress)
    card = gpus.of(visible[0]) if visible and not chosen.use_cpu else None
    case = Case(recipe, chosen, tuple(visible), card, model, counted)
    try:
        # Rows that lose their whole answer are left out, and packed rows are fewer.
        number = at_length(case)["train"].get("steps_rows", 0) if counted else 0
        return dataclasses.replace(case, schedule=schedule.schedule(recipe, chosen, number) if number else None)
    except InputError:
        # The batch cannot be reached on this topology, which a rule says.
        return case


def differences(recipe: Recipe) -> list[dict[str, Any]]:
    """What a recipe, the model and the overrides say otherwise than the recipe it extends."""
    base, beside = recipe.base, ("SET", f"{recipes.MODELS}/")
    return [
        {"key": key, "base": base[key] if base else None, "value": item.value, "origin": item.origin}
        for key, item in recipe.values.items()
        if key not in ("description", "extends")
        and (base[key] != item.value if base else item.origin.startswith(beside) and item.value is not None)
    ]


def at_length(case: Case) -> dict[str, Any]:
    """What the trainer keeps of each split at the recipe's max_length, and how long its rows are."""
    found: dict[str, Any] = {}
    if case.data is None:
        return found
    limit = case.recipe["max_length"]
    for name, split in case.data["splits"].items():
        lengths = survey.kept_lengths(split, limit)
        kept = survey.at_length(split, limit)
        figures = kept | {"source": split["source"], "rows_read": split["rows"], "tokens_are": case.data["tokens_are"]}
        if lengths:
            figures |= {f"p{p}": packing.percentile(lengths, p / 100) for p in (50, 95, 99)}
            figures["steps_rows"] = kept["rows"]
            if name == "train":
                size = case.recipe["per_device_train_batch_size"]
                figures["real_token_share"] = survey.real_token_share(split, limit, size)
                whole = survey.kept_lengths(split, None)
                figures["packed"] = {str(length): packing.packed(whole, length)[0] for length in PACKED_LENGTHS}
                if case.recipe["packing"]:
                    fill, packed = packing.packed(whole, limit)
                    figures |= {"real_token_share": fill, "steps_rows": packed}
        found[name] = figures
    return found


def _card(gpu: str | None, visible: Sequence[topology.Gpu]) -> gpus.Spec | None:
    if gpu is not None:
        return gpus.find(gpu)
    # Of a visible GPU that is not known nothing is said, rather than what another would do.
    return gpus.of(visible[0]) if visible else gpus.find(PLANNED_GPU)


def _rows(recipe: Recipe, on_progress: Progress | None) -> tuple[preparation.Prepared | None, str | None]:
    """The prepared rows, or why there are none to plan with: a recipe can be planned before its data exist."""
    path = recipe["train_file"]
    if path and recipe.values["train_file"].origin != "SET" and not Path(path).exists():
        return None, f"{path} is not here, so nothing is said about rows, steps and time; DATA=FILE names another"
    if path is None:
        return None, f"{recipe['dataset_name']} is not downloaded to plan with; DATA=FILE names a local file"
    return preparation.prepare(**preparation.source_of(recipe), cache=preparation.CACHE, on_rows=on_progress), None


def _model(case: Case) -> dict[str, Any] | None:
    if case.model is None:
        return None
    covered = case.model.four_bit_share if case.recipe["load_in_4bit"] else 0.0
    return {
        "name": case.model.name,
        "source": case.model.source,
        "parameters": case.model.elements(),
        "four_bit_share": covered,
    }


def _batch(case: Case, rows: dict[str, Any]) -> dict[str, Any]:
    recipe = case.recipe
    figures = {
        "per_device": recipe["per_device_train_batch_size"],
        "processes": case.topology.processes,
        "accumulation": None,
        "global": recipe["global_batch_size"],
    }
    # That it cannot be reached is said by the rule batch-unreachable.
    with contextlib.suppress(InputError):
        figures["accumulation"] = topology.accumulation(recipe, case.topology)
    if "train" in rows and rows["train"]["rows"]:
        train = rows["train"]
        figures["tokens_per_step"] = round(recipe["global_batch_size"] * train["tokens"] / train["steps_rows"])
    return figures


def _adapter(case: Case) -> dict[str, Any] | None:
    recipe = case.recipe
    if case.model is None:
        return None
    if not recipe["use_peft"]:
        return {"trainable_parameters": case.model.elements(), "rank": None, "alpha": None, "modules": {}}
    targets, parameters = recipe["lora_target_modules"] or [], recipe["lora_target_parameters"] or []
    adapted = case.model.targets(targets) + case.model.experts(parameters)
    return {
        "trainable_parameters": case.model.adapter_parameters(targets, recipe["lora_r"], parameters),
        "rank": recipe["lora_r"],
        "alpha": recipe["lora_alpha"],
        "modules": {group.path.rpartition(".")[2]: group.count for group in adapted},
    }


def _memory(case: Case, traced: bool) -> dict[str, Any] | None:
    if case.model is None:
        return None
    setup = largest_micro_batch(case)
    estimated = memory.estimate(case.model, setup)
    figures: dict[str, Any] = {
        "tokens": setup.tokens,
        "longest_row": setup.length,
        "components": {name: round(value) for name, value in dataclasses.asdict(estimated).items()},
        "allocated": round(estimated.allocated),
        "device": round(estimated.device),
        "not_counted": memory.not_counted(case.model, setup),
        "traced": None,
        "available": None,
        "fits": None,
        "largest_micro_batch": None,
    }
    if traced:
        figures["traced"] = round(trace.trace(case.model.config, setup)["peak"])
    if case.gpu is not None:
        vram = case.gpu.memory_bytes
        figures |= {
            "available": round(vram),
            "fits": estimated.allocated <= memory.HEADROOM * vram,
            "largest_micro_batch": memory.largest(case.model, setup, vram),
        }
    return figures


def _time(case: Case, rows: dict[str, Any], batch: dict[str, Any]) -> dict[str, Any] | None:
    if case.schedule is None:
        return None
    train, recipe, steps = rows["train"], case.recipe, case.schedule.steps
    tokens = recipe["per_device_train_batch_size"] * train["tokens"] / train["steps_rows"] / train["real_token_share"]
    length = recipe["max_length"] if recipe["packing"] else round(tokens / recipe["per_device_train_batch_size"])
    usual = dataclasses.replace(largest_micro_batch(case), tokens=round(tokens), length=length)
    run = speed.measured(recipe, case.topology, case.gpus)
    found = speed.speed(
        case.model,
        usual,
        case.gpu,
        case.schedule.accumulation,
        run,
        batch["tokens_per_step"],
        on_cpu=case.topology.use_cpu,
    )
    if found.seconds_per_step is None:
        return {"seconds": None, "basis": found.basis, "span": None}
    low, high = (each * steps for each in found.seconds_per_step)
    span = duration(low) if duration(low) == duration(high) else f"{duration(low)} to {duration(high)}"
    return {"seconds": [round(low, 1), round(high, 1)], "basis": found.basis, "span": span}


def _evaluation(recipe: Recipe, prepared: preparation.Prepared) -> dict[str, Any] | None:
    """What the run will be asked when it has been trained."""
    asked = questions.check(recipe, prepared)
    if asked is None:
        return None
    groups = {question.group for question in asked.questions} - {None}
    return {
        "task": asked.task.kind,
        "predict_by": asked.task.by,
        "labels": list(asked.task.labels) or None,
        "split": asked.split,
        "source": prepared.splits[asked.split]["source"],
        "rows": len(asked.questions),
        "leaked": sum(question.leaked for question in asked.questions),
        "groups": len(groups),
        "decisions": list(asked.task.decisions),
    }


def render(figures: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The page, as (subject, text) for `terminal.say`."""
    recipe, chosen = figures["recipe"], figures["topology"]
    based = f", extends {recipe['extends']}" if recipe["extends"] else ""
    yield "recipe", f"{recipe['name']}{based}: {recipe['description']}"
    for each in recipe["differences"]:
        before = f"{as_yaml(each['base'])} -> " if recipe["extends"] else ""
        yield "", f"{each['key']}: {before}{as_yaml(each['value'])}"
    card = figures["gpu"]
    unknown = "" if chosen["use_cpu"] else "; no figures for this machine's GPU, GPU= names another"
    yield "topology", chosen["description"] + (f", planned for {card['name']}" if card else unknown)
    model = figures["model"]
    if model is None:
        yield "model", "its config is not at hand, so nothing is said of parameters, memory and time; FETCH=1 gets it"
    else:
        covered = f", {share(model['four_bit_share'], 1)} of them in 4 bit" if model["four_bit_share"] else ""
        yield "model", f"{model['name']}: {model['parameters']:,} parameters{covered} ({model['source']})"
    yield from _render_data(figures["data"])
    if asked := figures["evaluation"]:
        classes = f" of {count(len(asked['labels']), 'class')}" if asked["labels"] else ""
        text = (
            f"{asked['task']}{classes} by {asked['predict_by']}, on {count(asked['rows'], 'row')} of {asked['source']}"
        )
        text += f" in {count(asked['groups'], 'group')}" if asked["groups"] else ""
        text += f"; {asked['leaked']:,} of them are training rows too, and will not count" if asked["leaked"] else ""
        yield "evaluation", "\n".join([text, *asked["decisions"]])
    batch = figures["batch"]
    if batch["accumulation"]:
        tokens = f", about {batch['tokens_per_step']:,} tokens" if "tokens_per_step" in batch else ""
        yield (
            "batch",
            f"{batch['per_device']} per device x {count(batch['processes'], 'process')} x {batch['accumulation']} "
            f"accumulation = {batch['global']} rows a step{tokens}",
        )
    steps = figures["schedule"]
    if steps:
        text = f"{count(steps['steps'], 'step')}, {steps['steps_per_epoch']} an epoch; {steps['warmup_steps']} warm-up"
        text += f" ({share(steps['warmup_steps'], steps['steps'])}), learning rate up to"
        yield "schedule", f"{text} {steps['peak_learning_rate']:.3g}"
    adapter = figures["adapter"]
    if adapter and adapter["rank"]:
        where = ", ".join(f"{number} {name}" for name, number in adapter["modules"].items())
        text = f"{adapter['trainable_parameters']:,} trainable, r={adapter['rank']}, alpha={adapter['alpha']}"
        yield "adapter", f"{text} on {where}"
    elif adapter:
        yield "training", f"all {adapter['trainable_parameters']:,} parameters, no adapter"
    yield from _render_memory(figures["memory"], card)
    if figures["time"]:
        span = figures["time"]["span"]
        yield "time", f"{f'{span} of training' if span else 'not known'}\n{figures['time']['basis']}"
    yield from render_findings(figures["findings"])


def _render_data(figures: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if "absent" in figures:
        yield "data", figures["absent"]
        return
    for note in figures["notes"]:
        yield "data", note
    train = figures["train"]
    about = "" if train["tokens_are"] == "exact" else "about "
    yield (
        "tokens",
        f"{about}{train['tokens']:,} in training rows, {share(train['supervised_tokens'], train['tokens'])} supervised"
        + ("" if not about else " (estimated from characters: the model's tokenizer is not at hand)"),
    )
    if "p50" in train:
        yield (
            "",
            f"a row has {train['p50']} (median), {train['p95']} (95 %), {train['p99']} (99 %), {train['longest_row']} "
            f"at most; {count(train['rows_cut'], 'answer')} cut short, {count(train['rows_lost'], 'row')} lost",
        )
        packed = ", ".join(f"{share(fill, 1)} at {length}" for length, fill in train["packed"].items())
        yield "padding", f"{share(train['real_token_share'], 1)} of a batch are real tokens; packing fills {packed}"


def _render_memory(figures: dict[str, Any] | None, card: dict[str, Any] | None) -> Iterator[tuple[str, str]]:
    if figures is None:
        return
    parts = {name: value for name, value in figures["components"].items() if value >= GIB / 100}
    listed = ", ".join(f"{name.replace('_', ' ')} {value / GIB:.2f}" for name, value in parts.items())
    text = f"{figures['allocated'] / GIB:.1f} GiB at the peak, for a micro-batch of {figures['tokens']:,} tokens"
    if figures["traced"] is not None:
        text += f"; traced on the real modules {figures['traced'] / GIB:.1f} GiB"
    yield "memory", text
    if listed:
        yield "", f"{listed} GiB"
    if figures["not_counted"]:
        yield "", figures["not_counted"]
    if card is not None:
        available = figures["available"] / GIB
        verdict = "fits" if figures["fits"] else "does not fit"
        largest = figures["largest_micro_batch"]
        room = f"the largest micro-batch that fits has {count(largest, 'row')} of {figures['longest_row']} tokens"
        yield "", f"{verdict} into {available:.0f} GiB, where {figures['device'] / GIB:.1f} would be taken; {room}"


def render_findings(findings: Sequence[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """The findings, the gravest first, and their number."""
    for finding in findings:
        text = f"{finding['rule']}: {finding['message']}"
        if finding["silenced"]:
            yield "silenced", f"{text}\nbecause: {finding['silenced']}"
        else:
            yield finding["severity"], f"{text}\ninstead: {finding['instead']}\nevidence: {finding['evidence']}"
    active = [finding["severity"] for finding in findings if not finding["silenced"]]
    numbers = ", ".join(f"{active.count(severity)} {severity}" for severity in lint.SEVERITIES)
    yield "findings", f"{len(active)}: {numbers}"
