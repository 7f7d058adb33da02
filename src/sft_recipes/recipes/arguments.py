"""What a recipe hands through to upstream's own functions: the arguments of its schedule, and of `from_pretrained`."""

import functools
import json
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import TYPE_CHECKING, Any

from sft_recipes.errors import did_you_mean, listed
from sft_recipes.recipes import schema

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
    text = resources.files("sft_recipes.recipes").joinpath("arguments.json").read_text(encoding="utf-8")
    return json.loads(text)


def problems(recipe: "Recipe") -> Iterator[tuple[str, str]]:
    """What upstream's functions would refuse, as (key, problem)."""
    kind = recipe["lr_scheduler_type"]
    given = recipe["lr_scheduler_kwargs"] or {}
    found = [*of_schedule(kind, given)]
    for problem in found:
        yield "lr_scheduler_kwargs", f"lr_scheduler_kwargs: {problem}"
    if not found and kind == "polynomial" and (end := given.get("lr_end", 1e-7)) >= recipe["learning_rate"]:
        rate = schema.short(recipe["learning_rate"])
        yield (
            "lr_scheduler_kwargs",
            f"lr_scheduler_kwargs: lr_end {schema.short(end)} is not below learning_rate {rate}",
        )
    if kind in ("reduce_lr_on_plateau", "greedy") and recipe["eval_strategy"] == "no":
        yield "lr_scheduler_type", f"lr_scheduler_type: {kind} needs evaluations, but eval_strategy is no"
    for problem in _model(recipe["model_init_kwargs"] or {}):
        yield "model_init_kwargs", f"model_init_kwargs: {problem}"


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
