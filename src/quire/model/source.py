"""Where an assembled decoder's tensors come from: a checkpoint, or only its headers, to check them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch

from quire.ops.backend import Ops, Weight
from quire.ops.layouts import Dense, Layout
from quire.quant.formats.storage import Storage, check_type
from quire.quant.gguf import dequantize
from quire.quant.reader import Reader
from quire.quant.tensors import to_torch
from quire.weights.checkpoint import Checkpoint
from quire.weights.errors import misshapen

_NARROW = torch.uint8  # stands for any weights of fewer than 16 bits, where only sizes count


@dataclass(frozen=True)
class WeightSizes:
    """Of a model once loaded. ``widest``: numbers in the largest product's weights of those narrower than 16 bits."""

    nbytes: int
    widest: int


class Source(Protocol):
    dtype: torch.dtype  # of activations, and so of biases

    def has(self, name: str) -> bool:
        """Whether there is such a tensor, where a checkpoint may store its weights in more ways than one."""
        ...

    def vector(self, name: str, *shape: int) -> torch.Tensor:
        """A tensor that is not the weight of a linear layer, in float32."""
        ...

    def constant(self, values: torch.Tensor) -> torch.Tensor:
        """Values that are in no checkpoint, where its vectors go."""
        ...

    def matrix(self, module: str, outputs: int, inputs: int, stack: int = 1) -> Layout:
        """The weights ``[stack * outputs, inputs]`` of a linear layer (or of ``stack`` in one tensor)."""
        ...

    def transposed(self, name: str, stack: int, outputs: int, inputs: int) -> Layout:
        """``[stack * outputs, inputs]`` of a plain tensor ``[stack, inputs, outputs]``."""
        ...

    def pack(self, layouts: Iterable[Layout]) -> Weight: ...

    def pack_stack(self, layouts: Iterable[Layout]) -> Weight: ...


class Tensors:
    """The checkpoint's tensors, packed for ``ops``."""

    def __init__(self, checkpoint: Checkpoint, reader: Reader, ops: Ops) -> None:
        self._checkpoint = checkpoint
        self._reader = reader
        self._ops = ops
        self.dtype = ops.dtype

    def has(self, name: str) -> bool:
        return name in self._checkpoint.names()

    def vector(self, name: str, *shape: int) -> torch.Tensor:
        return dequantize(self._checkpoint.read(name, shape)).to(self._ops.device)

    def constant(self, values: torch.Tensor) -> torch.Tensor:
        return values.to(self._ops.device)

    def matrix(self, module: str, outputs: int, inputs: int, stack: int = 1) -> Layout:
        return self._reader.read(module, outputs, inputs, stack)

    def transposed(self, name: str, stack: int, outputs: int, inputs: int) -> Layout:
        shape = (stack, inputs, outputs) if stack > 1 else (inputs, outputs)
        plain = to_torch(self._checkpoint.read(name, shape)).view(stack, inputs, outputs)
        return self._reader.made(name, plain.mT.reshape(stack * outputs, inputs))

    def pack(self, layouts: Iterable[Layout]) -> Weight:
        return self._ops.pack(*layouts)

    def pack_stack(self, layouts: Iterable[Layout]) -> Weight:
        return self._ops.pack_stack(layouts)


class _Unread:
    """Stands for a weight that is not loaded."""

    shape = (0, 0)
    nbytes = 0


def unread(outputs: int, inputs: int, nbytes: int) -> Dense:
    """Stands for a matrix that takes so many bytes."""
    dtype = _NARROW if nbytes < 2 * outputs * inputs else torch.float32
    return Dense(torch.empty((outputs, inputs), dtype=dtype, device="meta"))


def narrow_numbers(layouts: Iterable[Layout]) -> int:
    """In those of ``unread`` matrices that have fewer than 16 bits a weight."""
    return sum(w.weight.numel() for w in layouts if isinstance(w, Dense) and w.weight.dtype is _NARROW)


class Headers:
    """Gives tensors without values; raises ``CheckpointError`` for one that is missing or has a wrong shape."""

    dtype = torch.float32

    def __init__(self, storage: Storage, reader: Reader) -> None:
        self._storage = storage
        self._checkpoint = storage.checkpoint
        self._reader = reader
        self._nbytes = 0  # of all tensors so far, once loaded
        self._widest = 0
        self.used: set[str] = set()

    @property
    def sizes(self) -> WeightSizes:
        """Of what was asked for so far."""
        return WeightSizes(self._nbytes, self._widest)

    def has(self, name: str) -> bool:
        return name in self._checkpoint.names()

    def vector(self, name: str, *shape: int) -> torch.Tensor:
        self.used.add(name)
        info = self._checkpoint.info(name)
        if info.shape != shape:
            raise misshapen(name, info.shape, shape)
        check_type(name, info.type)
        self._nbytes += 4 * math.prod(shape)
        return torch.zeros(shape)  # arithmetic on the meta device would import torch._dynamo: a second, and 150 MB

    def constant(self, values: torch.Tensor) -> torch.Tensor:
        return values

    def matrix(self, module: str, outputs: int, inputs: int, stack: int = 1) -> Dense:
        self.used.update(self._storage.tensors(module, outputs, inputs, stack))
        nbytes = self._reader.nbytes(module, outputs, inputs, stack)
        self._nbytes += nbytes
        return unread(stack * outputs, inputs, nbytes)

    def transposed(self, name: str, stack: int, outputs: int, inputs: int) -> Layout:
        stored = self.matrix(name, inputs, outputs, stack).weight
        return Dense(torch.empty((stack * outputs, inputs), dtype=stored.dtype, device="meta"))

    def pack(self, layouts: Iterable[Layout]) -> Weight:
        self._widest = max(self._widest, narrow_numbers(layouts))
        return _Unread()

    def pack_stack(self, layouts: Iterable[Layout]) -> Weight:
        for _ in layouts:  # which may be read only now
            pass
        return _Unread()
