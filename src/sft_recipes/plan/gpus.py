"""GPUs that recipes are planned for, by the names people type, with their vendor's figures."""

import dataclasses
import functools
import json
from importlib import resources

from sft_recipes.errors import InputError, did_you_mean
from sft_recipes.recipes.topology import Gpu


@dataclasses.dataclass(frozen=True)
class Spec:
    """What the vendor says of a GPU."""

    name: str
    nvidia_smi: tuple[str, ...]  # the names that nvidia-smi gives it
    memory_mib: int
    """In all, as nvidia-smi shows it: less than the datasheet's figure where memory protects itself against errors."""
    bf16_tflops: float  # peak of bfloat16 matrix products that are summed in float32, without sparsity
    bandwidth_gb_per_second: float
    source: str

    @property
    def memory_bytes(self) -> int:
        return self.memory_mib * 2**20


@functools.cache
def known() -> dict[str, Spec]:
    """All GPUs of `gpus.json` by name."""
    text = resources.files("sft_recipes.plan").joinpath("gpus.json").read_text(encoding="utf-8")
    return {
        name: Spec(name=name, **{**facts, "nvidia_smi": tuple(facts["nvidia_smi"])})
        for name, facts in json.loads(text).items()
    }


def find(name: str) -> Spec:
    """The GPU of that name, in any case and with spaces or underscores for hyphens.

    Raises:
        InputError: There is none; names the nearest.
    """
    plain = name.strip().lower().replace(" ", "-").replace("_", "-")
    if plain in known():
        return known()[plain]
    hint = did_you_mean(plain, known()) or "."
    raise InputError(f"no figures for a GPU {name!r}{hint} There are {', '.join(known())}")


def of(gpu: Gpu) -> Spec | None:
    """The figures of a visible GPU, None if its name is not known."""
    return next((spec for spec in known().values() if gpu.name in spec.nvidia_smi), None)
