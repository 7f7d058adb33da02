"""GPUs that recipes are planned for, by the names people type, with their vendor's figures."""

import dataclasses
import functools
import re

from sft_recipes.errors import InputError, did_you_mean
from sft_recipes.recipes.schema import table
from sft_recipes.recipes.topology import Gpu


@dataclasses.dataclass(frozen=True)
class Spec:
    """What the vendor says of a GPU."""

    name: str
    nvidia_smi: tuple[str, ...]  # the names that nvidia-smi gives it
    memory_mib: int
    """In all, as nvidia-smi shows it: less than the datasheet's figure where memory protects itself against errors."""
    bf16_tflops: float | None
    """Peak of bfloat16 matrix products that are summed in float32, without sparsity; None where it has none."""
    bandwidth_gb_per_second: float
    source: str
    speed_of: str | None = None
    """Another GPU of the same chip and peak, whose published speeds stand for this one."""

    @property
    def memory_bytes(self) -> int:
        return self.memory_mib * 2**20


# A part of a divided GPU, after the name of the whole: sevenths of its multiprocessors, and its memory in 1e9 bytes
# (NVIDIA's MIG User Guide, "Supported MIG Profiles").
PART = re.compile(
    r"(?P<whole>.+?)[- ](?:mig[- ])?(?P<profile>(?P<sevenths>[1-7])g\.(?P<gigabytes>\d+)gb)\S*", re.IGNORECASE
)


@functools.cache
def known() -> dict[str, Spec]:
    """All GPUs of `gpus.json` by name."""
    return {
        name: Spec(name=name, **{**facts, "nvidia_smi": tuple(facts["nvidia_smi"])})
        for name, facts in table("sft_recipes.plan", "gpus.json").items()
    }


def find(name: str) -> Spec:
    """The GPU of that name, in any case and with spaces or underscores for hyphens; h100-80gb-3g.40gb is a part.

    Raises:
        InputError: There is none, or no such part; names the nearest.
    """
    plain = name.strip().lower().replace(" ", "-").replace("_", "-")
    part = PART.fullmatch(plain)
    whole = part["whole"] if part else plain
    if whole not in known():
        hint = did_you_mean(whole, known()) or "."
        raise InputError(f"no figures for a GPU {name!r}{hint} There are {', '.join(known())}")
    if part is None:
        return known()[whole]
    memory_mib = int(part["gigabytes"]) * 10**9 // 2**20
    if memory_mib > known()[whole].memory_mib:
        raise InputError(
            f"{name!r}: {whole} has no part of {part['gigabytes']} GB; write one that nvidia-smi -L names"
        )
    return _part(known()[whole], part, memory_mib)


def of(gpu: Gpu) -> Spec | None:
    """The figures of a visible GPU, or of the part of one that is visible; None if its name is not known."""
    part = PART.fullmatch(gpu.name)
    name = part["whole"] if part else gpu.name
    spec = next((spec for spec in known().values() if name in spec.nvidia_smi), None)
    return _part(spec, part, gpu.memory_mib) if spec and part else spec


def _part(whole: Spec, part: re.Match[str], memory_mib: int) -> Spec:
    share = int(part["sevenths"]) / 7
    return dataclasses.replace(
        whole,
        name=f"{whole.name}-{part['profile'].lower()}",
        nvidia_smi=(),
        memory_mib=memory_mib,
        bf16_tflops=whole.bf16_tflops and whole.bf16_tflops * share,
        bandwidth_gb_per_second=whole.bandwidth_gb_per_second * memory_mib / whole.memory_mib,
        speed_of=None,
    )
