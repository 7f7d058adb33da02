"""Rules about quantisation, adapters and what they attach to."""

import math
from collections.abc import Iterator

from sft_recipes.plan.lint import Case, Said, rule
from sft_recipes.recipes.schema import as_yaml
from sft_recipes.terminal import share

# The standard deviation that transformers initialises the linear layers of Qwen3, Llama and most others with.
TYPICAL_WEIGHT = 0.02


def _experts(case: Case) -> int:
    """The number of experts that the model's config names, 0 for a dense one."""
    config = case.model.config if case.model else {}
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    return next((config[name] for name in names if config.get(name)), 0)


@rule("checkpoint-quantised", "blocking", "https://github.com/huggingface/transformers/issues/39969", required=True)
def checkpoint_quantised(case: Case) -> Iterator[Said]:
    """4-bit is asked for on a checkpoint that is quantised already, which the libraries refuse."""
    if case.model is None or not (case.recipe["load_in_4bit"] or case.recipe["load_in_8bit"]):
        return
    method = (case.model.config.get("quantization_config") or {}).get("quant_method")
    if method:
        yield Said(
            f"{case.model.name} is quantised already ({method}), so bitsandbytes cannot quantise it again; the origin "
            "of the presets swallowed this error and trained without the 4 bit it promised",
            "choose its unquantised checkpoint, or set load_in_4bit: false",
        )


@rule("four-bit-coverage", "warning", "https://github.com/bitsandbytes-foundation/bitsandbytes/issues/1849")
def four_bit_coverage(case: Case) -> Iterator[Said]:
    """4-bit covers only linear layers; experts held as one tensor stay in 16 bit."""
    if case.model is None or not case.recipe["load_in_4bit"]:
        return
    left = case.model.elements("other")
    if left > case.model.elements() / 5:
        yield Said(
            f"only {share(case.model.elements('linear'), case.model.elements())} of {case.model.name} would be in 4 "
            f"bit: {share(left, case.model.elements())} are tensors that are no linear layers, as fused experts are",
            "a dense model, or load_in_4bit: false and the memory that it takes",
        )


@rule("compute-dtype", "warning", "TRL takes the 4-bit compute dtype from dtype, whose default is float32")
def compute_dtype(case: Case) -> Iterator[Said]:
    """4-bit layers would compute in another dtype than bfloat16 on a GPU."""
    if case.recipe["load_in_4bit"] and not case.topology.use_cpu and case.recipe["dtype"] != "bfloat16":
        yield Said(
            f"4-bit layers would compute in {case.recipe['dtype']}, slower and larger on every GPU since Ampere",
            "dtype: bfloat16",
        )


@rule("target-unmatched", "blocking", "PEFT only refuses when no target at all matches", required=True)
def target_unmatched(case: Case) -> Iterator[Said]:
    """A target module matches no layer of the model."""
    if case.model is None or not case.recipe["use_peft"]:
        return
    targets = case.recipe["lora_target_modules"] or []
    layers = {group.path.rpartition(".")[2] for group in case.model.groups if group.kind == "linear"}
    for target in targets:
        if target != "lm_head" and not case.model.targets([target]):
            hint = "; a list is written [q_proj, v_proj]" if "," in target else ""
            yield Said(
                f"lora_target_modules: {target} matches no linear layer of {case.model.name}{hint}",
                f"its layers are {', '.join(sorted(layers))}; or [all-linear]",
            )


@rule("target-head", "blocking", "TRL's fused loss needs the output embedding as it is", required=True)
def target_head(case: Case) -> Iterator[Said]:
    """The output embedding is a target, which SFTTrainer refuses."""
    if "lm_head" in (case.recipe["lora_target_modules"] or []):
        yield Said(
            "lora_target_modules names lm_head, which SFTTrainer refuses", "drop it; [all-linear] leaves it out"
        )


@rule("attention-only-experts", "info", "https://doi.org/10.64434/tml.20250929 (LoRA Without Regret)")
def attention_only_experts(case: Case) -> Iterator[Said]:
    """Adapters sit on the attention of a mixture of experts, most of whose weights are elsewhere."""
    if case.model is None or not _experts(case):
        return
    if not case.recipe["use_peft"] or case.recipe["lora_target_parameters"]:
        return
    reached = sum(group.elements for group in case.model.targets(case.recipe["lora_target_modules"] or []))
    if reached < case.model.elements() / 2:
        yield Said(
            f"the adapted layers hold {share(reached, case.model.elements())} of the model's parameters; its "
            f"{_experts(case)} experts are not adapted",
            "lora_target_parameters: [mlp.experts.gate_up_proj, mlp.experts.down_proj] with lora_dropout: 0, if the "
            "task needs more than attention gives",
        )


@rule("alpha-follows-rank", "info", "https://arxiv.org/abs/2106.09685 section 4.1 holds alpha and changes r")
def alpha_follows_rank(case: Case) -> Iterator[Said]:
    """Alpha is changed together with the rank, so the size of an update changes as well as its capacity."""
    base = case.recipe.base
    if base is None or case.recipe["lora_r"] == base["lora_r"] or case.recipe["lora_alpha"] == base["lora_alpha"]:
        return
    ratios = [recipe["lora_alpha"] / recipe["lora_r"] for recipe in (base, case.recipe)]
    yield Said(
        f"lora_r {base['lora_r']} -> {case.recipe['lora_r']} and lora_alpha {base['lora_alpha']} -> "
        f"{case.recipe['lora_alpha']} (alpha / r {ratios[0]:g} -> {ratios[1]:g}): early in training a run with alpha "
        "= r moves in proportion to r, so a difference cannot be put down to rank alone",
        f"lora_alpha: {base['lora_alpha']} to compare ranks",
    )


@rule("expert-dropout", "blocking", "PEFT's ParamWrapper takes no dropout", required=True)
def expert_dropout(case: Case) -> Iterator[Said]:
    """Adapters on parameters, as fused experts need them, take no dropout."""
    if case.recipe["use_peft"] and case.recipe["lora_target_parameters"] and case.recipe["lora_dropout"]:
        yield Said(
            f"lora_target_parameters with lora_dropout {case.recipe['lora_dropout']:g} is refused by PEFT",
            "lora_dropout: 0",
        )


@rule("router-loss", "warning", "https://github.com/huggingface/trl/pull/7248")
def router_loss(case: Case) -> Iterator[Said]:
    """The router's auxiliary loss enters the training loss with a weight meant for pre-training."""
    asked = case.recipe["router_aux_loss_coef"]
    weight = asked if asked is not None else (case.model.config.get("router_aux_loss_coef") if case.model else None)
    if weight and weight > 0.01 and (_experts(case) or asked is not None):
        yield Said(
            f"router_aux_loss_coef is {weight:g}{'' if asked is not None else ', from the model config'}: the loss, "
            "and the eval_loss that chooses checkpoints, would be mostly the router's",
            "router_aux_loss_coef: 0.0",
        )


@rule("updates-round-away", "warning", "bfloat16 has 8 significant bits; DeepSpeed and FSDP2 keep float32 weights")
def updates_round_away(case: Case) -> Iterator[Said]:
    """All weights are trained in 16 bit without a float32 copy, so small updates are lost in rounding."""
    dtype, rate = case.recipe["dtype"], case.recipe["learning_rate"]
    if case.recipe["use_peft"] or dtype != "bfloat16" or case.topology.backend not in ("single", "ddp"):
        return
    # Adam's first steps move a weight by about the rate; it stays where it is below half the distance to the next.
    lost = _half_spacing(TYPICAL_WEIGHT)
    if rate < lost:
        yield Said(
            f"all weights are trained in bfloat16, where a weight of {TYPICAL_WEIGHT:g} moves by {2 * lost:.2g} or "
            f"not at all; steps of the learning rate, {rate:g}, mostly round away",
            "ACCEL=zero3, which keeps float32 weights for the optimizer, or dtype: float32 in twice the memory",
        )


def _half_spacing(weight: float) -> float:
    """Half the distance between neighbouring bfloat16 numbers of this size."""
    return 2.0 ** (math.floor(math.log2(weight)) - 8)


@rule("sharded-8bit-optimizer", "warning", "PEFT's FSDP guide: paged_adamw_8bit fails when it is saved")
def sharded_8bit_optimizer(case: Case) -> Iterator[Said]:
    """An 8-bit or paged optimizer is sharded: FSDP fails when it saves one, and under ZeRO it is not tested here."""
    optimizer = str(case.recipe["optim"])
    sharded = case.topology.backend == "fsdp" or case.topology.zero_stage
    if sharded and ("8bit" in optimizer or "bnb" in optimizer or optimizer.startswith("paged")):
        yield Said(
            f"optim: {as_yaml(optimizer)} under {case.topology.name}, where its state is sharded",
            "optim: adamw_torch; an adapter's optimizer state is small",
        )
