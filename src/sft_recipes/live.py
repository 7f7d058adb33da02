"""How many bytes of tensors are alive: a counter of storages, for real tensors and for fake ones."""

import functools
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# torch's CUDA allocator hands out blocks of so many bytes (torch/c10/cuda/CUDACachingAllocator.h: kMinBlockSize).
BLOCK = 512


class LiveStorages(TorchDispatchMode):
    """Within it, every storage that an operator returns is counted from then until it is freed.

    What an operator allocates and frees within itself is not seen. torch's own MemTracker needs a hook on every
    parameter, which frozen ones do not take.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.peaks: dict[str, int] = {}
        """The most bytes alive during each phase."""
        self._phase = ""
        self._sizes: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    @property
    def peak(self) -> int:
        return max(self.peaks.values())

    def begin(self, phase: str) -> None:
        """From here on, peaks are the phase's; a phase that comes again begins anew."""
        self._phase = phase
        self.peaks[phase] = self.bytes

    def count(self, tensors: Iterable[Any]) -> int:
        """Count what was alive before, and give the bytes that were not counted yet."""
        before = self.bytes
        for each in tensors:
            if isinstance(each, torch.Tensor):
                self._count(each.untyped_storage())
        return self.bytes - before

    def _count(self, storage: Any) -> None:
        if storage in self._sizes:
            return
        size = -(-storage.nbytes() // BLOCK) * BLOCK
        self._sizes[storage] = size
        self.bytes += size
        weakref.finalize(storage, functools.partial(self._free, size)).atexit = False

    def _free(self, size: int) -> None:
        self.bytes -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.count(tree_leaves(out))
        if self._phase:
            self.peaks[self._phase] = max(self.peaks[self._phase], self.bytes)
        return out
