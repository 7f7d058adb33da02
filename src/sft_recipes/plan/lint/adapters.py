"""Rules about quantisation, adapters and what they attach to, and the ranges documented for their values."""

import math

from sft_recipes.models import base_model
from sft_recipes.models.base_model import Asked
from sft_recipes.plan.lint import Case, Found
from sft_recipes.recipes.schema import as_yaml
from sft_recipes.terminal import share

BILLION = 10**9
# The standard deviation that transformers initialises the linear layers of Qwen3, Llama and most others with.
TYPICAL_WEIGHT = 0.02
# Beyond these, rows are learnt by heart; and beyond these rows a step, an adapter learns less from each.
MANY_EPOCHS, MANY_ROWS = 5, 128


def stored_quantised(case: Case) -> Found:
    stored = (case.model.config.get("quantization_config") or {}) if case.model else {}
    method = stored.get("quant_method")
    if case.model is None or method in (None, "bitsandbytes") or base_model.dequantised(case.recipe.upstream()):
        return
    bits = case.model.stored_bits
    counted = f"counted with {bits:.2g} bits a weight" if bits else "its memory is counted as if it were not"
    yield {"method": method, "counted": counted}


def four_bit_coverage(case: Case) -> Found:
    if case.model is not None and case.recipe["load_in_4bit"]:
        whole, left = case.model.elements(), case.model.elements("other")
        if left > whole / 5:
            yield {"linear": share(case.model.elements("linear"), whole), "left": share(left, whole)}


def compute_dtype(case: Case) -> Found:
    if case.recipe["load_in_4bit"] and not case.topology.use_cpu and case.recipe["dtype"] != "bfloat16":
        yield {}


def precision_mixed(case: Case) -> Found:
    computes = {"float16": "bf16", "bfloat16": "fp16"}.get(case.recipe["dtype"])
    if computes and case.recipe[computes]:
        yield {"computes": computes, "matching": {"bf16": "bfloat16", "fp16": "float16"}[computes]}


def attention_only_experts(case: Case) -> Found:
    recipe = case.recipe
    if case.model is None or not case.model.experts or not recipe["use_peft"]:
        return
    layers = case.model.adapters(Asked.of(recipe)).layers
    reached = sum(each.elements for each in layers)
    if reached < case.model.elements() / 2 and not any(each.copied for each in layers):
        yield {"reached": share(reached, case.model.elements()), "experts": case.model.experts}


def alpha_follows_rank(case: Case) -> Found:
    base, recipe = case.recipe.base, case.recipe
    # What an earlier adapter has is no choice.
    if base is None or recipe["adapter_name_or_path"]:
        return
    if recipe["lora_r"] != base["lora_r"] and recipe["lora_alpha"] != base["lora_alpha"]:
        before, after = (each["lora_alpha"] / each["lora_r"] for each in (base, recipe))
        yield {"base": base, "before": before, "after": after}


def router_loss(case: Case) -> Found:
    asked = case.recipe["router_aux_loss_coef"]
    weight = asked if asked is not None else (case.model.config.get("router_aux_loss_coef") if case.model else None)
    if weight and weight > 0.01 and ((case.model and case.model.experts) or asked is not None):
        yield {"weight": weight, "origin": "" if asked is not None else ", from the model config"}


def updates_round_away(case: Case) -> Found:
    recipe = case.recipe
    if recipe["use_peft"] or recipe["dtype"] != "bfloat16" or case.topology.backend not in ("single", "ddp"):
        return
    # Adam's first steps move a weight by about the rate; it stays where it is below half the distance to the next
    # bfloat16 number.
    spacing = 2.0 ** (math.floor(math.log2(TYPICAL_WEIGHT)) - 7)
    if recipe["learning_rate"] < spacing / 2:
        yield {"weight": TYPICAL_WEIGHT, "spacing": spacing}


def sharded_8bit_optimizer(case: Case) -> Found:
    optimizer = str(case.recipe["optim"])
    sharded = case.topology.backend == "fsdp" or case.topology.zero_stage
    if sharded and ("8bit" in optimizer or "bnb" in optimizer or optimizer.startswith("paged")):
        yield {"optimizer": as_yaml(optimizer)}


def loss_on_prompts(case: Case) -> Found:
    if not case.recipe.loss_on_answers:
        train = case.data["splits"]["train"] if case.data else None
        answers = share(train["supervised_tokens"], train["tokens"]) if train and train["tokens"] else None
        yield {"answers": f", of which {answers} are answers" if answers else ""}


def learning_rate_range(case: Case) -> Found:
    # Below a hundred million parameters nothing has been published.
    if case.model is None or not case.recipe["use_peft"] or case.model.elements() < BILLION / 10:
        return
    large = case.model.elements() >= 30 * BILLION
    low, high = (5e-5, 4e-4) if large else (5e-5, 1e-3)
    if not low <= case.recipe["learning_rate"] <= high:
        yield {"low": low, "high": high, "size": "30 or more" if large else "up to 30"}


def rank_range(case: Case) -> Found:
    if case.recipe["use_peft"] and not 4 <= case.recipe["lora_r"] <= 256:
        yield {}


def alpha_range(case: Case) -> Found:
    ratio = case.recipe["lora_alpha"] / case.recipe["lora_r"]
    if case.recipe["use_peft"] and not case.recipe["use_rslora"] and not 0.25 <= ratio <= 4:
        yield {"ratio": ratio}


def epochs_range(case: Case) -> Found:
    plan = case.schedule
    epochs = plan.steps / plan.steps_per_epoch if plan else case.recipe["num_train_epochs"]
    if epochs > MANY_EPOCHS:
        yield {"epochs": epochs}


def batch_range(case: Case) -> Found:
    if case.recipe["use_peft"] and not 4 <= case.recipe["global_batch_size"] <= MANY_ROWS:
        yield {}
