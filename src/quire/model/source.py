"""Where an assembled decoder's tensors come from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch

from quire.model.inventory import Matrix, Vector
from quire.ops.backend import Ops, Weight
from quire.ops.layouts import Layout
from quire.quant.gguf import dequantize
from quire.quant.reader import Reader
from quire.quant.tensors import to_torch
from quire.weights.checkpoint import Checkpoint


class Source(Protocol):
    dtype: torch.dtype  # of activations, and so of biases

    def vector(self, vector: Vector) -> torch.Tensor:
        """In float32."""
        ...

    def constant(self, values: torch.Tensor) -> torch.Tensor:
        """Values that are in no checkpoint, where its vectors go."""
        ...

    def matrix(self, matrix: Matrix) -> Layout:
        """``[stack * outputs, inputs]``."""
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

    def vector(self, vector: Vector) -> torch.Tensor:
        return dequantize(self._checkpoint.read(vector.name, vector.shape)).to(self._ops.device)

    def constant(self, values: torch.Tensor) -> torch.Tensor:
        return values.to(self._ops.device)

    def matrix(self, matrix: Matrix) -> Layout:
        outputs, inputs, stack = matrix.outputs, matrix.inputs, matrix.stack
        if not matrix.transposed:
            return self._reader.read(matrix.module, outputs, inputs, stack)
        shape = (stack, inputs, outputs) if stack > 1 else (inputs, outputs)
        plain = to_torch(self._checkpoint.read(matrix.module, shape)).view(stack, inputs, outputs)
        return self._reader.made(matrix.module, plain.mT.reshape(stack * outputs, inputs))

    def pack(self, layouts: Iterable[Layout]) -> Weight:
        return self._ops.pack(*layouts)

    def pack_stack(self, layouts: Iterable[Layout]) -> Weight:
        return self._ops.pack_stack(layouts)
