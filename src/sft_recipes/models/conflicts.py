"""What a recipe asks of its base model that the libraries refuse: a plan says it, and a training refuses it by it."""

import functools
from collections.abc import Iterator

from sft_recipes.models.base_model import Asked, Model, dequantised
from sft_recipes.recipes.conflicts import Conflict
from sft_recipes.recipes.recipe import Recipe


def of_model(model: Model, recipe: Recipe) -> Iterator[Conflict]:
    """What cannot be had of this model, whatever the rows."""
    if not model.config.get("architectures"):
        none = f"{model.source} names no architectures, by which SFTTrainer chooses the class that it loads"
        yield Conflict("model-class", none, "write the class that it was saved from, as architectures: [...]")
    if why := model.without.get(recipe["attn_implementation"] or ""):
        yield Conflict("attention-unsupported", why.partition(". ")[0], "set attn_implementation: eager")
    yield from of_stored(model, recipe)
    if recipe["use_peft"]:
        yield from of_adapter(model, recipe)
    elif model.beyond_text:
        yield Conflict(
            "part-without-gradient",
            f"{model.name} is a model for more than text, and rows of text leave part of it without a gradient",
            "train adapters (use_peft: true), which stay on its language part, or choose a checkpoint of text alone",
        )


def of_rows(model: Model, longest: int) -> Iterator[Conflict]:
    """Rows of more tokens than the model has positions for, or was made for."""
    number, ends = model.positions
    if number is None or longest <= number:
        return
    rows = f"rows have up to {longest:,} tokens, and {model.name}"
    shorter = f"set max_length to {number:,} at most"
    if ends:
        yield Conflict("positions-missing", f"{rows} has positions for {number:,} alone", shorter)
    else:
        known = f"{rows} was made for {number:,}: nothing beyond is known to it, and nothing refuses it"
        yield Conflict("beyond-positions", known, f"{shorter}, or extend the model on purpose")


def of_adapter(model: Model, recipe: Recipe) -> Iterator[Conflict]:
    """Names that match nothing, the output embedding, and what PEFT says it does not make."""
    if "lm_head" in (recipe["lora_target_modules"] or []):
        head = "lora_target_modules names lm_head, which SFTTrainer refuses"
        yield Conflict("target-head", head, "drop it; [all-linear] leaves it out")
    made = model.adapters(Asked.of(recipe))
    layers = sorted({group.path.rpartition(".")[2] for group in model.groups if group.kind == "linear"})
    for key, name in made.unmatched:
        hint = "; a list is written [q_proj, v_proj]" if "," in name else ""
        remedy = f"its linear layers are {', '.join(layers)}; or [all-linear], alone"
        if key == "lora_target_parameters":
            tensors = sorted({group.path for group in model.groups if group.kind == "other" and len(group.shape) == 3})
            remedy = f"its experts are {', '.join(tensors)}" if tensors else "it has no experts; drop the key"
        elif key == "lora_modules_to_save":
            remedy = "name modules of it, such as embed_tokens, or drop the key"
        yield Conflict("target-unmatched", f"{key}: {name} matches no module of {model.name}{hint}", remedy)
    copied = ", ".join(sorted({each.path.rpartition(".")[2] for each in made.layers if each.copied}))
    alone = " and lora_target_parameters: null" if recipe["lora_target_parameters"] else ""
    attention = f"adapt attention alone, as lora_target_modules: [q_proj, v_proj]{alone} does in most families"
    if copied and recipe["init_lora_weights"] == "orthogonal":
        no = f"init_lora_weights: orthogonal cannot be drawn for {copied}, which are no linear layers"
        yield Conflict("adapter-refused", no, f"set init_lora_weights: gaussian; or {attention}")
    if made.refused:
        instead = "other lora_target_modules"
        if copied:
            instead = f"lora_dropout: 0 and use_dora: false, as adapters on {copied} need; or {attention}"
        yield Conflict("adapter-refused", f"PEFT makes no such adapter: {made.refused.rstrip('.')}", instead)


# As transformers' BitsAndBytesConfig names them in a config.json, with its defaults.
BITSANDBYTES = {
    "bnb_4bit_quant_type": ("bnb_4bit_quant_type", "fp4"),
    "use_bnb_nested_quant": ("bnb_4bit_use_double_quant", False),
    "dtype": ("bnb_4bit_compute_dtype", "float32"),
}


def of_stored(model: Model, recipe: Recipe) -> Iterator[Conflict]:
    """How a checkpoint that is stored quantised is asked for."""
    stored = model.config.get("quantization_config") or {}
    method = stored.get("quant_method")
    asked = {key: bool(recipe[key]) for key in ("load_in_4bit", "load_in_8bit")}
    if method is None or dequantised(recipe.upstream()):
        return
    conflict = functools.partial(Conflict, "checkpoint-quantised")
    if method == "bitsandbytes":
        has = {key: bool(stored.get(key)) for key in asked}
        if recipe["load_in_4bit"]:
            for key, theirs in BITSANDBYTES.items():
                has[key], asked[key] = stored.get(theirs[0], theirs[1]), recipe[key]
        wrong = [key for key in has if has[key] != asked[key]]
        if wrong:
            yield conflict(
                f"{model.name} is stored quantised by bitsandbytes, with "
                + ", ".join(f"{key}: {str(has[key]).lower()}" for key in wrong),
                "write the same, or choose its unquantised checkpoint",
            )
    elif any(asked.values()):
        yield conflict(
            f"{model.name} is quantised already ({method}), so bitsandbytes cannot quantise it again",
            "choose its unquantised checkpoint, or set load_in_4bit: false",
        )
