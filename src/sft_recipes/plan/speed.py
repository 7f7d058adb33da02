"""Seconds for a step, from floating-point operations and published efficiencies, or from a run that was measured.

An estimate is a range. Its constants are other people's measurements on their GPUs, so it says what it rests on, and
a finished run of the same kind replaces it.
"""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from sft_recipes.errors import InputError
from sft_recipes.models import base_model
from sft_recipes.models.base_model import Model
from sft_recipes.plan.gpus import Spec, known
from sft_recipes.plan.gpus import of as of_gpu
from sft_recipes.plan.memory import Setup, Shape, adapted_parameters, shards_weights
from sft_recipes.recipes import recipe as recipes
from sft_recipes.recipes.recipe import Recipe
from sft_recipes.recipes.schema import table
from sft_recipes.recipes.topology import Gpu, Topology
from sft_recipes.runs.run import RUNS, Run
from sft_recipes.terminal import count

RUN = "only a finished run tells, whose speed the next plan of this kind reads from runs/"
# Of what others have published: seconds that a micro-batch costs however few its tokens, by `size`, and the share of
# its peak that each card reaches beside that. Written and held out by scripts/validate_speed.py; docs/speed.md.
PUBLISHED = table("sft_recipes.plan", "speeds.json")


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
    2N more when all weights are trained (arXiv 2001.08361v1, section 2.1, and 2205.05198v1, section 5). The fused head
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
    attention = masked * setup.length * shape.queries * shape.layers * (passes + 1 - setup.keeps_attention)
    return matrices + 2 * head_passes * head * share + attention


def matrix_parameters(model: Model) -> float:
    """Parameters that one token is multiplied with: those of linear layers, the experts it visits, and the head."""
    shape = Shape.of(model)
    return model.elements("linear") + active_experts(model, shape) + shape.vocabulary * shape.hidden


def utilisation(run: Run) -> float | None:
    """Model FLOPs utilisation of a finished run: useful operations over the data sheet's peak of its GPUs.

    4N for each real token where the base is frozen and 6N where all weights are trained, N as `matrix_parameters` has
    it: forward, backward to the activations, and to the weights. What is recomputed, padding, attention's own products
    and the adapters' gradients are not counted. None where the peak, the model or the speed is not known.
    """
    facts, values = run.facts(), run.values()
    rate, place = facts["measured"].get("tokens_per_second"), facts["topology"]
    name, _, memory = next(iter(facts.get("gpus", [])), "").rpartition(", ")
    spec = None if place["use_cpu"] or not name else of_gpu(Gpu(name, int(memory.split()[0])))
    model = base_model.find(values["model_name_or_path"], str(values.get("model_revision", "main"))) if spec else None
    if not (rate and spec and spec.bf16_tflops and model):
        return None
    useful = 4 if values.get("use_peft") else 6
    return useful * matrix_parameters(model) * rate / (spec.bf16_tflops * 1e12 * place["processes"])


def active_experts(model: Model, shape: Shape) -> float:
    """Parameters of experts held as one tensor that one token visits; all of them if the config does not say."""
    fused = sum(group.elements for group in model.groups if group.kind == "other" and len(group.shape) == 3)
    return fused * shape.experts / model.experts if model.experts and shape.experts else fused


def per_micro_batch(model: Model, setup: Setup, spec: Spec) -> tuple[float, float]:
    """Lowest and highest seconds for one micro-batch of `setup.tokens`: a fixed part, and operations at a rate.

    Only for what `efficiency` knows.
    """
    found = efficiency(spec, setup)
    if found is None or spec.bf16_tflops is None:
        raise ValueError(f"no published speed of {spec.name}")
    bits = "4 bit" if setup.four_bit or setup.eight_bit else "16 bit"
    fast, slow = (part * size(model, setup) for part in PUBLISHED["fixed_seconds"][_weights(setup)][bits])
    ideal = setup.tokens * flops_per_token(model, setup) / (spec.bf16_tflops * 1e12)
    return fast + ideal / found["high"], slow + ideal / found["low"]


def size(model: Model, setup: Setup) -> float:
    """What the fixed part of a micro-batch grows with: layers, of 32; of sharded weights parameters, of 8e9.

    Whole weights cost launches, each layer as many; sharded ones have to be gathered.
    """
    return model.elements() / 8e9 if shards_weights(setup) else Shape.of(model).layers / 32


def efficiency(spec: Spec, setup: Setup) -> dict[str, Any] | None:
    """The share of a GPU's peak that was published: `low`, `high`, `rows`, `publications`; None if nothing was."""
    found: dict[str, Any] | None = PUBLISHED["efficiency"].get(spec.speed_of or spec.name, {}).get(_weights(setup))
    return found


def _weights(setup: Setup) -> str:
    return "sharded" if shards_weights(setup) else "whole"


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
        return Speed(None, f"on a CPU {RUN}")
    if model is None:
        return Speed(None, "it follows from the model's size, and the model's config is not here")
    if spec is None:
        return Speed(None, f"there are no figures for this GPU, but for {', '.join(known())}")
    if Shape.of(model).experts:
        return Speed(None, f"the published speeds of mixtures of experts are of an older way to compute them; {RUN}")
    found = efficiency(spec, setup)
    if found is None:
        return Speed(None, f"nobody's speed of {spec.name} with {_weights(setup)} weights is on record; {RUN}")
    low, high = per_micro_batch(model, setup, spec)
    return Speed(
        (accumulation * low, accumulation * high),
        f"published: {found['low']:.0%} to {found['high']:.0%} of {spec.bf16_tflops:,.0f} TFLOP/s in "
        f"{count(found['rows'], 'row')} of {' and '.join(found['publications'])}, and a micro-batch's fixed part "
        "(docs/speed.md); not measured here",
    )


def measured(recipe: Recipe, topology: Topology, gpus: Sequence[Gpu]) -> Measured | None:
    """The newest finished run of the same base, setup and batch on the same GPUs, if there is one.

    Data may differ. Rehearsals do not count: their few steps are mostly warm-up.
    """
    place = {key: value for key, value in topology.facts().items() if key != "name"}
    machine = [f"{gpu.name}, {gpu.memory_mib} MiB" for gpu in gpus], os.cpu_count()
    found: list[tuple[str, Measured]] = []
    for path in RUNS.glob("*/run.json"):
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
