"""Rules about batch, processes and devices."""

from collections.abc import Iterator, Sequence

from sft_recipes.demo import demo_base
from sft_recipes.plan.lint import Case, Said, rule
from sft_recipes.recipes import conflicts
from sft_recipes.recipes.conflicts import Conflict
from sft_recipes.recipes.recipe import Recipe
from sft_recipes.recipes.topology import Gpu, Topology

GIB = 2**30


def refused(recipe: Recipe, topology: Topology, gpus: Sequence[Gpu]) -> Iterator[Conflict]:
    """What a training here is refused for, whatever its rows."""
    yield from conflicts.of_topology(recipe, topology)
    # The demo's base model is built before the first training that needs it.
    yield from conflicts.of_machine(recipe, topology, gpus, [demo_base.DIRECTORY])


def _said(case: Case, rule: str, instead: str | None = None) -> Iterator[Said]:
    for each in refused(case.recipe, case.topology, case.gpus):
        if each.rule == rule:
            yield Said(each.reason, instead or each.remedy)


@rule("batch-unreachable", "blocking", "global_batch_size is the fact, accumulation its consequence", required=True)
def batch_unreachable(case: Case) -> Iterator[Said]:
    """The global batch size is not a multiple of what all processes take at once."""
    return _said(case, "batch-unreachable")


@rule(
    "unsupported-pair",
    "blocking",
    "src/sft_recipes/recipes/conflicts.py names the upstream issue of each",
    required=True,
)
def unsupported_pair(case: Case) -> Iterator[Said]:
    """Recipe and accelerate config are a pair that the libraries get wrong, or refuse."""
    return _said(case, "unsupported-pair")


@rule("devices-missing", "info", "accelerate starts one process a GPU")
def devices_missing(case: Case) -> Iterator[Said]:
    """The topology has more processes than this machine has visible GPUs, so it trains elsewhere."""
    elsewhere = "train on a machine that has them; make rehearse runs the same code here on CPU processes"
    return _said(case, "devices-missing", elsewhere)


@rule("tool-missing", "info", "a tracker or compiler that is missed only in the first step, or after it")
def tool_missing(case: Case) -> Iterator[Said]:
    """A tracker, package or compiler that the run needs is not on this machine."""
    return _said(case, "tool-missing")


@rule("model-missing", "info", "a Hub id has one slash; everything else is a path on this machine")
def model_missing(case: Case) -> Iterator[Said]:
    """The base model is a directory, and holds no model on this machine."""
    return _said(case, "model-missing")


@rule("devices-idle", "warning", "transformers' Trainer would wrap the model in nn.DataParallel; TRL refuses that")
def devices_idle(case: Case) -> Iterator[Said]:
    """One process is started although several GPUs are visible."""
    if case.topology.backend == "single" and not case.topology.use_cpu and len(case.gpus) > 1:
        yield Said(
            f"{case.topology.name} uses one of {len(case.gpus)} visible GPUs",
            f"ACCEL=ddp GPUS={len(case.gpus)} keeps the global batch and uses all",
        )


@rule("zero-saves-nothing", "info", "https://arxiv.org/abs/1910.02054 section 5: stages 1 and 2 shard trained state")
def zero_saves_nothing(case: Case) -> Iterator[Said]:
    """A ZeRO stage shards only what is trained, and an adapter's optimizer state is small."""
    stage, processes = case.topology.zero_stage, case.topology.processes
    if case.model is None or not case.recipe["use_peft"] or stage not in (1, 2) or processes < 2:
        return
    adapters = case.model.adapter_parameters(
        case.recipe["lora_target_modules"] or [], case.recipe["lora_r"], case.recipe["lora_target_parameters"] or []
    )
    # DeepSpeed's float32 master weights and two moments, and at stage 2 the gradients in bfloat16.
    saved = adapters * (12 + (2 if stage == 2 else 0)) * (processes - 1) // processes
    if saved < GIB:
        yield Said(
            f"ZeRO-{stage} saves {saved / GIB:.2f} GiB a GPU here: the state of {adapters:,} adapter parameters",
            "ACCEL=ddp, which is simpler and as good",
        )


@rule("evaluation-batch", "info", "https://github.com/huggingface/transformers/issues/39241")
def evaluation_batch(case: Case) -> Iterator[Said]:
    """The evaluation batch is not pinned, and eval_loss depends on it, so recipes cannot be compared by it."""
    if case.recipe["eval_strategy"] != "no" and "per_device_eval_batch_size" not in case.recipe.values:
        yield Said("per_device_eval_batch_size is not set, and eval_loss depends on it", "write it, the same in all")
