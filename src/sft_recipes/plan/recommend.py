"""From rows and a machine to a recipe: each value with what says so, what else could be had, and what nobody knows.

Nothing is counted here anew: the survey says what the rows are, `fit` and `memory` what fits, the plan what it costs,
and the evidence of a key what is known about its values. No torch.
"""

import collections
import dataclasses
import functools
import json
import math
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sft_recipes.data import look, packing, preparation, survey, tokens
from sft_recipes.data.packing import Lengths
from sft_recipes.data.preparation import Prepared
from sft_recipes.data.survey import SplitFacts, Survey
from sft_recipes.errors import InputError
from sft_recipes.models import base_model
from sft_recipes.plan import fit, memory, plan
from sft_recipes.plan import gpus as specs
from sft_recipes.plan.gpus import Spec
from sft_recipes.plan.job import Job, resolve
from sft_recipes.plan.lint.data import telling_rows
from sft_recipes.plan.lint.run import FEW_STEPS
from sft_recipes.plan.lint.speed import PADDED
from sft_recipes.recipes import recipe as recipes
from sft_recipes.recipes import task, topology, why
from sft_recipes.recipes.recipe import Overrides, Recipe, Value
from sft_recipes.recipes.shipped import shipped_names
from sft_recipes.terminal import GIB, count, counting_rows, gib, share

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
# Share of the rows that is held out: enough to tell models apart, within these bounds.
LEAST_HELD, MOST_HELD = 0.01, 0.2
# Tokens over those estimated at 4 bytes each. With the vocabulary of Qwen's models (scripts/validate_recommend.py
# --estimate), text in English, German, Polish, Russian and Chinese, code and JSON had 0.7 to 1.4 of it, Greek 1.9.
MARGIN = 1.4
# Shares of rows that a length keeps whole: all where that costs little, the evidence's percentile, and what is left
# where nothing else fits.
ALL, NEARLY_ALL, LEFT = 1.0, 0.995, (0.95, 0.75, 0.5)
# Steps whose times differ by no more are alike, as estimates go.
ALIKE = 0.1
# Share of rows that half the length has to leave whole to be told as an alternative.
HALF_KEEPS = 0.5
METHODS: dict[str, dict[str, Any]] = {"LoRA in bfloat16": {"load_in_4bit": False}, "QLoRA": {"load_in_4bit": True}}
# The lines that `LAPTOP` has for a CPU.
OF_LAPTOP = ("dtype", "bf16", "load_in_4bit", "dataloader_num_workers", "per_device_train_batch_size")
# Ranks that shipped recipes have, and the bits that a parameter of an adapter holds, for the 1 bit of a token of an
# answer (evidence of lora_r).
RANKS, BITS = (16, 64), 2
# Letters are counted in so many rows, and a script is one of the rows' own from this share on.
SAMPLE, OWN_SCRIPT = 1000, 0.05
# What the authors say of languages: by the beginning of the base's name, the claim, where, and the scripts of those
# that are listed; None where they are too many to list.
CLAIMS: dict[str, tuple[str, str, tuple[str, ...] | None]] = {
    "Qwen/Qwen3": ("119 languages and dialects", "arXiv:2505.09388v1, abstract", None),
    "meta-llama/Llama-3": (
        "English, German, French, Italian, Portuguese, Hindi, Spanish and Thai",
        "its model card",
        ("Latin", "Devanagari", "Thai"),
    ),
}
# Findings that are no warnings and say what the rows are too few for.
TOLD = ("small-evaluation-set", "class-imbalance", "contradictory-answers")
TASK = ("task", "label_field", "labels")
UNTOLD_FAMILY = (
    "Which family is best for these rows, and whether a larger base is worth its time: no source compares them on "
    "rows like yours. Try MODEL=, and tell the runs apart by make compare."
)
UNTOLD_TEXT = (
    "Whether a free answer is good: no score here tells. The loss on held-out answers chooses the checkpoint; read "
    'some by make predict, or write SET="task=generation" where only the same answer is right.'
)
UNTOLD_TEST = (
    "How good it is on rows that decided nothing: those held out also choose the checkpoint, so their score is a "
    'little high. SET="test_file=..." names others.'
)


@dataclasses.dataclass(frozen=True)
class Machine:
    """What trains."""

    gpu: Spec | None  # None where the CPU trains
    number: int
    gib: float  # of one GPU, or of the host

    def __str__(self) -> str:
        return f"{self.number} x {self.gpu.name} of {self.gib:.0f} GiB" if self.gpu else f"CPU with {self.gib:.0f} GiB"


@dataclasses.dataclass(frozen=True)
class Rows:
    """What is known of the rows before anything is decided; none are held out yet, unless a file says which."""

    data: str
    prepared: Prepared
    found: Survey

    @property
    def train(self) -> SplitFacts:
        return self.found["splits"]["train"]

    @property
    def margin(self) -> float:
        """How many times the tokens that were counted are allowed for."""
        return 1.0 if self.found["tokens_are"] == "exact" else MARGIN

    @property
    def lengths(self) -> Lengths:
        """Training and validation rows by tokens."""
        counts = collections.Counter[int]()
        for name in {"train", "validation"} & self.found["splits"].keys():
            for length, rows in self.found["splits"][name]["lengths"].items():
                counts[math.ceil(int(length) * self.margin)] += rows
        return dict(counts)

    @property
    def answers(self) -> float:
        """Tokens of the answers."""
        return self.train["supervised_tokens"] * self.margin

    @functools.cached_property
    def kind(self) -> str:
        """What they are for, as `make new` sees it too."""
        return look.kind(self.prepared, self.found)

    def whole(self, limit: int | None) -> float:
        """The share of rows that a length leaves whole."""
        kept = sum(rows for length, rows in self.lengths.items() if limit is None or length <= limit)
        return kept / sum(self.lengths.values())

    def length(self, part: float) -> int:
        """The length that leaves a share of the rows whole: a multiple of 64."""
        return -(-packing.percentile(self.lengths, part) // 64) * 64


@dataclasses.dataclass(frozen=True)
class Way:
    """A model, a method and a length that fit, with how they are computed."""

    model: str | None  # of models/; None for one that the user names otherwise
    method: str
    limit: int | None
    rank: int
    capacity: float  # tokens of answers that adapters of that rank hold
    accel: str
    micro: int
    checkpointing: bool
    seconds: float
    reason: str  # for these rows in a micro-batch
    others: str  # the other methods


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
    """A recipe for rows on a machine, as facts (docs/recommend.md).

    Raises:
        InputError: The rows cannot be read, there is no such GPU, or nothing fits.
    """
    machine, own = machine_of(gpu, number), recipes.parse_overrides(overrides)
    rows = rows_of(data, own)
    chosen = decide(rows, machine, own)
    return facts_of(rows, machine, chosen, [*alternatives(rows, machine, own, chosen)])


def facts_of(rows: Rows, machine: Machine, chosen: Decided, others: list[dict[str, Any]]) -> dict[str, Any]:
    """What `recommend` returns."""
    findings = chosen.figures["findings"]
    return {
        "schema": SCHEMA,
        "data": {
            "file": rows.data,
            "rows": rows.train["rows"],
            "format": rows.prepared.format,
            "kind": rows.kind,
            "tokens_are": rows.found["tokens_are"],
            "lengths": {f"p{part:g}": packing.percentile(rows.lengths, part / 100) for part in (50, 99.5, 100)},
            "classes": {name: each["rows"] for name, each in rows.train["classes"].items()},
            "scripts": scripts(rows.prepared),
        },
        "machine": {"name": str(machine), "gpu": machine.gpu and machine.gpu.name, "used": chosen.used},
        "nearest": nearest({key: value for key, (value, _) in chosen.values.items()}),
        "recipe": {
            key: {"value": value, "reason": reason, "known": known(key, value)}
            for key, (value, reason) in chosen.values.items()
        },
        "costs": costs(rows, chosen),
        "alternatives": others,
        "findings": [each for each in findings if each["severity"] != "info" or each["rule"] in TOLD],
        "blocking": chosen.figures["blocking"],
        "unknown": chosen.unknown,
    }


def machine_of(gpu: str | None, number: int | None) -> Machine:
    """The machine of that name, or this one.

    Raises:
        InputError: Nothing is known of that GPU, or it has no bfloat16, which the recipes compute in.
    """
    visible = topology.visible_gpus() if gpu is None else []
    if (gpu.strip().lower() in CPUS) if gpu is not None else not visible:
        if gpu is None:
            topology.refuse_fault()
        if number is not None:
            raise InputError(f"GPUS={number} says nothing of a CPU; drop it, or name the kind of GPU by GPU=")
        import psutil

        return Machine(None, 1, psutil.virtual_memory().total / GIB)
    spec = specs.find(gpu) if gpu is not None else specs.of(visible[0])
    if spec is None:
        raise InputError(f"no figures for this machine's {visible[0].name}; name one like it by GPU=, or GPU=cpu")
    if spec.bf16_tflops is None:
        raise InputError(
            f"{spec.name} has no bfloat16, which every recipe for a GPU computes in, and nothing is known here of "
            "float16; name another GPU, or GPU=cpu"
        )
    return Machine(spec, number or len(visible) or 1, spec.memory_bytes / GIB)


def rows_of(data: str, own: Mapping[str, Value]) -> Rows:
    """The rows, read as the user says, with none held out.

    Raises:
        InputError: They cannot be read, with everything that is wrong with them.
    """
    if "use_peft" in own and own["use_peft"].value is False:
        raise InputError(
            "SET: use_peft: false trains all weights, and what is chosen here are adapters; for that, begin with "
            "make new FROM=full_finetune"
        )
    given = {**own, "train_file": Value(data, "SET"), "dataset_name": Value(None, "SET")}
    recipe = recipes.load(BASE, given)
    source = preparation.source_of(recipe) | {"validation_split_size": 0.0}
    with counting_rows() as on_rows:
        try:
            prepared = preparation.prepare(**source, cache=preparation.CACHE, on_rows=on_rows)
        except InputError:
            # Answers that are numbers are refused unless they are classes; what else is wrong is wrong again.
            source["task"] = "classification"
            prepared = preparation.prepare(**source, cache=preparation.CACHE, on_rows=on_rows)
        return Rows(data, prepared, survey.survey(prepared, tokens.find_tokenizer(recipe), on_progress=on_rows))


def decide(rows: Rows, machine: Machine, own: Mapping[str, Value], given: Prepared | None = None) -> Decided:
    """The recipe for rows on a machine; `given` are the rows with those held out, where they are at hand.

    Raises:
        InputError: Nothing fits, or what the user has decided contradicts itself.
    """
    put = _Draft({key: item.value for key, item in own.items() if key not in ("model", "train_file", "dataset_name")})
    put("train_file", rows.data, f"{count(rows.train['rows'], 'row')}.")
    put("data_format", rows.prepared.format, "What its columns are; a file of another form is refused, not guessed.")
    left = rows.train["rows"] - _hold_out(put, rows)
    batch, epochs, used = amount(left, machine.number)
    batch, epochs = put.said.get("global_batch_size", batch), put.said.get("num_train_epochs", epochs)
    way = choose(rows, machine, own, batch, used)
    _place(put, machine, own, way, used)
    _learn(put, rows, way, left, batch, epochs)
    unknown = _task(put, rows)
    job = put.job(machine, used, given)
    if ours := [key for key in TASK if key in put.values and key not in put.said]:
        try:
            _ = job.evaluation
        except InputError as error:
            unknown = [f"How good it is at its task, until this is put right: {error.problems[0]}."]
            for key in ours:
                del put.values[key]
            job = put.job(machine, used, job.prepared)
    where = f"{used} x {machine.gpu.name}" if machine.gpu else "a CPU"
    base = job.recipe["model_name_or_path"].rpartition("/")[2]
    idea = f"Recommended for {Path(rows.data).name} on {where}; {rows.kind}, {base}, {way.method}."
    figures = plan.figures_of(job)
    unknown += _unknown(rows, way, job, figures["time"] or {})
    return Decided({"description": (idea, ""), **put.values}, way, used, job, figures, unknown)


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

    def job(self, machine: Machine, used: int, given: Prepared | None) -> Job:
        """The job of what is there, planned for the machine."""
        for key in self.said:
            self(key, None, "")
        words = {key: value for key, (value, _) in self.values.items()}
        place: dict[str, Any] = {"processes": used, "gpu": machine.gpu.name} if machine.gpu else {}
        job = resolve(BASE, overrides=words, planned=True, **place)
        job.given = given
        return job


def _hold_out(put: _Draft, rows: Rows) -> int:
    """How many rows training does not see."""
    number = rows.train["rows"]
    part = min(MOST_HELD, max(LEAST_HELD, math.ceil(100 * telling_rows() / number) / 100))
    reason = f"{telling_rows()} rows tell models apart that differ by 5 points"
    reason += "." if part * number >= telling_rows() else f", and are more than a fifth of {number:,}."
    if not put.said.get("validation_file"):
        put("validation_split_size", part, reason)
    return round(number * put.values.get("validation_split_size", (0, ""))[0])


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
    whole, near = rows.length(ALL), rows.length(NEARLY_ALL)
    rounds: list[list[Any]] = [[whole, near] if whole <= 2 * near else [near], *([rows.length(each)] for each in LEFT)]
    if "max_length" in own:
        rounds = [[own["max_length"].value]]
    models: list[str | None] = [*SIZES[SIZES.index(USUAL) :]] if machine.gpu else [SMALLEST]
    if "model" in own or "model_name_or_path" in own:
        models = [own["model"].value if "model" in own else None]
    missed = ""
    for limits in rounds:
        for model in models:
            for limit in dict.fromkeys(limits):
                tried = [*_ways(rows, machine, own, model, limit, batch, used)]
                if ways := [each for each in tried if isinstance(each, Way)]:
                    # The first, where both fit, leaves the weights as they are.
                    best = min(ways, key=lambda each: each.seconds * (1 if each is ways[0] else 1 + ALIKE))
                    others = [_slower(each, best) if isinstance(each, Way) else each for each in tried if each != best]
                    return dataclasses.replace(best, others="; ".join(others))
                missed = next(str(each) for each in tried)
    raise InputError(f"nothing that was tried fits {machine}; the last: {missed}")


def _slower(way: Way, best: Way) -> str:
    more = way.seconds - best.seconds
    return f"a step of {way.method} takes {share(abs(more), best.seconds)} {'longer' if more > 0 else 'less'}"


def _ways(
    rows: Rows, machine: Machine, own: Mapping[str, Value], model: str | None, limit: int | None, batch: int, used: int
) -> Iterator[Way | str]:
    """Each method with which a model fits at a length, or why it does not."""
    methods, asked = METHODS, {"train_file": rows.data, "max_length": limit, "global_batch_size": batch}
    if machine.gpu is None:
        lines = recipes.read(recipes.file_of(LAPTOP))
        methods = {"LoRA in float32": {key: lines[key].value for key in OF_LAPTOP}}
    elif "load_in_4bit" in own:
        methods = {name: each for name, each in METHODS.items() if each["load_in_4bit"] == own["load_in_4bit"].value}
    named = {} if model is None else {"model": Value(model, "SET")}
    for method, words in methods.items():
        # `fit` looks for the micro-batch, and one row can be shared out whatever the number of GPUs.
        recipe = recipes.load(BASE, {**asked, "per_device_train_batch_size": 1, **words, **own, **named})
        found = base_model.find(recipe["model_name_or_path"], str(recipe["model_revision"]))
        if found is None:
            raise InputError(plan.without_config(recipe))
        # No longer than the model was made for.
        limit = limit and min(limit, found.positions[0] or limit)
        lengths = collections.Counter[int]()
        for length, number in rows.lengths.items():
            lengths[min(length, limit or length)] += number
        made = found.adapters(base_model.Asked.of(recipe))
        ranks = [own["lora_r"].value] if "lora_r" in own else RANKS
        rank = next((each for each in ranks if BITS * made.parameters(each) >= rows.answers), ranks[-1])
        recipe = recipe.derive(lora_r=(rank, ""), max_length=(limit, ""))
        if machine.gpu:
            kept = survey.at_length(rows.train, limit)
            part = kept["supervised_tokens"] / (kept["tokens"] or 1)
            run = _on_gpus(fit.fit(recipe, found, dict(lengths), part, used, machine.gib))
        else:
            run = _on_cpu(recipe, found, max(lengths), machine)
        if isinstance(run, str):
            yield run
        else:
            yield Way(model, method, limit, rank, BITS * made.parameters(rank), *run, others="")


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
        if needed <= memory.HEADROOM * machine.gib * GIB and recipe["global_batch_size"] % size == 0:
            reason = f"with {count(size, 'row')} of up to {longest:,} tokens a process takes {gib(needed)}"
            return "cpu", size, checkpointing, 0.0, reason
    return f"one row of {longest:,} tokens takes a process of {gib(needed)}"


def _place(put: _Draft, machine: Machine, own: Mapping[str, Value], way: Way, used: int) -> None:
    """Base, method, and how it is computed."""
    if way.model is not None:
        reason = f"The largest of the presets' family up to {USUAL}, their own, that fits {machine}."
        if "model" in own or machine.gpu is None:
            reason = "You chose it." if "model" in own else "The smallest of the presets' family; a CPU has no time."
        for key, item in recipes.read_model(way.model).items():
            if key not in ("description", "lora_target_modules"):
                put(key, item.value, reason if key == "model_name_or_path" else f"As models/{way.model}.yaml says.")
    idle = f"; a batch has no rows for {count(machine.number - used, 'more GPU')}" if machine.number > used else ""
    put("accelerate_config", way.accel, f"The simplest in which it fits {machine}{idle}.")
    if machine.gpu is None:
        put.borrow(LAPTOP, *OF_LAPTOP[:-1])
    else:
        put("load_in_4bit", way.method == "QLoRA", _sentence(way.others or "the only one that was asked for"))
    put("per_device_train_batch_size", way.micro, _sentence(way.reason))
    put("activation_checkpointing", way.checkpointing, "Goes with that micro-batch: the fastest of what fits.")


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


def _learn(put: _Draft, rows: Rows, way: Way, left: int, batch: int, epochs: float) -> None:
    """Length, batch, passes, rate and adapter."""
    estimate = "By estimate, " if rows.margin > 1 else ""
    longest = f"the longest has {max(rows.lengths):,} tokens"
    put("max_length", way.limit, f"{estimate}{share(rows.whole(way.limit), 1)} of the rows stay whole; {longest}.")
    steps = math.ceil(math.ceil(left / batch) * epochs)
    few = "" if steps >= FEW_STEPS else f", fewer than the {FEW_STEPS} that are advised: the rows are too few"
    put("global_batch_size", batch, f"About {steps:,} steps{few}.")
    put("num_train_epochs", epochs, f"About {left:,} training rows.")
    put("learning_rate", 2e-4, "The rate of LoRA's and QLoRA's own runs; no better one is known for your rows.")
    holds = f"Holds about {way.capacity / 1e6:,.0f} million tokens of answers; yours have about {rows.answers:,.0f}"
    more = "" if way.capacity >= rows.answers else ", so full_finetune may learn more"
    put("lora_r", way.rank, f"{holds}{more}.")
    put.borrow(BASE, "lora_target_modules")
    if epochs >= OFTEN:
        put.borrow(FEW_ROWS, "lora_dropout")
    if rows.kind == "conversation":
        put.borrow(CHAT, "completion_only_loss", "assistant_only_loss")
    real = survey.real_token_share(rows.train, way.limit, way.micro)
    if real < PADDED:
        reason = f"Only {share(real, 1)} of random batches would be tokens, the rest padding"
        by_length = survey.real_token_share(rows.train, way.limit, way.micro, batch)
        if by_length >= PADDED:
            put("sort_within_batch", True, f"{reason}; sorted within a step, {share(by_length, 1)}.")
        else:
            put("train_sampling_strategy", "group_by_length", f"{reason}.")


def _task(put: _Draft, rows: Rows) -> list[str]:
    """What it is evaluated on when it has been trained; and what that cannot say."""
    put.borrow(BASE, "eval_steps", "save_steps")
    if classes := look.classes(rows.prepared, rows.found):
        least, most = min(classes.rows.values()), max(classes.rows.values())
        put("task", "classification", f"{count(len(classes.rows), 'class')} of {least:,} to {most:,} rows.")
        if classes.field:
            put("label_field", classes.field, "The field of the answers that has few values.")
        if not task.alike(classes.rows):
            put("labels", sorted(classes.rows), "All that there are; an answer that is none of them is refused.")
    elif rows.kind == "extraction":
        put("task", "generation", "The answers are JSON, so the same answer is right; json_schema: checks its form.")
    if "task" not in put.values and "task" not in put.said:
        return [UNTOLD_TEXT]
    return [] if put.said.get("test_file") else [UNTOLD_TEST]


def _unknown(rows: Rows, way: Way, job: Job, time: Mapping[str, Any]) -> Iterator[str]:
    """What there is no evidence for, said rather than guessed."""
    if way.model in SIZES:
        yield UNTOLD_FAMILY
    name, letters = job.recipe["model_name_or_path"], scripts(rows.prepared)
    claim, where, known_scripts = next(
        (each for start, each in CLAIMS.items() if name.startswith(start)), ("", "", ())
    )
    own = [script for script, part in letters.items() if part >= OWN_SCRIPT]
    strange = own if known_scripts is None else [script for script in own if script not in known_scripts]
    said = f"{name} is for {claim} ({where})" if claim else f"what {name} was made for is not on record here"
    if strange == own and known_scripts is not None and claim:
        yield f"Languages: the rows are in {' and '.join(own)} letters, which are none of those that {said}."
    elif own:
        yield f"How well it knows your language, of {' and '.join(own)} letters: {said}, and no source measures yours."
    if rows.margin > 1:
        yield (
            "Exact lengths: the tokenizer is not at hand, so 4 bytes count as a token, and "
            f"{MARGIN:g} times as many are allowed for. make plan with FETCH=1 gets it."
        )
    if time.get("seconds") is None:
        yield f"How long it takes: {time.get('basis', 'there are no steps')}."


def scripts(prepared: Prepared) -> dict[str, float]:
    """The scripts of the letters in the first rows, with their shares, from one in a hundred."""
    letters, found = collections.Counter[str](), collections.Counter[str]()
    with (prepared.directory / "train.jsonl").open(encoding="utf-8", newline="\n") as lines:
        for _, line in zip(range(SAMPLE), lines, strict=False):
            for _, text in tokens.written(json.loads(line)):
                letters.update(filter(str.isalpha, text))
    for letter, number in letters.items():
        found[unicodedata.name(letter, "unknown").split()[0].capitalize()] += number
    total = letters.total()
    return {script: round(number / total, 3) for script, number in found.most_common() if number >= 0.01 * total}


def nearest(values: Mapping[str, Any]) -> str:
    """The shipped recipe that says otherwise in the fewest of these keys."""
    asked = recipes.load(BASE, {key: value for key, value in values.items() if key != "description"})
    keys = asked.values.keys() - {"description", "train_file", "labels", "data_format"}
    shipped = {name: recipes.load(name) for name in sorted(shipped_names(recipes.RECIPES))}
    return min(shipped, key=lambda name: sum(shipped[name][key] != asked[key] for key in keys))


def known(key: str, value: Any) -> str | None:
    """What is known of a key's values, and how well; None where that says nothing about this one."""
    found = why.entry(key) or {}
    said = found.get("range") or (found.get("because") if found.get("value") == value else None)
    return said and f"{said} ({found['grade']})"


def costs(rows: Rows, chosen: Decided) -> dict[str, Any]:
    """What the plan says that it takes."""
    figures, needed, time = chosen.figures, chosen.figures["memory"], chosen.figures["time"] or {}
    return {
        "method": chosen.way.method,
        "max_length": chosen.way.limit,
        "whole": round(rows.whole(chosen.way.limit), 4),
        "bytes": needed["process"] or needed["allocated"],
        "fits": needed["fits"],
        "steps": figures["schedule"] and figures["schedule"]["steps"],
        "time": time.get("span"),
        "basis": time.get("basis"),
    }


def alternatives(rows: Rows, machine: Machine, own: Mapping[str, Value], chosen: Decided) -> Iterator[dict[str, Any]]:
    """What one other decision would cost, everything else chosen to go with it."""
    way, tries = chosen.way, list[tuple[str, str, dict[str, Any]]]()
    if way.model in SIZES and "model" not in own:
        at = SIZES.index(way.model)
        near = [("larger base", SIZES[at - 1])] if at else []
        near += [("smaller base", name) for name in SIZES[at + 1 : at + 2]]
        tries += [(what, f"MODEL={name}", {"model": name}) for what, name in near]
    if machine.gpu and "load_in_4bit" not in own:
        (other,) = METHODS.keys() - {way.method}
        four_bit = METHODS[other]["load_in_4bit"]
        tries.append((other, f'SET="load_in_4bit={str(four_bit).lower()}"', {"load_in_4bit": four_bit}))
    half = (way.limit or 0) // 2
    if "max_length" not in own and rows.whole(half) >= HALF_KEEPS:
        pinned = {"load_in_4bit": way.method == "QLoRA"} if machine.gpu else {}
        tries.append(("half the length", f'SET="max_length={half}"', {"max_length": half, **pinned}))
    for what, words, change in tries:
        fixed = {key: Value(value, "SET") for key, value in {"max_length": way.limit, **change}.items()}
        try:
            made = costs(rows, decide(rows, machine, {**own, **fixed}, chosen.job.prepared))
        except InputError as error:
            made = {"problem": error.problems[0]}
        yield {"what": what, "words": words, **made}
