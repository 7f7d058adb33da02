"""What two recipes do differently: keys with their reasons, and what follows from them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Unpack

from sft_recipes.plan import plan
from sft_recipes.plan.job import Where, resolve
from sft_recipes.recipes import task, why
from sft_recipes.recipes.recipe import Recipe
from sft_recipes.recipes.schema import as_yaml
from sft_recipes.terminal import gib, share

SCHEMA = 1
# Keys that change one thing about what is learned. What is in none of these changes where or how fast it is learned
# (micro-batch, checkpointing of activations, workers), or what is written down.
IDEAS = {
    "base model": ("model_name_or_path", "model_revision", "chat_template_path"),
    "earlier adapter": ("adapter_name_or_path", "adapter_revision"),
    "precision": (
        "load_in_4bit",
        "load_in_8bit",
        "bnb_4bit_quant_type",
        "use_bnb_nested_quant",
        "dtype",
        "adapter_dtype",
        "bf16",
        "fp16",
    ),
    "data": (
        "train_file",
        "stopping_strategy",
        "validation_file",
        "validation_split_size",
        "test_split_size",
        "dataset_name",
        "dataset_config",
        "data_format",
        "data_columns",
        "drop_reasoning",
    ),
    "evaluation": task.KEYS,
    "length": ("max_length", "packing", "packing_strategy"),
    "loss": ("completion_only_loss", "assistant_only_loss", "loss_type", "mask_empty_reasoning"),
    "rank": ("lora_r",),
    "scale of updates": ("lora_alpha", "use_rslora"),
    "adapted layers": ("lora_target_modules", "lora_target_parameters", "use_peft", "lora_modules_to_save"),
    "regularisation": ("lora_dropout", "weight_decay", "neftune_noise_alpha", "label_smoothing_factor"),
    "learning rate": ("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs"),
    "warm-up": ("warmup_steps",),
    "epochs": ("num_train_epochs", "max_steps"),
    "global batch": ("global_batch_size",),
    "optimizer": ("optim", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"),
    "stopping": ("early_stopping_patience", "early_stopping_threshold", "load_best_model_at_end"),
    "seed": ("seed", "data_seed"),
}


def diff(a: str | Path, b: str | Path, **where: Unpack[Where]) -> dict[str, Any]:
    """The differences of recipe `b` from recipe `a`, both planned alike.

    Raises:
        InputError: Either recipe, or the data, is wrong.
    """
    jobs = [resolve(name, planned=True, **where) for name in (a, b)]
    changed = list(_changed(*(job.recipe for job in jobs)))
    ideas = [idea for idea, keys in IDEAS.items() if any(each["key"] in keys for each in changed)]
    figures = [quantities(plan.figures_of(job)) for job in jobs]
    return {
        "schema": SCHEMA,
        "a": str(a),
        "b": str(b),
        "changed": changed,
        "ideas": ideas,
        "derived": [
            {"quantity": quantity, "a": one, "b": figures[1][quantity]}
            for quantity, one in figures[0].items()
            if one != figures[1][quantity]
        ],
    }


def quantities(figures: dict[str, Any]) -> dict[str, str | None]:
    """What follows from a recipe, as people read it; None where it is not known."""
    steps, adapter, memory = figures["schedule"], figures["adapter"], figures["memory"]
    tokens = figures["batch"].get("tokens_per_step")
    return {
        "trainable parameters": f"{adapter['trainable_parameters']:,}" if adapter else None,
        "accumulation": str(figures["batch"]["accumulation"]),
        "steps": f"{steps['steps']:,}" if steps else None,
        "warm-up share": share(steps["warmup_steps"], steps["steps"]) if steps else None,
        "highest learning rate": f"{steps['peak_learning_rate']:.3g}" if steps else None,
        "tokens a step": f"{tokens:,}" if tokens else None,
        "peak memory": gib(memory["process"] or memory["allocated"]) if memory else None,
        "time": figures["time"]["span"] if figures["time"] else None,
    }


def render(figures: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The differences, as (subject, text) for `terminal.say`."""
    yield "recipes", f"{figures['a']} -> {figures['b']}"
    for each in figures["changed"]:
        text = f"{each['key']}: {as_yaml(each['a'])} -> {as_yaml(each['b'])}"
        yield "changed", text + (f"\n{each['reason']}" if each["reason"] else "")
    if not figures["changed"]:
        yield "changed", "nothing"
    for each in figures["derived"]:
        yield "so", f"{each['quantity']}: {each['a'] or 'not known'} -> {each['b'] or 'not known'}"
    ideas = figures["ideas"]
    if len(ideas) > 1:
        yield (
            "warning",
            f"{len(ideas)} ideas changed at once ({', '.join(ideas)}): a difference between the two cannot be put "
            "down to any one of them. Change one, or run the steps between",
        )
    elif ideas:
        yield "idea", f"one: {ideas[0]}"
    elif figures["changed"]:
        yield "idea", "none: the same is learned"


def _changed(a: Recipe, b: Recipe) -> Iterator[dict[str, Any]]:
    for key in [*a.values, *(key for key in b.values if key not in a.values)]:
        if key not in ("description", "extends") and a[key] != b[key]:
            item = b.values.get(key) or a.values[key]
            yield {"key": key, "a": a[key], "b": b[key], "origin": item.origin, "reason": why.comment(item.origin)}
