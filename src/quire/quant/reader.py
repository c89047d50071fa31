"""Reading a checkpoint's linear layers, whatever it stores them in."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import torch

from quire.ops.layouts import Dense, Layout
from quire.quant.gguf import check_type, loaded_nbytes, unpack
from quire.quant.scheme import Part, Scheme, to_torch
from quire.weights.checkpoint import Checkpoint
from quire.weights.errors import CheckpointError, misshapen
from quire.weights.tensors import RawTensor, TensorInfo

_CODES = (".qweight", ".weight_packed")  # what quantised modules have in place of a ``.weight``


class Reader(Protocol):
    """The linear layers of one checkpoint. ``stack``: that many matrices in one tensor, laid end to end (experts)."""

    def tensors(self, module: str, outputs: int, inputs: int, stack: int = 1) -> Mapping[str, tuple[int, ...]]:
        """Names and shapes of the tensors of a module; optional ones only where they are there."""
        ...

    def nbytes(self, module: str, outputs: int, inputs: int, stack: int = 1) -> int:
        """Bytes of a module once loaded. Raises ``CheckpointError`` for a missing tensor, or one of a wrong type."""
        ...

    def read(self, module: str, outputs: int, inputs: int, stack: int = 1) -> Layout:
        """``[stack * outputs, inputs]``. Raises ``CheckpointError`` for what ``nbytes`` refuses, and corrupt values."""
        ...

    def made(self, module: str, weight: torch.Tensor) -> Layout:
        """The layout of plain weights ``[N, K]`` that come from elsewhere."""
        ...


class PlainReader:
    """Matrices in a ``.weight`` each: floats, or GGUF blocks."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        self._checkpoint = checkpoint
        self._device = device

    def tensors(self, module: str, outputs: int, inputs: int, stack: int = 1) -> Mapping[str, tuple[int, ...]]:
        name, shape, names = self._name(module), (outputs, inputs), self._checkpoint.names()
        if name in names:
            check_type(name, self._checkpoint.info(name).type)
        elif codes := [module + ending for ending in _CODES if module + ending in names]:
            raise CheckpointError(
                f"{codes[0]} is of a quantised layer, but config.json has no quantization_config that says how to read "
                "it; fetch the checkpoint again with the config that belongs to it."
            )
        return {name: (stack, *shape) if stack > 1 else shape}

    def nbytes(self, module: str, outputs: int, inputs: int, stack: int = 1) -> int:
        return loaded_nbytes(self._checkpoint.info(self._name(module)), self._device)

    def read(self, module: str, outputs: int, inputs: int, stack: int = 1) -> Layout:
        ((name, shape),) = self.tensors(module, outputs, inputs, stack).items()
        raw = self._checkpoint.read(name, shape)
        try:
            layout = unpack(RawTensor(raw.type, (stack * outputs, inputs), raw.data))
        except CheckpointError as error:
            raise CheckpointError(f"{name}: {error}") from None
        self._checkpoint.release(name)
        return layout

    def made(self, module: str, weight: torch.Tensor) -> Layout:
        return Dense(weight)

    def _name(self, module: str) -> str:
        # Experts in one tensor have no module of their own in Transformers: the parameter is named as the map says.
        names = self._checkpoint.names()
        return module if module in names and module + ".weight" not in names else module + ".weight"


class SchemeReader:
    """Modules that a quantisation format stores, by ``scheme_of``; the rest by ``plain``."""

    def __init__(self, checkpoint: Checkpoint, plain: Reader, scheme_of: Callable[[str], Scheme | None]) -> None:
        self._checkpoint = checkpoint
        self._plain = plain
        self._scheme_of = scheme_of

    def tensors(self, module: str, outputs: int, inputs: int, stack: int = 1) -> Mapping[str, tuple[int, ...]]:
        scheme = self._scheme_of(module)
        if scheme is None:
            return self._plain.tensors(module, outputs, inputs, stack)
        return {name: self._shape(name, part, stack) for name, part in self._parts(scheme, module, outputs, inputs)}

    def nbytes(self, module: str, outputs: int, inputs: int, stack: int = 1) -> int:
        scheme = self._scheme_of(module)
        if scheme is None:
            return self._plain.nbytes(module, outputs, inputs, stack)
        total = 0
        for name, part in self._parts(scheme, module, outputs, inputs):
            info = self._checked(name, part, stack)
            total += 4 * part.floats * math.prod(info.shape) if part.floats else info.nbytes
        return total

    def read(self, module: str, outputs: int, inputs: int, stack: int = 1) -> Layout:
        scheme = self._scheme_of(module)
        if scheme is None:
            return self._plain.read(module, outputs, inputs, stack)
        tensors = {}
        for name, part in self._parts(scheme, module, outputs, inputs):
            self._checked(name, part, stack)
            tensor = to_torch(self._checkpoint.read(name))
            self._checkpoint.release(name)
            tensors[name.removeprefix(module)] = tensor.flatten(0, 1) if stack > 1 else tensor
        try:
            return scheme.layout(tensors, stack * outputs, inputs)
        except CheckpointError as error:
            raise CheckpointError(f"{module}: {error}") from None

    def made(self, module: str, weight: torch.Tensor) -> Layout:
        return self._plain.made(module, weight)

    def _parts(self, scheme: Scheme, module: str, outputs: int, inputs: int) -> Iterator[tuple[str, Part]]:
        names = self._checkpoint.names()
        for suffix, part in scheme.parts(outputs, inputs).items():
            if not part.optional or module + suffix in names:
                yield module + suffix, part

    def _shape(self, name: str, part: Part, stack: int) -> tuple[int, ...]:
        """The allowed shape that the tensor has, or else the usual one."""
        shapes = [(stack, *shape) if stack > 1 else shape for shape in part.shapes]
        actual = self._checkpoint.info(name).shape
        return actual if actual in shapes else shapes[0]

    def _checked(self, name: str, part: Part, stack: int) -> TensorInfo:
        info, shape = self._checkpoint.info(name), self._shape(name, part, stack)
        if info.shape != shape:
            raise misshapen(name, info.shape, shape)
        if info.type not in part.types:
            raise CheckpointError(
                f"The tensor {name} has the type {info.type}, but its quantisation calls for {' or '.join(part.types)}."
            )
        return info
