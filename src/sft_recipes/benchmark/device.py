"""The one place where measuring on a GPU differs from measuring on a CPU: names, clocks, memory counters.

Everything else of the benchmark is the same code on both, so that a CPU exercises it.
"""

import contextlib
import dataclasses
import gc
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import torch


@dataclasses.dataclass
class Peak:
    """The most bytes that were held while something ran."""

    allocated: int = 0  # by tensors: torch's own count on a GPU, of live storages on a CPU
    reserved: int | None = None
    """By torch's allocator, fragments included; None on a CPU, which has no such allocator."""
    device: int | None = None  # of the whole GPU after it, as nvidia-smi shows it; None on a CPU


@dataclasses.dataclass(frozen=True)
class Device:
    """Where it is measured: the first visible CUDA GPU, or the CPU."""

    gpu: bool

    @property
    def type(self) -> str:
        return "cuda" if self.gpu else "cpu"

    def facts(self) -> dict[str, Any]:
        """The machine, as a result file names it; `memory_bytes` is the GPU's, or the host's."""
        shared = {"cpus": os.cpu_count(), "platform": f"{platform.system()} {platform.machine()}"}
        if not self.gpu:
            memory = psutil.virtual_memory().total
            return {"kind": "cpu", "name": f"CPU, {platform.machine()}", "memory_bytes": memory, **shared}
        properties = torch.cuda.get_device_properties(0)
        return {
            "kind": "gpu",
            "name": properties.name,
            "memory_bytes": properties.total_memory,
            "driver": driver(),
            "cuda": torch.version.cuda,
            "capability": f"{properties.major}.{properties.minor}",
            **shared,
        }

    def synchronise(self) -> None:
        """Wait until everything that was started is done; a CPU has done it already."""
        if self.gpu:
            torch.cuda.synchronize()

    def free(self) -> None:
        """Give back what no one holds any more, so that the next measurement begins as the first one did."""
        gc.collect()
        if self.gpu:
            torch.cuda.empty_cache()

    def allocated(self) -> int | None:
        """Bytes of live tensors on the GPU; None on a CPU, where nobody counts them."""
        return torch.cuda.memory_allocated() if self.gpu else None

    def seconds(self, work: Callable[[], Any], repeats: int) -> float:
        """The median time of one call, after three that are not counted."""
        for _ in range(3):
            work()
        self.synchronise()
        times = []
        for _ in range(repeats):
            if self.gpu:
                # Events are on the GPU's own clock: the time to start a kernel is not the kernel's.
                begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                begin.record()
                work()
                end.record()
                end.synchronize()
                times.append(begin.elapsed_time(end) / 1000)
            else:
                began = time.perf_counter()
                work()
                times.append(time.perf_counter() - began)
        return statistics.median(times)

    @contextlib.contextmanager
    def peak(self, model: torch.nn.Module) -> Iterator[Peak]:
        """The peak of what runs within; on a CPU of the model's tensors and of those that operators make."""
        found = Peak()
        self.free()
        if self.gpu:
            self.synchronise()
            torch.cuda.reset_peak_memory_stats()
            yield found
            self.synchronise()
            found.allocated, found.reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
            free, total = torch.cuda.mem_get_info()
            found.device = total - free
            return
        from sft_recipes.plan.fake_step import LiveStorages, held

        with LiveStorages() as live:
            for trained in (False, True):
                live.count(held(model, trained=trained))
            yield found
            found.allocated = live.peak


def find() -> Device:
    """The CUDA GPU if one is visible, else the CPU; an Apple GPU has neither these counters nor 4-bit weights."""
    return Device(torch.cuda.is_available())


def driver() -> str | None:
    """The version of NVIDIA's driver, None if nvidia-smi does not say it."""
    try:
        answer = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],  # noqa: S607
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(answer.stdout.split()), None)
