"""What the processes of a run send each other: bytes in one optimizer step, by what each backend sends and when.

A lower bound of what a network needs: seconds are bytes by bandwidth, without latency and whatever else is sent.
"""

import dataclasses

from sft_recipes.models.base_model import Model
from sft_recipes.plan import memory
from sft_recipes.plan.job import Job
from sft_recipes.plan.lint.speed import largest_micro_batch
from sft_recipes.plan.memory import Setup


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Bytes that each process sends in one optimizer step."""

    gradients: float  # of what is trained: its gradients, and for ZeRO the updated weights
    weights: tuple[float, float]
    """Of the base that ZeRO-3 and FSDP2 gather, at least and at most; nothing where each process has it whole."""

    @property
    def total(self) -> tuple[float, float]:
        """All bytes, at least and at most."""
        low, high = self.weights
        return self.gradients + low, self.gradients + high


def of(job: Job) -> Traffic | None:
    """What a job sends; None where the model is not known, or the global batch cannot be reached there."""
    recipe, processes = job.recipe, job.topology.processes
    accumulation, rest = divmod(recipe["global_batch_size"], recipe["per_device_train_batch_size"] * processes)
    if job.model is None or rest or not accumulation:
        return None
    return traffic(job.model, largest_micro_batch(job.case), accumulation)


def traffic(model: Model, setup: Setup, accumulation: int) -> Traffic:
    """What each of `setup.processes` processes sends in a step of `accumulation` micro-batches.

    A ring's all-gather or reduce-scatter of S bytes over n processes sends (n - 1)/n S from each, an all-reduce both
    (Patarasuk and Yuan, 2009; NCCL's `PERFORMANCE.md`). Per step or micro-batch:

        ddp       all-reduce of the gradients once a step, since accelerate skips it while gradients are summed up
        ZeRO-1    reduce-scatter of 16-bit gradients once a step, all-gather of the 16-bit weights trained
        ZeRO-2    the reduce-scatter for each micro-batch, whose gradients it does not keep whole (arXiv 1910.02054v3,
                  section 7: as much as an all-reduce, without accumulation)
        ZeRO-3    and all-gathers of all weights for forward and backward of each micro-batch; a third one where
                  activations are recomputed and a layer was released in between
        FSDP2     the same two all-gathers, and a reduce-scatter of float32 gradients for each micro-batch
    """
    part = (setup.processes - 1) / setup.processes
    trained = memory.adapted_parameters(model, setup) if setup.use_peft else model.elements()
    if not (setup.zero_stage or setup.fsdp):
        size = setup.adapter_bytes if setup.use_peft else setup.base_bytes
        return Traffic(2 * part * trained * size, (0.0, 0.0))
    if setup.zero_stage in (1, 2):
        reductions = accumulation if setup.zero_stage == 2 else 1
        return Traffic(part * 2 * trained * (reductions + 1), (0.0, 0.0))
    gradients = part * (4 if setup.fsdp else 2) * trained * accumulation
    whole = dataclasses.replace(setup, processes=1, offload_parameters=False)
    gathered = part * accumulation * sum(memory.base_weights(model, whole))
    most = 3 if setup.zero_stage == 3 and setup.checkpointing else 2
    return Traffic(gradients, (2 * gathered, most * gathered))


def seconds(sent: float, network_gigabits: float) -> float:
    """Seconds in which a node's network takes what a ring sends over it.

    A ring that visits node after node leaves each node once, so that a node's network carries what one process sends.
    """
    return sent / (network_gigabits * 1e9 / 8)
