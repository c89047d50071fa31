"""Recording a run of kernel calls, to make it again with one call: what a CUDA graph is on a GPU.

A decode step of a small model is hundreds of short calls; made from Python they cost a fifth of the step. A recording
holds their arguments, so it reads its inputs, and writes its results, where they lay when it was made.
"""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from quire.ops.cpu import _kernels


class NotRecordable(Exception):
    """Something other than kernels and views took part: a replay would leave it out."""


class Arena:
    """Memory for results, shared by recordings (they run one at a time). A block no tensor uses is free again."""

    def __init__(self) -> None:
        self._free: list[npt.NDArray[np.uint8]] = []

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        count = math.prod(shape)
        nbytes = max(64, count * dtype.itemsize)
        size = 1 << (nbytes - 1).bit_length()  # powers of two, so that recordings of all sizes find blocks to share
        fits = [i for i, block in enumerate(self._free) if len(block) >= size]
        block = self._free.pop(fits[0]) if fits else np.empty(size, np.uint8)
        tracked = block[:nbytes]  # the tensor's storage holds this array: it dies with the last view of the tensor
        weakref.finalize(tracked, self._free.append, block)
        return torch.from_numpy(tracked).view(dtype)[:count].view(shape)


class Recording:
    """Call it to run what was recorded; the result is overwritten by the next recording that runs."""

    def __init__(self, engine: object, program: object, output: torch.Tensor) -> None:
        self.keep: tuple[object, ...] = ()  # what the recorded calls use and nothing else keeps alive
        self._engine = engine
        self._program = program
        self._output = _alias(output)

    def __call__(self) -> torch.Tensor:
        _kernels.replay(self._engine, self._program)
        return self._output


def record(engine: object, function: Callable[[], torch.Tensor]) -> Recording:
    """Run ``function`` and record its kernel calls. Raises ``NotRecordable`` when it computes with torch itself."""
    program = _kernels.record(engine)
    try:
        with _ViewsOnly():  # type: ignore[no-untyped-call]
            output = function()
    finally:
        _kernels.stop(engine)
    return Recording(engine, program, output)


class _ViewsOnly(TorchDispatchMode):
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # the skipping would import torch._dynamo, hundreds of modules: 150 MB, and a second

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if not func.is_view:
            raise NotRecordable(f"{func} is no kernel of ours.")
        return func(*args, **(kwargs or {}))


def _alias(x: torch.Tensor) -> torch.Tensor:
    """The same memory without a claim on it: the arena may hand it out again."""
    memory = (ctypes.c_uint8 * x.nbytes).from_address(x.data_ptr())
    return torch.frombuffer(memory, dtype=x.dtype).view(x.shape)
