"""What a recipe hands through to upstream's own functions: the arguments of its schedule, and of `from_pretrained`."""

import functools
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from sft_recipes.errors import did_you_mean, listed
from sft_recipes.recipes import rates, schema

if TYPE_CHECKING:
    from sft_recipes.recipes.recipe import Recipe

WEIGHTS: frozenset[str] = frozenset(schema.DATA["of_model_init"]["weights"])
WAYS: frozenset[str] = frozenset(schema.DATA["of_model_init"]["ways"])
REFUSED: dict[str, str] = {key: why for why, keys in schema.DATA["of_model_init"]["refused"].items() for key in keys}


@functools.cache
def upstream() -> dict[str, Any]:
    """The `schedules` of transformers with their arguments, its methods of `quantisation`, and PEFT's `adapters`.

    The last are the defaults of its `LoraConfig`. A snapshot that a test keeps equal to the installed libraries, as
    `schema.upstream` is.
    """
    return schema.table("sft_recipes.recipes", "arguments.json")


def problems(recipe: "Recipe") -> Iterator[tuple[str, str]]:
    """What upstream's functions would refuse, as (key, problem)."""
    kind = recipe["lr_scheduler_type"]
    given = recipe["lr_scheduler_kwargs"] or {}
    found = [*of_schedule(kind, given)]
    for problem in found:
        yield "lr_scheduler_kwargs", f"lr_scheduler_kwargs: {problem}"
    for problem in () if found else _beside(recipe, kind, given):
        yield "lr_scheduler_kwargs", f"lr_scheduler_kwargs: {problem}"
    if kind in rates.ADAPTIVE and recipe["eval_strategy"] == "no":
        yield "lr_scheduler_type", f"lr_scheduler_type: {kind} needs evaluations, but eval_strategy is no"
    yield from _optimizer(recipe)
    for problem in _model(recipe["model_init_kwargs"] or {}):
        yield "model_init_kwargs", f"model_init_kwargs: {problem}"


def compiles(values: Mapping[str, Any]) -> bool:
    """Whether torch compiles something of the model of these values; a mode or a backend asks for it too."""
    asked = ("torch_compile", "torch_compile_backend", "torch_compile_mode")
    return any(values.get(key) for key in asked) or values.get("attn_implementation") == "flex_attention"


def of_schedule(kind: str, given: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the arguments of a schedule."""
    taken, extra = upstream()["schedules"][kind], schema.DATA["schedules"]
    limits = {key: each for each in extra["ranges"] for key in each["keys"]}
    for key, value in given.items():
        if key not in taken:
            takes = f"it takes {', '.join(taken)}" if taken else "it takes none"
            yield f"{kind} takes no {key}; {takes}"
            continue
        entry = taken[key] | {"choices": extra["choices"].get(key)}
        if found := schema.fault(key, value, entry, limits.get(key, {})):
            yield f"{key}: {found}"
    if missing := [key for key, each in taken.items() if each["required"] and given.get(key) is None]:
        yield f"{kind} needs {', '.join(missing)}; write lr_scheduler_kwargs: {{{missing[0]}: 100}}"
    # Of two ways to say the same, transformers wants one.
    lowest = ("min_lr", "min_lr_rate")
    if taken.keys() >= set(lowest) and sum(given.get(key) is not None for key in lowest) != 1:
        yield f"{kind} needs one of {' and '.join(lowest)}; write lr_scheduler_kwargs: {{min_lr_rate: 0.1}}"


def _beside(recipe: "Recipe", kind: str, given: Mapping[str, Any]) -> Iterator[str]:
    """What of a schedule's arguments, defaults included, does not go with the recipe's other values."""
    chosen = {key: given.get(key, each["default"]) for key, each in upstream()["schedules"][kind].items()}
    rate, metric = recipe["learning_rate"], recipe["metric_for_best_model"] or "loss"
    for key in ("min_lr", "lr_end"):
        if (low := chosen.get(key)) is not None and low >= rate:
            default = "" if key in given else ", the default,"
            remedy = f"write lr_scheduler_kwargs: {{{key}: {schema.short(rate / 10)}}}"
            yield f"{key} {schema.short(low)}{default} is not below learning_rate {schema.short(rate)}; {remedy}"
    if (high := chosen.get("max_lr")) is not None and high < rate:
        yield f"max_lr {schema.short(high)} is below learning_rate {schema.short(rate)}"
    wanted = "max" if schema.LARGER_IS_BETTER[metric] else "min"
    if chosen.get("mode", wanted) != wanted:
        remedy = f"write lr_scheduler_kwargs: {{mode: {wanted}}}"
        yield f"mode {chosen['mode']} takes a better {metric} for a worse one; {remedy}"


def of_optimizer(name: str, given: str) -> Iterator[str]:
    """What is wrong with the arguments of an optimizer, `key=value, key=value` as `optim_args` has them."""
    table = schema.DATA["optimizers"]
    begins = max((each for each in table["arguments"] if name.startswith(each)), key=len, default=None)
    taken = table["arguments"][begins] if begins else {}
    for pair in given.replace(" ", "").split(",") if given else ():
        key, _, value = pair.partition("=")
        if key not in taken:
            there = table["keys"].get(key)
            instead = f"write {there}: {value}" if there else f"it reads {', '.join(taken) or 'none'}"
            yield f"{name} reads no {key}; {instead}"
        elif not re.fullmatch(table["forms"][taken[key]][1], value):
            yield f"{key}: {schema.short(value)} is not {table['forms'][taken[key]][0]}"


def _optimizer(recipe: "Recipe") -> Iterator[tuple[str, str]]:
    """What the optimizer does not read, or would refuse only when it is made."""
    name = recipe["optim"]
    for problem in of_optimizer(name, recipe["optim_args"] or ""):
        yield "optim_args", f"optim_args: {problem}"
    by_modules = name.startswith(("galore", "apollo"))
    if by_modules and not recipe["optim_target_modules"]:
        yield "optim", f"optim: {name} needs optim_target_modules; write optim_target_modules: all-linear"
    if recipe["optim_target_modules"] and not by_modules:
        yield "optim_target_modules", f"optim_target_modules: {name} reads none; drop it"
    # It gets the number as it is, and would multiply the first step's learning rate by its inverse.
    if name.startswith("schedule_free") and 0 < recipe["warmup_steps"] < 1:
        yield "warmup_steps", f"warmup_steps: {name} takes no share of the steps; write their number"


def _model(given: Mapping[str, Any]) -> Iterator[str]:
    for key in given:
        if key in REFUSED:
            yield f"{key}: {REFUSED[key]}"
    quantised = given.get("quantization_config")
    if quantised is None:
        return
    known = upstream()["quantisation"]
    if not isinstance(quantised, dict):
        yield f"quantization_config: {schema.short(quantised)} is no mapping; write {{quant_method: mxfp4}}"
    elif not (quantised.get("load_in_4bit") or quantised.get("load_in_8bit")):
        method = quantised.get("quant_method")
        if method not in known:
            hint = did_you_mean(str(method), known) or f"; there are {listed(known)}"
            yield f"quantization_config: quant_method: {schema.short(method)} is no method of transformers{hint}"
