"""Seconds for a step, from floating-point operations and published efficiencies, or from a run that was measured.

An estimate is a range. Its constants are other people's measurements on their GPUs, so it says what it rests on, and
a finished run of the same kind replaces it.
"""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from sft_recipes.errors import InputError
from sft_recipes.models.base_model import Model
from sft_recipes.plan.gpus import Spec, known
from sft_recipes.plan.memory import Setup, Shape, adapted_parameters, shards_weights
from sft_recipes.recipes import recipe as recipes
from sft_recipes.recipes.recipe import Recipe
from sft_recipes.recipes.topology import Gpu, Topology
from sft_recipes.runs.run import RUNS, Run

# Share of the peak that is reached, recomputation counted as work, as (lowest, highest) published.
EFFICIENCY = {
    "a100": (0.50, 0.65, "A100, 7-8B LoRA and QLoRA in fms-acceleration's a100_80gb.csv and a100_80gb_liger.csv"),
    "h100": (0.34, 0.43, "H100, 7-8B LoRA in NeMo's performance summary and 70B QLoRA in fsdp_qlora's benchmarks"),
}
EFFICIENCY["h200"] = (*EFFICIENCY["h100"][:2], f"{EFFICIENCY['h100'][2]}; an H200 has the same peak")
OTHER = (
    0.25,
    0.56,
    "an L40S in PEFT's MetaMathQA comparison and an RTX 4090 in torchtune's README; none for this GPU",
)
# Seconds that a micro-batch of a model with 32 layers costs however few its tokens: launches, dequantisation, waiting.
# Fitted to the rows of fms-acceleration's CSVs (A100, 7-8B), by (4-bit, sharded weights).
FIXED = {
    (False, False): (0.06, 0.09),
    (True, False): (0.11, 0.17),
    (False, True): (0.20, 0.27),
    (True, True): (0.25, 0.30),
}


@dataclasses.dataclass(frozen=True)
class Speed:
    """How long an optimizer step takes, and what says so."""

    seconds_per_step: tuple[float, float] | None
    """Lowest and highest; the same twice where it was measured; None where nothing is known."""
    basis: str  # what the figure rests on, or why there is none


@dataclasses.dataclass(frozen=True)
class Measured:
    """A finished run that did the same work on the same machine."""

    run: str
    tokens_per_second: float  # over all processes, padding not counted
    rows_evaluated_per_second: float | None = None


def flops_per_token(model: Model, setup: Setup) -> float:
    """Floating-point operations for one token of a training step, recomputation included.

    Forward 2N and backward to the activations 2N, for N parameters in matrix products; with checkpointing 2N again;
    2N more when all weights are trained (arXiv 2001.08361, section 2.1, and 2205.05198, section 5). The fused head
    recomputes its logits and sees supervised tokens only. Attention is 2 x 2 x length x queries for each layer, half
    of it where a kernel skips what the causal mask hides, once forward, twice backward.
    """
    shape = Shape.of(model)
    head = shape.vocabulary * shape.hidden
    body = model.elements("linear") + active_experts(model, shape)
    passes = 2 + (1 if setup.checkpointing else 0)
    trained = adapted_parameters(model, setup) if setup.use_peft else body
    matrices = 2 * passes * body + (2 * (passes + 1) if setup.use_peft else 2) * trained
    head_passes = (3 if setup.fused_head else 2) + (0 if setup.use_peft else 1)
    share = setup.supervised_share if setup.fused_head else 1.0
    masked = 4 if setup.attention in ("sdpa", "eager") else 2
    attention = masked * setup.length * shape.queries * shape.layers * (passes + 1)
    return matrices + 2 * head_passes * head * share + attention


def active_experts(model: Model, shape: Shape) -> float:
    """Parameters of experts held as one tensor that one token visits; all of them if the config does not say."""
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    config = model.text_config
    number = next((config[name] for name in names if isinstance(config.get(name), int)), 0)
    fused = sum(group.elements for group in model.groups if group.kind == "other" and len(group.shape) == 3)
    return fused * shape.experts / number if number and shape.experts else fused


def per_micro_batch(model: Model, setup: Setup, spec: Spec) -> tuple[float, float]:
    """Lowest and highest seconds for one micro-batch of `setup.tokens`: a fixed cost, and operations at a rate."""
    low, high, _ = efficiency(spec)
    fixed = FIXED[setup.four_bit or setup.eight_bit, shards_weights(setup)]
    layers = Shape.of(model).layers / 32
    ideal = setup.tokens * flops_per_token(model, setup) / (spec.bf16_tflops * 1e12)
    return fixed[0] * layers + ideal / high, fixed[1] * layers + ideal / low


def efficiency(spec: Spec) -> tuple[float, float, str]:
    """Lowest and highest share of a GPU's peak that was published, and by whom."""
    return EFFICIENCY.get(spec.name.split("-")[0], OTHER)


def speed(
    model: Model | None,
    setup: Setup,
    spec: Spec | None,
    accumulation: int,
    run: Measured | None = None,
    tokens_per_step: float | None = None,
    *,
    on_cpu: bool = False,
) -> Speed:
    """Seconds for an optimizer step of `accumulation` micro-batches.

    `model` and `spec` are None where nothing is known of them. `setup` has the tokens of an average micro-batch,
    padding included; `tokens_per_step` are those of all processes without it, which a measured `run` counts too.
    """
    if run is not None and tokens_per_step:
        seconds = tokens_per_step / run.tokens_per_second
        return Speed((seconds, seconds), f"measured: {run.tokens_per_second:,.0f} tokens/s in runs/{run.run}")
    if on_cpu:
        return Speed(None, "on a CPU only a finished run tells; the next plan of this kind reads its speed from runs/")
    if model is None:
        return Speed(None, "it follows from the model's size, and the model's config is not here")
    if spec is None:
        return Speed(None, f"there are no figures for this GPU, but for {', '.join(known())}")
    low, high = per_micro_batch(model, setup, spec)
    least, most, source = efficiency(spec)
    return Speed(
        (accumulation * low, accumulation * high),
        f"documented: {least:.0%} to {most:.0%} of {spec.bf16_tflops:,.0f} TFLOP/s ({source}), and a micro-batch's "
        "fixed cost fitted to fms-acceleration's A100 runs; not measured here",
    )


def measured(recipe: Recipe, topology: Topology, gpus: Sequence[Gpu], runs: Path = RUNS) -> Measured | None:
    """The newest finished run of the same base, setup and batch on the same GPUs, if there is one.

    Data may differ. Rehearsals do not count: their few steps are mostly warm-up.
    """
    place = {key: value for key, value in topology.facts().items() if key != "name"}
    machine = [f"{gpu.name}, {gpu.memory_mib} MiB" for gpu in gpus], os.cpu_count()
    found: list[tuple[str, Measured]] = []
    for path in runs.glob("*/run.json"):
        try:
            facts = Run(path.parent).facts()
            values = Run(path.parent).values() | facts["own"]
            same = (facts["gpus"], facts["cpus"]) == machine and place.items() <= facts["topology"].items()
            rate = facts["measured"]["tokens_per_second"] if facts["status"] == "finished" else None
            started, rehearsal = facts["started"], facts.get("rehearsal")
            evaluated = _evaluated(Run(path.parent))
        except (InputError, KeyError):
            # A run that is being written, or of another version.
            continue
        other = Recipe(path.parent.name, {key: recipes.Value(value, str(path)) for key, value in values.items()})
        if rate and same and not rehearsal and _work(other, topology) == _work(recipe, topology):
            found.append((started, Measured(path.parent.name, rate, evaluated)))
    return max(found, key=lambda each: each[0])[1] if found else None


def _evaluated(run: Run) -> float | None:
    """Rows that a run evaluated a second, None if it evaluated none."""
    rows = (run.facts()["data"]["splits"].get("validation") or {}).get("prepared_rows")
    seconds = [entry["eval_runtime"] for entry in run.log_entries() if entry.get("eval_runtime")]
    return rows * len(seconds) / sum(seconds) if rows and seconds else None


def evaluation(setup: Setup, seconds_per_token: float, rows: int, tokens: int, run: Measured | None) -> float:
    """Seconds for an evaluation of so many rows and tokens: as a run measured it, or the forward part of training."""
    if run is not None and run.rows_evaluated_per_second:
        return rows / run.rows_evaluated_per_second
    # Forward, backward to the activations and, where they are trained, to the weights, and forward again to recompute.
    return tokens * seconds_per_token / (2 + setup.checkpointing + (not setup.use_peft))


def _work(recipe: Recipe, topology: Topology) -> tuple:
    keys = ("model_name_or_path", "per_device_train_batch_size", "max_length", "packing", "padding_free")
    return Setup.of(recipe, topology, 0, 0), *(recipe[key] for key in keys)
