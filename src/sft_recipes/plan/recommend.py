"""From rows and a machine to a recipe: each value with what says so, what else could be had, and what nobody knows.

Nothing is counted here anew: the survey says what the rows are, `fit` and `memory` what fits, the plan what it costs,
and the evidence of a key what is known about its values. No torch.
"""

import collections
import dataclasses
import json
import math
import textwrap
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sft_recipes.data import packing, preparation, survey, tokens
from sft_recipes.data.packing import Lengths
from sft_recipes.data.preparation import Prepared
from sft_recipes.data.survey import Survey
from sft_recipes.errors import InputError
from sft_recipes.models import base_model
from sft_recipes.plan import fit, memory, plan
from sft_recipes.plan import gpus as specs
from sft_recipes.plan.gpus import Spec
from sft_recipes.plan.job import Job, resolve
from sft_recipes.plan.lint.data import telling_rows
from sft_recipes.plan.lint.run import FEW_STEPS
from sft_recipes.plan.lint.speed import PADDED
from sft_recipes.recipes import editor, task, topology, why
from sft_recipes.recipes import recipe as recipes
from sft_recipes.recipes.recipe import Overrides, Recipe, Value
from sft_recipes.recipes.shipped import shipped_names
from sft_recipes.terminal import count, counting_rows, share

SCHEMA = 1
# What a recommended recipe extends, and the recipes whose lines it borrows with their reasons.
BASE, LAPTOP, CHAT, FEW_ROWS = "all_linear", "laptop", "chat", "small_data"
# Names of a machine without a GPU.
CPUS = ("cpu", "laptop")
# The presets' family by size; from USUAL down is recommended, what is larger is told as an alternative.
SIZES = ("qwen3_32b", "qwen3_14b", "qwen3_8b", "qwen3_4b", "qwen3_1_7b", "qwen3_0_6b")
USUAL, SMALLEST = "qwen3_8b", "qwen3_0_6b"
# (rows from which, global batch, epochs), by the ranges in evidence/; and of fewer rows the first (global batch,
# epochs) that gives FEW_STEPS steps.
MANY = ((50_000, 32, 1), (20_001, 32, 2))
FEW = ((16, 2), (8, 2), (8, 4), (4, 4))
# Epochs from which the shipped recipe for few rows adds dropout.
OFTEN = 4
# Tokens over those estimated at 4 bytes each. With the vocabulary that Qwen's models share (scripts/
# validate_recommend.py --estimate) English, German, Polish, Russian, Chinese, code and JSON were 0.7 to 1.4 of it.
MARGIN = 1.4
# Shares of rows that a length keeps whole: all where that costs little, the evidence's percentile, and what is left
# where nothing else fits.
ALL, USUAL_SHARE, LEFT = 1.0, 0.995, (0.95, 0.75, 0.5)
# Letters are counted in so many rows.
SAMPLE = 1000
METHODS: dict[str, dict[str, Any]] = {"LoRA in bfloat16": {"load_in_4bit": False}, "QLoRA": {"load_in_4bit": True}}
# The lines that `LAPTOP` has for a CPU.
OF_LAPTOP = ("dtype", "bf16", "load_in_4bit", "per_device_train_batch_size", "dataloader_num_workers")
# Ranks by how much they hold; the shipped recipe for more than the first does has the second.
RANKS = (16, 64)
# Of the evidence of lora_r: bits that a parameter of an adapter holds, for the 1 bit of a token of an answer.
BITS = 2
# A script in which so many letters are is one of the rows' own.
FOREIGN = 0.05
# What the authors say of languages: by the beginning of the base's name, the claim, where, and the scripts of those
# that are listed; None where they are too many to list.
CLAIMS: dict[str, tuple[str, str, tuple[str, ...] | None]] = {
    "Qwen/Qwen3": ("119 languages and dialects", "arXiv:2505.09388, abstract", None),
    "meta-llama/Llama-3": (
        "English, German, French, Italian, Portuguese, Hindi, Spanish and Thai",
        "its model card",
        ("Latin", "Devanagari", "Thai"),
    ),
}
# Findings of no warning that say what the rows are too few for.
TOLD = ("small-evaluation-set", "class-imbalance", "contradictory-answers")


@dataclasses.dataclass(frozen=True)
class Machine:
    """What trains."""

    gpu: Spec | None  # None where the CPU trains
    number: int
    gib: float  # of one GPU, or of the host

    def __str__(self) -> str:
        return f"{self.number} x {self.gpu.name}, {self.gib:.0f} GiB each" if self.gpu else f"CPU, {self.gib:.0f} GiB"


@dataclasses.dataclass(frozen=True)
class Rows:
    """What is known of the rows before anything is decided; none are held out yet, unless a file says which."""

    data: str
    prepared: Prepared
    found: Survey

    @property
    def number(self) -> int:
        return self.found["splits"]["train"]["rows"]

    @property
    def estimated(self) -> bool:
        return self.found["tokens_are"] != "exact"

    @property
    def lengths(self) -> Lengths:
        """Training and validation rows by tokens; as many more as an estimate may be off."""
        more = MARGIN if self.estimated else 1.0
        counts = collections.Counter[int]()
        for name in {"train", "validation"} & self.found["splits"].keys():
            for length, rows in self.found["splits"][name]["lengths"].items():
                counts[math.ceil(int(length) * more)] += rows
        return dict(counts)

    @property
    def kind(self) -> str:
        """conversation, classification, extraction (into JSON) or text."""
        train = self.found["splits"]["train"]
        if self.found["kind"] == "messages":
            return "conversation"
        if field := self.found["class_field"]:
            # One field of several that has few values is a class if it is called so.
            named = survey.CLASS_NAME.search(field) or all(
                len(each["fields"]) == 1 for each in train["classes"].values()
            )
            return "classification" if named else "extraction"
        if field == "":
            return "classification"
        return "extraction" if train["json"]["looks"] >= 0.9 * train["rows"] else "text"


@dataclasses.dataclass(frozen=True)
class Way:
    """A model, a method and a length that fit, with how they are computed."""

    model: str | None  # of models/; None for one that the user named otherwise
    method: str
    limit: int
    rank: int
    capacity: float  # tokens of answers that adapters of that rank hold
    accel: str
    micro: int
    checkpointing: bool
    seconds: float
    reason: str


@dataclasses.dataclass(frozen=True)
class Decided:
    """A recipe: each key with its value and the reason, and its job."""

    values: dict[str, tuple[Any, str]]
    way: Way
    used: int
    job: Job
    figures: dict[str, Any]
    unknown: list[str]


def recommend(
    data: str, gpu: str | None = None, number: int | None = None, overrides: Overrides = ()
) -> dict[str, Any]:
    """A recipe for rows on a machine, as facts: `recipe` (each key its value, reason and evidence), `alternatives`,
    `findings`, `unknown`, and what the plan says.

    Args:
        data: The file of rows.
        gpu: A name of gpus.json; cpu or laptop for none; without it what this machine has.
        number: How many GPUs; those that are visible, or one of a kind that is named.
        overrides: What the user has decided; it is kept, and everything else is chosen to go with it.

    Raises:
        InputError: The rows cannot be read, there is no such GPU, or nothing fits.
    """
    machine, own = machine_of(gpu, number), recipes.parse_overrides(overrides)
    rows = look(data, own)
    chosen = decide(rows, machine, own)
    values, figures = chosen.values, chosen.figures
    taken = {key: value for key, (value, _) in values.items()}
    return {
        "schema": SCHEMA,
        "data": {
            "file": data,
            "rows": rows.number,
            "format": rows.prepared.format,
            "kind": rows.kind,
            "tokens_are": rows.found["tokens_are"],
            "lengths": {f"p{p:g}": packing.percentile(rows.lengths, p / 100) for p in (50, 95, 99.5, 100)},
            "classes": {name: each["rows"] for name, each in rows.found["splits"]["train"]["classes"].items()},
            "scripts": scripts(rows.prepared),
        },
        "machine": {"gpu": machine.gpu and machine.gpu.name, "number": machine.number, "gib": round(machine.gib, 1)},
        "used": chosen.used,
        "nearest": nearest(taken),
        "recipe": {
            key: {"value": value, "reason": reason, "evidence": evidence(key)}
            for key, (value, reason) in values.items()
        },
        "costs": costs(figures),
        "alternatives": alternatives(rows, machine, own, chosen),
        "findings": [each for each in figures["findings"] if each["severity"] != "info" or each["rule"] in TOLD],
        "unknown": chosen.unknown,
    }


def machine_of(gpu: str | None, number: int | None) -> Machine:
    """The machine of that name, or this one.

    Raises:
        InputError: Nothing is known of that GPU, or it has no bfloat16, which the recipes compute in.
    """
    named = gpu is not None and gpu.strip().lower() in CPUS
    visible = [] if gpu is not None else topology.visible_gpus()
    if named or (gpu is None and not visible):
        if gpu is None:
            topology.refuse_fault()
        if number is not None:
            raise InputError(f"GPUS={number} says nothing of a CPU; drop it, or name the GPUs by GPU=")
        import psutil

        return Machine(None, 1, psutil.virtual_memory().total / fit.GIB)
    spec = specs.find(gpu) if gpu is not None else specs.of(visible[0])
    if spec is None:
        raise InputError(f"no figures for this machine's {visible[0].name}; name one like it by GPU=, or GPU=cpu")
    if spec.bf16_tflops is None:
        raise InputError(
            f"{spec.name} has no bfloat16, which every recipe for a GPU computes in, and there is no evidence here for "
            "float16; name another GPU, or GPU=cpu"
        )
    return Machine(spec, number or len(visible) or 1, spec.memory_bytes / fit.GIB)


def look(data: str, own: Mapping[str, Value]) -> Rows:
    """The rows, read as the user says, with none held out.

    Raises:
        InputError: They cannot be read, with everything that is wrong with them.
    """
    given = {**own, "train_file": Value(data, "SET"), "dataset_name": Value(None, "SET")}
    model = {} if "model" in own or "model_name_or_path" in own else {"model": Value(USUAL, "SET")}
    recipe = recipes.load(BASE, given | model)
    source = preparation.source_of(recipe) | {"validation_split_size": 0.0}
    with counting_rows() as on_rows:

        def read(kind: str | None) -> Prepared:
            return preparation.prepare(**source | {"task": kind}, cache=preparation.CACHE, on_rows=on_rows)

        try:
            prepared = read(recipe["task"])
        except InputError:
            # Answers that are numbers are refused unless they are classes; what else is wrong is wrong twice.
            prepared = read("classification")
        found = survey.survey(prepared, tokens.find_tokenizer(recipe), on_progress=on_rows)
    return Rows(data, prepared, found)


def decide(rows: Rows, machine: Machine, own: Mapping[str, Value], given: Prepared | None = None) -> Decided:
    """The recipe for rows on a machine; `given` are the rows with those held out, where they are at hand.

    Raises:
        InputError: Nothing fits, or what the user has decided contradicts itself.
    """
    put = _Draft({key: item.value for key, item in own.items() if key != "model"})
    put("train_file", rows.data, f"{count(rows.number, 'row')} of {rows.kind}.")
    put("data_format", rows.prepared.format, "What its columns are; a file of another form is refused, not guessed.")
    held = _hold_out(put, rows)
    batch, epochs, used = amount(rows.number - held, machine.number)
    batch, epochs = put.said.get("global_batch_size", batch), put.said.get("num_train_epochs", epochs)
    way = choose(rows, machine, own, batch, used)
    _place(put, machine, own, way, used)
    _learn(put, rows, way, held, batch, epochs, used)
    unknown = _task(put, rows)
    put.rest()
    job = put.job(machine, used, given)
    if {"task", "label_field", "labels"} & put.values.keys() - put.said.keys():
        try:
            _ = job.evaluation
        except InputError as error:
            unknown.append(f"How good it is at the task: {error.problems[0]}. No task is set until then.")
            for key in {"task", "label_field", "labels"} - put.said.keys():
                put.values.pop(key, None)
            job = put.job(machine, used, job.prepared)
    unknown += _unknown(rows, machine, way, job)
    where = f"{used} x {machine.gpu.name}" if machine.gpu else "a CPU"
    base = job.recipe["model_name_or_path"].rpartition("/")[2]
    idea = f"Recommended for {Path(rows.data).name} on {where}: {rows.kind}, {base}, {way.method}."
    return Decided({"description": (idea, ""), **put.values}, way, used, job, plan.figures_of(job), unknown)


class _Draft:
    """Keys with their values and reasons; what the user has decided stays."""

    def __init__(self, said: Mapping[str, Any]) -> None:
        self.said, self.values = said, dict[str, tuple[Any, str]]()

    def __call__(self, key: str, value: Any, reason: str) -> None:
        self.values.setdefault(key, (self.said[key], "You set it.") if key in self.said else (value, reason))

    def borrow(self, name: str, *keys: str) -> None:
        """Keys of a shipped recipe, with its reasons."""
        lines = recipes.read(recipes.file_of(name))
        for key in keys:
            self(key, lines[key].value, f"{why.comment(lines[key].origin)} ({name})")

    def rest(self) -> None:
        for key in self.said:
            self(key, None, "")

    def job(self, machine: Machine, used: int, given: Prepared | None) -> Job:
        words = {key: value for key, (value, _) in self.values.items()}
        gpu = {"processes": used, "gpu": machine.gpu.name} if machine.gpu else {}
        job = resolve(BASE, overrides=words, planned=True, **gpu)
        job.given = given
        return job


def _hold_out(put: _Draft, rows: Rows) -> int:
    """Rows that training does not see."""
    if put.said.get("validation_file") or "validation_split_size" in put.said:
        return round(rows.number * (put.said.get("validation_split_size") or 0))
    part = min(0.2, max(0.01, math.ceil(100 * telling_rows() / rows.number) / 100))
    enough = f"{telling_rows()} held-out rows tell models apart that differ by 5 points"
    less = (
        "" if part * rows.number >= telling_rows() else f", and so many would be more than a fifth of {rows.number:,}"
    )
    put("validation_split_size", part, f"{enough}{less}.")
    return round(rows.number * part)


def amount(rows: int, processes: int) -> tuple[int, int, int]:
    """Global batch, epochs and GPUs for so many training rows, of `processes` GPUs at most."""
    ways = [(batch, epochs) for least, batch, epochs in MANY if rows >= least][:1] or FEW
    batch, epochs = next((way for way in ways if math.ceil(rows / way[0]) * way[1] >= FEW_STEPS), ways[-1])
    used = min(batch, processes)
    return used * round(batch / used), epochs, used


def choose(rows: Rows, machine: Machine, own: Mapping[str, Value], batch: int, used: int) -> Way:
    """The largest model that fits, up to the presets' own, and the fastest method for it; rows are cut last.

    Raises:
        InputError: Nothing fits.
    """
    whole, near = (_length(rows, part) for part in (ALL, USUAL_SHARE))
    rounds: list[list[Any]] = [
        [whole, near] if whole <= 2 * near else [near],
        *([_length(rows, part)] for part in LEFT),
    ]
    if "max_length" in own:
        rounds = [[own["max_length"].value]]
    models: list[str | None] = [*SIZES[SIZES.index(USUAL) :]] if machine.gpu else [SMALLEST]
    if "model" in own or "model_name_or_path" in own:
        models = [own["model"].value if "model" in own else None]
    missed = ""
    for limits in rounds:
        for model in models:
            for limit in limits:
                tried = [*_ways(rows, machine, own, model, limit, batch, used)]
                if ways := [each for each in tried if isinstance(each, Way)]:
                    return _fastest(ways)
                missed = next(each for each in tried if isinstance(each, str))
    raise InputError(f"nothing that was tried fits {machine}; the last: {missed}")


def _length(rows: Rows, part: float) -> int:
    return -(-packing.percentile(rows.lengths, part) // 64) * 64


def _fastest(ways: list[Way]) -> Way:
    """The fastest, with what it is faster than."""
    best = min(ways, key=lambda each: each.seconds)
    others = [f"{each.method} takes {each.seconds / best.seconds - 1:.0%} longer" for each in ways if each is not best]
    return dataclasses.replace(best, reason="; ".join([*others, best.reason]))


def _ways(
    rows: Rows, machine: Machine, own: Mapping[str, Value], model: str | None, limit: int | None, batch: int, used: int
) -> Iterator[Way | str]:
    """Each method with which a model fits at a length, or why it does not."""
    named = {} if model is None else {"model": Value(model, "SET")}
    methods = METHODS
    if machine.gpu is None:
        lines = recipes.read(recipes.file_of(LAPTOP))
        methods = {"LoRA in float32": {key: lines[key].value for key in OF_LAPTOP}}
    elif "load_in_4bit" in own:
        methods = {name: each for name, each in METHODS.items() if each["load_in_4bit"] == own["load_in_4bit"].value}
    for method, words in methods.items():
        asked = {"train_file": rows.data, **words, "max_length": limit, "global_batch_size": batch}
        recipe = recipes.load(BASE, {**asked, **own, **named})
        found = base_model.find(recipe["model_name_or_path"], str(recipe["model_revision"]))
        if found is None:
            raise InputError(plan.without_config(recipe))
        # No longer than the model was made for.
        most = min(limit or 2**62, found.positions[0] or 2**62)
        lengths = collections.Counter[int]()
        for length, number in rows.lengths.items():
            lengths[min(length, most)] += number
        made = found.adapters(base_model.Asked.of(recipe))
        ranks = [own["lora_r"].value] if "lora_r" in own else RANKS
        rank = next((each for each in ranks if BITS * made.parameters(each) >= _answers(rows)), ranks[-1])
        recipe = recipe.derive(lora_r=(rank, ""), max_length=(most if limit else None, ""))
        if machine.gpu:
            kept = survey.at_length(rows.found["splits"]["train"], recipe["max_length"])
            part = kept["supervised_tokens"] / (kept["tokens"] or 1)
            run = _on_gpus(fit.fit(recipe, found, dict(lengths), part, used, machine.gib))
        else:
            run = _on_cpu(recipe, found, max(lengths), machine)
        if isinstance(run, str):
            yield run
        else:
            yield Way(model, method, recipe["max_length"], rank, BITS * made.parameters(rank), *run)


def _answers(rows: Rows) -> float:
    """Tokens of all answers."""
    return rows.found["splits"]["train"]["supervised_tokens"] * (MARGIN if rows.estimated else 1.0)


Run = tuple[str, int, bool, float, str]
"""Accelerate config, rows of a micro-batch, whether activations are recomputed, seconds of a step, and the reason."""


def _on_gpus(found: fit.Fit) -> Run | str:
    best = found.best
    if best is None or best.topology.offloads:
        return found.reason if best is None else f"{best.line} keeps weights in host memory, which is far slower"
    return best.topology.name, best.rows, best.checkpointing, best.seconds, found.reason


def _on_cpu(recipe: Recipe, model: base_model.Model, longest: int, machine: Machine) -> Run | str:
    chosen, needed = topology.read("cpu", "the machine"), 0.0
    for size, checkpointing in ((recipe["per_device_train_batch_size"], False), (1, False), (1, True)):
        setup = memory.Setup.of(recipe, chosen, size * longest, longest)
        needed = memory.estimate(model, dataclasses.replace(setup, checkpointing=checkpointing)).process
        if needed <= memory.HEADROOM * machine.gib * fit.GIB and recipe["global_batch_size"] % size == 0:
            reason = f"{count(size, 'row')} of up to {longest:,} tokens: a process of up to {fit.gib(needed)}"
            return "cpu", size, checkpointing, 0.0, reason
    return f"one row of {longest:,} tokens needs {fit.gib(needed)}"


def _place(put: _Draft, machine: Machine, own: Mapping[str, Value], way: Way, used: int) -> None:
    """Base, method, and how it is computed."""
    if way.model is not None:
        reason = "You chose it."
        if "model" not in own:
            reason = f"The largest of the presets' family up to {USUAL}, their own, that fits {machine}."
            reason = reason if machine.gpu else "The smallest of the presets' family: a CPU's time goes by its size."
        for key, item in recipes.read_model(way.model).items():
            if key == "model_name_or_path" or key not in ("description", "lora_target_modules"):
                put(key, item.value, reason if key == "model_name_or_path" else f"As models/{way.model}.yaml says.")
    put("accelerate_config", way.accel, f"The simplest in which it fits {machine}{_idle(machine, used)}.")
    if machine.gpu is None:
        put.borrow(LAPTOP, "dtype", "bf16", "load_in_4bit", "dataloader_num_workers")
    else:
        put("load_in_4bit", way.method == "QLoRA", f"{way.method}: {_sentence(way.reason)}")
    put("per_device_train_batch_size", way.micro, _sentence(way.reason))
    put("activation_checkpointing", way.checkpointing, "Goes with the micro-batch: what is fastest of what fits.")


def _idle(machine: Machine, used: int) -> str:
    left = machine.number - used
    return f"; {count(left, 'GPU')} would have no row of the global batch" if left else ""


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


def _learn(put: _Draft, rows: Rows, way: Way, held: int, batch: int, epochs: float, used: int) -> None:
    """Length, batch, passes, rate and adapter."""
    longest, total = max(rows.lengths), sum(rows.lengths.values())
    whole = sum(number for length, number in rows.lengths.items() if length <= (way.limit or longest))
    about = "By estimate it" if rows.estimated else "It"
    put(
        "max_length", way.limit, f"{about} keeps {share(whole, total)} of the rows whole; the longest has {longest:,}."
    )
    left = rows.number - held
    steps = math.ceil(math.ceil(left / batch) * epochs)
    told = f"{count(left, 'training row')} make {count(steps, 'step')}"
    put("global_batch_size", batch, f"{told}{'' if steps >= FEW_STEPS else f', fewer than the {FEW_STEPS} advised'}.")
    put("num_train_epochs", epochs, f"For {count(left, 'training row')}.")
    put("learning_rate", 2e-4, "The base's, and the first to sweep.")
    held = f"It holds about {way.capacity / 1e6:,.0f} million tokens of answers, and there are {_answers(rows) / 1e6:,.3g}"
    more = "" if way.capacity >= _answers(rows) else ": look at full_finetune, which learns all weights"
    put("lora_r", way.rank, f"{held}{more}.")
    put.borrow(BASE, "lora_target_modules")
    if epochs >= OFTEN:
        put.borrow(FEW_ROWS, "lora_dropout")
    if rows.kind == "conversation":
        put.borrow(CHAT, "completion_only_loss", "assistant_only_loss")
    real = survey.real_token_share(rows.found["splits"]["train"], way.limit, way.micro)
    if real < PADDED:
        reason = f"In random batches {share(real, 1)} would be tokens, the rest padding."
        put("train_sampling_strategy", "group_by_length", reason)


def _task(put: _Draft, rows: Rows) -> list[str]:
    """What it is evaluated on when it has been trained; and what cannot be said of that."""
    put.borrow(BASE, "eval_steps", "save_steps")
    classes = rows.found["splits"]["train"]["classes"]
    if rows.kind == "classification":
        put("task", "classification", f"{count(len(classes), 'class')}, of {_fewest(classes)}.")
        if field := rows.found["class_field"]:
            put("label_field", field, "Its values are few and repeat.")
        if not task.alike({name: each["rows"] for name, each in classes.items()}):
            put("labels", sorted(classes), "All that there are; an answer that is none of them is refused.")
    elif rows.kind == "extraction":
        put("task", "generation", "Answers are JSON, so equal is equal; json_schema: would check their form too.")
    else:
        return [
            "Whether an answer is good: no score here tells that of free text. The loss on held-out answers is what "
            "chooses the checkpoint; read some answers (make predict), or set task: generation where equal is right."
        ]
    if put.said.get("test_file"):
        return []
    return [
        "How good it is on rows that decided nothing: the rows held out also choose the checkpoint, so their score is "
        'a little high. Name others by SET="test_file=...".'
    ]


def _fewest(classes: Mapping[str, Any]) -> str:
    numbers = [each["rows"] for each in classes.values()]
    return f"{min(numbers):,} to {max(numbers):,} rows"


def _unknown(rows: Rows, machine: Machine, way: Way, job: Job) -> list[str]:
    """What there is no evidence for, said rather than guessed."""
    name, found = job.recipe["model_name_or_path"], []
    if way.model in SIZES:
        found.append(
            "Which family is best for these rows, and whether a larger base is worth its time: no source compares them "
            "on rows like yours. make recommend with MODEL= writes another, make compare tells two runs apart."
        )
    claim = next((each for start, each in CLAIMS.items() if name.startswith(start)), None)
    letters = scripts(rows.prepared)
    other = [
        script for script, part in letters.items() if part >= FOREIGN and claim and script not in (claim[2] or letters)
    ]
    written = ", ".join(letters)
    if claim is None:
        found.append(f"Languages: the rows are in {written} letters; what {name} was made for is not on record here.")
    elif other:
        found.append(f"Languages: rows are in {', '.join(other)} letters, and {name} is for {claim[0]} ({claim[1]}).")
    elif letters:
        found.append(
            f"Languages: the rows are in {written} letters, which no count here tells languages by; {name} is for "
            f"{claim[0]} ({claim[1]}), and how well for each is not said."
        )
    if rows.estimated:
        found.append(
            f"Exact lengths: the tokenizer is not at hand, so 4 bytes count as a token, and {MARGIN:g} times as many "
            "are allowed for. make plan with FETCH=1 gets it."
        )
    if machine.gpu is None:
        found.append("How long it takes: only a finished run tells that of a CPU.")
    return found


def scripts(prepared: Prepared) -> dict[str, float]:
    """The scripts of the letters in the first rows, with their shares, of more than one in a hundred."""
    found = collections.Counter[str]()
    with (prepared.directory / "train.jsonl").open(encoding="utf-8", newline="\n") as lines:
        for _, line in zip(range(SAMPLE), lines, strict=False):
            for text in tokens.turns(json.loads(line)):
                found.update(filter(str.isalpha, text[1]))
    total = sum(found.values())
    by_script = collections.Counter[str]()
    for letter, number in found.items():
        by_script[unicodedata.name(letter, "unknown").split()[0].capitalize()] += number
    return {script: round(number / total, 3) for script, number in by_script.most_common() if number >= 0.01 * total}


def nearest(values: Mapping[str, Any]) -> str:
    """The shipped recipe that differs in the fewest keys, of those that are complete or extend the same one."""
    asked = recipes.load(BASE, {key: value for key, value in values.items() if key != "description"})
    keys = asked.values.keys() - {"description", "train_file", "labels", "data_format"}
    shipped = {name: recipes.load(name) for name in sorted(shipped_names(recipes.RECIPES))}
    return min(shipped, key=lambda name: sum(shipped[name][key] != asked[key] for key in keys))


def evidence(key: str) -> str | None:
    """What is known of a key's values, and how well; None if there is nothing."""
    found = why.entry(key)
    if found is None or key == "description":
        return None
    return f"{found.get('range') or found['because']} ({found['grade']})"


def costs(figures: Mapping[str, Any]) -> dict[str, Any]:
    """What the plan says that it takes."""
    needed, time = figures["memory"], figures["time"] or {}
    return {
        "bytes": needed["process"] or needed["allocated"],
        "fits": needed["fits"],
        "steps": figures["schedule"] and figures["schedule"]["steps"],
        "time": time.get("span"),
        "basis": time.get("basis"),
        "trainable_parameters": figures["adapter"]["trainable_parameters"],
    }


def alternatives(rows: Rows, machine: Machine, own: Mapping[str, Value], chosen: Decided) -> list[dict[str, Any]]:
    """What one other decision would cost, everything else chosen to go with it."""
    tries: dict[str, tuple[str, dict[str, Any]]] = {}
    way = chosen.way
    if way.model in SIZES and "model" not in own:
        at = SIZES.index(way.model)
        near = {"a larger base": SIZES[at - 1 : at] if at else (), "a smaller base": SIZES[at + 1 : at + 2]}
        tries |= {what: (f"MODEL={name}", {"model": name}) for what, names in near.items() for name in names}
    if machine.gpu and not {"load_in_4bit", "use_peft"} & own.keys():
        other = "LoRA in bfloat16" if way.method == "QLoRA" else "QLoRA"
        four_bit = METHODS[other]["load_in_4bit"]
        tries[other] = (f'SET="load_in_4bit={str(four_bit).lower()}"', {"load_in_4bit": four_bit})
    if way.limit and way.limit >= 128 and "max_length" not in own:
        tries["half the length"] = (f'SET="max_length={way.limit // 2}"', {"max_length": way.limit // 2})
    found = []
    for what, (words, change) in tries.items():
        fixed = {key: Value(value, "SET") for key, value in {"max_length": way.limit, **change}.items()}
        entry: dict[str, Any] = {"what": what, "words": words}
        try:
            other_way = decide(rows, machine, {**own, **fixed}, chosen.job.prepared)
            found.append(entry | costs(other_way.figures) | {"whole": other_way.values["max_length"][1]})
        except InputError as error:
            found.append(entry | {"problem": error.problems[0]})
    return found


def written(facts: Mapping[str, Any]) -> str:
    """The recipe as a file: each key below its reason and what is known about it."""
    data, machine = facts["data"], facts["machine"]
    where = f"{facts['used']} x {machine['gpu']}" if machine["gpu"] else "a CPU"
    made = f"Written by sft-recipes recommend from {data['rows']:,} rows for {where}. Nearest: {facts['nearest']}."
    lines = [editor.LINE, f"# {made}", f"extends: {BASE}"]
    for key, each in facts["recipe"].items():
        known = each["evidence"] and f"Known: {each['evidence']}"
        text = " ".join(filter(None, (each["reason"], known if each["reason"] else None)))
        lines += textwrap.wrap(text, 110, initial_indent="# ", subsequent_indent="# ")
        lines.append(recipes.dump({key: each["value"]}).rstrip())
    return "\n".join(lines) + "\n"


def render(facts: Mapping[str, Any], path: Path | None) -> Iterator[tuple[str, str]]:
    """What was found and decided, as (subject, text) for `terminal.say`; the recipe itself where no file has it."""
    data, machine, taken = facts["data"], facts["machine"], facts["costs"]
    classes = f", {count(len(data['classes']), 'class')}" if data["kind"] == "classification" else ""
    written_in = ", ".join(f"{script} {share(part, 1)}" for script, part in data["scripts"].items())
    about = "" if data["tokens_are"] == "exact" else f" (estimated, {MARGIN:g} times 4 bytes a token)"
    yield "data", f"{count(data['rows'], 'row')} of {data['file']}, {data['format']}: {data['kind']}{classes}"
    lengths = data["lengths"]
    yield (
        "",
        (
            f"half have at most {lengths['p50']:,} tokens, 99.5 % {lengths['p99.5']:,}, the longest {lengths['p100']:,}"
            f"{about}\nletters: {written_in}"
        ),
    )
    kind = f"{machine['number']} x {machine['gpu']}" if machine["gpu"] else "CPU"
    yield "machine", f"{kind}, {machine['gib']:.0f} GiB"
    yield "recipe", written(facts).removeprefix(f"{editor.LINE}\n").rstrip() if path is None else str(path)
    yield "costs", _costs(taken)
    for each in facts["alternatives"]:
        yield "instead", f"{each['what']}, {each['words']}: {each.get('problem') or _costs(each)}"
    for each in facts["findings"]:
        yield each["severity"], f"{each['rule']}: {each['message']}\ninstead: {each['instead']}"
    for each in facts["unknown"]:
        yield "not known", each
    yield "next", _next(facts, path)


def _costs(each: Mapping[str, Any]) -> str:
    time = f", {each['time']} of training" if each["time"] else ""
    return f"{fit.gib(each['bytes'])}, {count(each['steps'], 'step')}{time}"


def _next(facts: Mapping[str, Any], path: Path | None) -> str:
    if path is None:
        return "the same with NAME=my_recipe writes it"
    number = f" GPUS={facts['used']}" if facts["used"] > 1 else ""
    name = path.stem
    return f"make plan RECIPE={name}{number}\nmake rehearse RECIPE={name}\nmake train RECIPE={name}{number}"
