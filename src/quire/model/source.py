"""Where an assembled decoder's tensors come from: a checkpoint, or only its headers, to check them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Protocol

import torch

from quire.ops.backend import Ops, Weight
from quire.ops.layouts import Dense, Layout
from quire.quant.gguf import check_type, dequantize
from quire.quant.reader import Reader
from quire.quant.scheme import to_torch
from quire.weights.checkpoint import Checkpoint
from quire.weights.errors import misshapen


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


class Headers:
    """Gives tensors without values; raises ``CheckpointError`` for one that is missing or has a wrong shape."""

    dtype = torch.float32

    def __init__(self, checkpoint: Checkpoint, reader: Reader) -> None:
        self._checkpoint = checkpoint
        self._reader = reader
        self.nbytes = 0  # of all tensors so far, once loaded
        self.used: set[str] = set()

    def has(self, name: str) -> bool:
        return name in self._checkpoint.names()

    def vector(self, name: str, *shape: int) -> torch.Tensor:
        self._check(name, shape)
        check_type(name, self._checkpoint.info(name).type)
        self.nbytes += 4 * math.prod(shape)
        return torch.zeros(shape)  # arithmetic on the meta device would import torch._dynamo: a second, and 150 MB

    def constant(self, values: torch.Tensor) -> torch.Tensor:
        return values

    def matrix(self, module: str, outputs: int, inputs: int, stack: int = 1) -> Layout:
        for name, shape in self._reader.tensors(module, outputs, inputs, stack).items():
            self._check(name, shape)
        self.nbytes += self._reader.nbytes(module, outputs, inputs, stack)
        return Dense(torch.empty((stack * outputs, inputs), device="meta"))

    def transposed(self, name: str, stack: int, outputs: int, inputs: int) -> Layout:
        self.matrix(name, inputs, outputs, stack)
        return Dense(torch.empty((stack * outputs, inputs), device="meta"))

    def pack(self, layouts: Iterable[Layout]) -> Weight:
        return self.pack_stack(layouts)

    def pack_stack(self, layouts: Iterable[Layout]) -> Weight:
        for _ in layouts:  # which may be read only now
            pass
        return _Unread()

    def _check(self, name: str, shape: tuple[int, ...]) -> None:
        self.used.add(name)
        info = self._checkpoint.info(name)
        if info.shape != shape:
            raise misshapen(name, info.shape, shape)
