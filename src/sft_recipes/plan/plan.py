"""What a recipe will do before it costs anything: rows, steps, parameters, memory, time, and findings.

No torch and no weights: a page in a second or two, on any machine. `facts` gives the figures (docs/plan.md describes
them), `render` the page.
"""

import contextlib
import dataclasses
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from sft_recipes.data import packing, survey
from sft_recipes.demo import bases
from sft_recipes.errors import InputError
from sft_recipes.models import base_model
from sft_recipes.plan import execution, lint, memory, speed, trace
from sft_recipes.plan.job import Job, Where, resolve
from sft_recipes.plan.lint.speed import largest_micro_batch
from sft_recipes.recipes import places, topology
from sft_recipes.recipes import recipe as recipes
from sft_recipes.recipes.recipe import Overrides, Recipe
from sft_recipes.recipes.schema import as_yaml
from sft_recipes.terminal import GIB, count, duration, gib, share

# The version of what `facts` returns; it grows when a reader of today would misread it.
SCHEMA = 1


def plan(name: str | Path, *, traced: bool = False, **where: Unpack[Where]) -> dict[str, Any]:
    """The figures and findings of a recipe on a topology.

    Raises:
        InputError: The recipe, its data or a name is wrong.
    """
    return figures_of(resolve(name, planned=True, **where), traced)


def figures_of(job: Job, traced: bool = False) -> dict[str, Any]:
    """The figures and findings of a job.

    Raises:
        InputError: Its rows are wrong.
    """
    recipe, rows, batch = job.recipe, job.rows, _batch(job)
    found = lint.findings(job.case)
    return {
        "schema": SCHEMA,
        "recipe": {
            "name": recipe.name,
            "description": recipe["description"],
            "extends": recipe.base.name if recipe.base else None,
            "differences": differences(job.written),
        },
        "topology": job.topology.facts() | {"description": job.topology.describe()},
        "gpu": dataclasses.asdict(job.gpu) if job.gpu else None,
        "model": _model(job),
        "model_absent": None if job.model else without_config(recipe),
        "data": {"absent": job.absent} if job.absent else {"notes": job.notes, **rows},
        "evaluation": _evaluation(job),
        "execution": _execution(job),
        "batch": batch,
        "schedule": dataclasses.asdict(job.schedule) if job.schedule else None,
        "adapter": _adapter(job),
        "memory": _memory(job, traced),
        "time": _time(job, batch),
        "findings": [dataclasses.asdict(finding) for finding in found],
        "blocking": sum(finding.stops for finding in found),
    }


def to_fit(name: str | Path, overrides: Overrides = ()) -> tuple[Recipe, base_model.Model, packing.Lengths, float]:
    """A recipe, its base, its training rows by length (empty if they are not here) and their supervised share.

    Raises:
        InputError: The recipe or its data is wrong, or the config of its base is not at hand.
    """
    job = resolve(name, planned=True, accel="single_gpu", overrides=overrides)
    if job.model is None:
        raise InputError(f"{without_config(job.recipe)}; with it, a micro-batch can be said to fit")
    if job.data is None:
        return job.recipe, job.model, {}, 1.0
    limit, kept = job.recipe["max_length"], job.rows["train"]
    share = kept["supervised_tokens"] / kept["tokens"] if kept["tokens"] else 1.0
    return job.recipe, job.model, survey.kept_lengths(job.data["splits"]["train"], limit), share


def without_config(recipe: Recipe) -> str:
    """That the config of a recipe's base is not here, and how it comes here."""
    model = recipe["model_name_or_path"]
    if Path(model) in bases.MADE:
        return f"{model} is built when it is first needed, as by make preview RECIPE={recipe.name}"
    if places.is_local(model):
        return f"{model} has no config.json on this machine; name a saved model's directory, or a Hub id ORG/NAME"
    return f"the config of {model} is not at hand; make plan RECIPE={recipe.name} FETCH=1 gets it"


def differences(recipe: Recipe) -> list[dict[str, Any]]:
    """What a recipe, the model and the overrides say otherwise than the recipe it extends."""
    base, beside = recipe.base, (*recipes.GIVEN, f"{recipes.MODELS}/")
    return [
        {"key": key, "base": base[key] if base else None, "value": item.value, "origin": item.origin}
        for key, item in recipe.values.items()
        if key not in ("description", "extends")
        and (base[key] != item.value if base else item.origin.startswith(beside) and item.value is not None)
    ]


def _model(job: Job) -> dict[str, Any] | None:
    if job.model is None:
        return None
    covered = job.model.four_bit_share if job.recipe["load_in_4bit"] else 0.0
    return {
        "name": job.model.name,
        "source": job.model.source,
        "parameters": job.model.elements(),
        "four_bit_share": covered,
    }


def _execution(job: Job) -> dict[str, Any]:
    """What `execution: auto` has chosen; where the recipe does not say it, what it would choose."""
    found = job.execution
    return {
        "asked": job.written["execution"],
        "chosen": [dataclasses.asdict(each) for each in found.choices],
        "kept": list(found.kept),
        "worth": found.worth,
        "guessed": found.guessed,
    }


def _batch(job: Job) -> dict[str, Any]:
    recipe = job.recipe
    figures = {
        "per_device": recipe["per_device_train_batch_size"],
        "processes": job.topology.processes,
        "accumulation": None,
        "global": recipe["global_batch_size"],
    }
    # That it cannot be reached is said by the rule batch-unreachable.
    with contextlib.suppress(InputError):
        figures["accumulation"] = topology.accumulation(recipe, job.topology)
    if job.rows and job.rows["train"]["rows"]:
        train = job.rows["train"]
        figures["tokens_per_step"] = round(recipe["global_batch_size"] * train["tokens"] / train["steps_rows"])
    return figures


def _adapter(job: Job) -> dict[str, Any] | None:
    recipe = job.recipe
    if job.model is None:
        return None
    if not recipe["use_peft"]:
        return {"trainable_parameters": job.model.elements(), "rank": None, "alpha": None, "modules": {}, "saved": {}}
    made = job.model.adapters(base_model.Asked.of(recipe))
    return {
        "trainable_parameters": made.parameters(recipe["lora_r"]),
        "rank": recipe["lora_r"],
        "alpha": recipe["lora_alpha"],
        "modules": made.modules,
        "saved": made.saved,
    }


def _memory(job: Job, traced: bool) -> dict[str, Any] | None:
    if job.model is None:
        return None
    setup = largest_micro_batch(job.case)
    estimated = memory.estimate(job.model, setup)
    figures: dict[str, Any] = {
        "tokens": setup.tokens,
        "longest_row": setup.length,
        "components": {name: round(value) for name, value in dataclasses.asdict(estimated).items()},
        "allocated": round(estimated.allocated),
        "device": round(estimated.device),
        "process": round(estimated.process) if job.topology.use_cpu else None,
        "not_counted": memory.not_counted(job.model, setup),
        "traced": None,
        "available": None,
        "fits": None,
        "largest_micro_batch": None,
    }
    if traced:
        figures["traced"] = round(trace.trace(job.model.config, setup)["peak"])
    if job.gpu is not None:
        vram = job.gpu.memory_bytes
        figures |= {
            "available": round(vram),
            "fits": estimated.allocated <= memory.HEADROOM * vram,
            "largest_micro_batch": memory.largest(job.model, setup, vram),
        }
    return figures


def _time(job: Job, batch: dict[str, Any]) -> dict[str, Any] | None:
    if job.schedule is None:
        return None
    train, recipe, steps = job.rows["train"], job.recipe, job.schedule.steps
    tokens = recipe["per_device_train_batch_size"] * train["tokens"] / train["steps_rows"] / train["real_token_share"]
    length = recipe["max_length"] if recipe["packing"] else round(tokens / recipe["per_device_train_batch_size"])
    usual = dataclasses.replace(largest_micro_batch(job.case), tokens=round(tokens), length=length)
    run = speed.measured(recipe, job.topology, job.gpus)
    found = speed.speed(
        job.model,
        usual,
        job.gpu,
        job.schedule.accumulation,
        run,
        batch["tokens_per_step"],
        on_cpu=job.topology.use_cpu,
    )
    if found.seconds_per_step is None:
        return {"seconds": None, "evaluations": None, "basis": found.basis, "span": None}
    evaluations, held_out = (job.schedule.evaluations or 0) + recipe["eval_on_start"], job.rows.get("validation")
    low, high = (each * steps for each in found.seconds_per_step)
    if evaluations and held_out:
        size = held_out["rows"], held_out["tokens"]
        one, other = (
            evaluations * speed.evaluation(usual, each / batch["tokens_per_step"], *size, run)
            for each in found.seconds_per_step
        )
        low, high = low + one, high + other
    span = duration(low) if duration(low) == duration(high) else f"{duration(low)} to {duration(high)}"
    basis = {"evaluations": evaluations, "basis": found.basis, "span": span}
    return {"seconds": [round(low, 1), round(high, 1)], **basis}


def _evaluation(job: Job) -> dict[str, Any] | None:
    """What the run will be asked when it has been trained."""
    asked = job.evaluation
    if asked is None:
        return None
    return {
        "task": asked.task.kind,
        "predict_by": asked.task.by,
        "labels": list(asked.task.labels) or None,
        "split": asked.split,
        "source": job.prepared.splits[asked.split]["source"],
        "rows": asked.rows,
        "leaked": asked.leaked,
        "groups": len(asked.groups),
        "decisions": list(asked.task.decisions),
    }


def render(figures: dict[str, Any], *, whole: bool = False) -> Iterator[tuple[str, str]]:
    """The page, as (subject, text) for `terminal.say`, its verdict first; `whole` says all evidence of findings."""
    yield "verdict", "\n".join(_verdict(figures))
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
        yield "model", f"{figures['model_absent']}; so nothing is said of parameters, memory and time"
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
    if executed := "\n".join(_render_execution(figures["execution"])):
        yield "execution", executed
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
        text += f" {steps['peak_learning_rate']:.3g}"
        yield "schedule", f"{text} until evaluations change it" if steps["follows_evaluations"] else text
    adapter = figures["adapter"]
    if adapter and adapter["rank"]:
        where = ", ".join(f"{number} {name}" for name, number in adapter["modules"].items())
        text = f"{adapter['trainable_parameters']:,} trainable, r={adapter['rank']}, alpha={adapter['alpha']}"
        saved = "".join(f", and {path} whole ({number:,})" for path, number in adapter["saved"].items())
        yield "adapter", f"{text} on {where}{saved}"
    elif adapter:
        yield "training", f"all {adapter['trainable_parameters']:,} parameters, no adapter"
    yield from _render_memory(figures["memory"], card)
    if figures["time"]:
        span = figures["time"]["span"]
        with_them = f" with {count(number, 'evaluation')}" if (number := figures["time"]["evaluations"]) else ""
        said = f"{span} of training{with_them}" if span else "not known before a run"
        yield "time", f"{said}\n{figures['time']['basis']}"
    yield from _render_findings(figures["findings"], whole)


# What a plan is made without, by the rule that says that it is not here.
MISSING = {"devices-missing": "GPUs", "model-missing": "model", "tool-missing": "packages"}


def _verdict(figures: dict[str, Any]) -> Iterator[str]:
    """What stops it, what to look at, whether it fits, and how long it takes."""
    active = [finding for finding in figures["findings"] if not finding["silenced"]]
    stops, look = (
        ", ".join(dict.fromkeys(each["rule"] for each in active if each["severity"] == severity))
        for severity in ("blocking", "warning")
    )
    found = {each["rule"] for each in active}
    missing = [thing for rule, thing in MISSING.items() if rule in found]
    elsewhere = f" on a machine that has its {' and its '.join(missing)}" if missing else ""
    yield f"will not run: {stops}" if stops else f"nothing stops it{elsewhere}"
    if look:
        yield f"look at {look}"
    needed, card = figures["memory"], figures["gpu"]
    if needed and card:
        fits = "fits" if needed["fits"] else "does not fit"
        yield f"{fits}: {gib(needed['allocated'])} at the peak, {card['name']} has {gib(needed['available'], 0)}"
    if figures["time"] and (span := figures["time"]["span"]):
        yield f"trains for {span}"


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
    for each in train.get("sources", ()):
        rows = f"{count(each['rows'], 'row')} ({share(each['rows'], train['rows'])})"
        supervised = f"{share(each['supervised_tokens'], train['supervised_tokens'])} of what is supervised"
        yield "", f"{each['source']}: {rows}, {about}{each['tokens']:,} tokens, {supervised}"
    if "p50" in train:
        cut, lost = count(train["rows_cut"], "answer"), count(train["rows_lost"], "row")
        half, most, nearly_all = train["p50"], train["p95"], train["p99"]
        text = f"half of the rows have at most {half} tokens, 95 % {most}, 99 % {nearly_all}, the longest has "
        text += f"{train['longest_row']}\n"
        if train["rows_cut"] or train["rows_lost"]:
            text += f"max_length cuts {cut} short and leaves out {lost} whose answer is gone"
        else:
            text += "every answer is whole at max_length"
        yield "", text
        packed = ", ".join(f"{share(fill, 1)} at {length}" for length, fill in train["packed"].items())
        yield "padding", f"{share(train['real_token_share'], 1)} of a batch are real tokens; packing fills {packed}"


def _render_execution(figures: dict[str, Any]) -> Iterator[str]:
    choices = [execution.Choice(**each) for each in figures["chosen"]]
    if figures["asked"] == "auto":
        kept, worth, guessed = tuple(figures["kept"]), figures["worth"], figures["guessed"]
        yield from execution.Execution(tuple(choices), kept, worth, guessed).lines()
    elif figures["worth"]:
        changed = ", ".join(f"{each.key} {as_yaml(each.value)}" for each in choices)
        yield f"as written; SET=execution=auto would take {changed}\nworth: {figures['worth']}"


def _render_memory(figures: dict[str, Any] | None, card: dict[str, Any] | None) -> Iterator[tuple[str, str]]:
    if figures is None:
        return
    where = "" if figures["process"] is None else " of each process on this CPU"
    needed = figures["process"] or figures["allocated"]
    text = f"{size(needed)} at the peak{where}, for a micro-batch of {figures['tokens']:,} tokens"
    if figures["traced"] is not None:
        tensors = f", of {size(figures['allocated'])} of tensors" if where else ""
        text += f"; traced on the real modules {size(figures['traced'])}{tensors}"
    yield "memory", text
    if listed := components(figures["components"]):
        yield "", listed
    if figures["not_counted"]:
        yield "", figures["not_counted"]
    if card is not None:
        verdict = "fits" if figures["fits"] else "does not fit"
        largest = figures["largest_micro_batch"]
        room = f"the largest micro-batch that fits has {count(largest, 'row')} of {figures['longest_row']} tokens"
        shown = f"where nvidia-smi would show {size(figures['device'])}"
        yield "", f"{verdict} into {gib(figures['available'], 0)}, {shown}; {room}"


def components(figures: Mapping[str, float]) -> str:
    """The parts of a memory estimate that are worth naming: `base weights 5.21, activations 1.90 GiB`."""
    worth = {name: value for name, value in figures.items() if value >= GIB / 100}
    listed = ", ".join(f"{name.replace('_', ' ')} {value / GIB:.2f}" for name, value in worth.items())
    return listed and f"{listed} GiB"


def size(number: float) -> str:
    """`6.1 GiB`, or `38 MiB` of what is less than a tenth of one."""
    return gib(number) if number >= GIB / 10 else f"{number / 2**20:.0f} MiB"


def _render_findings(findings: Sequence[dict[str, Any]], whole: bool) -> Iterator[tuple[str, str]]:
    """The findings, the gravest first, what one rule found of several splits as one, and their number."""
    groups: dict[tuple[str, str, str | None], list[dict[str, Any]]] = {}
    for finding in findings:
        groups.setdefault((finding["rule"], finding["severity"], finding["silenced"]), []).append(finding)
    for (rule, severity, silenced), found in groups.items():
        messages, instead, evidence = (dict.fromkeys(each[key] for each in found) for key in _PARTS)
        text = "\n".join([f"{rule}: {next(iter(messages))}", *[*messages][1:]])
        if silenced:
            yield "silenced", f"{text}\nbecause: {silenced}"
            continue
        said = [f"instead: {each}" for each in instead]
        said += [f"evidence: {each if whole else _link(each)}" for each in evidence]
        yield severity, "\n".join([text, *said])
    active = [severity for _, severity, silenced in groups if not silenced]
    numbers = ", ".join(f"{active.count(severity)} {severity}" for severity in lint.SEVERITIES)
    yield "findings", f"{len(active)}: {numbers}{'' if whole or not active else '; WHY=1 says their evidence in full'}"


_PARTS = ("message", "instead", "evidence")


def _link(evidence: str) -> str:
    """The first link of an evidence, or as much of it as a line holds."""
    found = re.search(r"https?://\S+|docs/\S+|\b[\w/-]+#\d+", evidence)
    return found[0].rstrip(".,:;") if found else textwrap.shorten(evidence, 90, placeholder=" ...")
