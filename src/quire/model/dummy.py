"""Random weights for benchmarks: a model's arithmetic and memory from its config alone."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from quire.model.assemble import assemble
from quire.model.decoder import Decoder
from quire.model.spec import DecoderSpec
from quire.model.weight_map import WeightMap
from quire.ops.backend import Ops, Weight
from quire.ops.layouts import Dense, Layout

_SCALE = 0.02


class DummyLoader:
    """As ``Loader``, for a checkpoint without tensors."""

    def __init__(self, spec: DecoderSpec, names: WeightMap, ops: Ops) -> None:
        self.spec = spec
        self._names = names
        self._ops = ops

    def check(self) -> int:
        """Bytes of the weights."""
        source = _Random(torch.device("meta"), self._ops.dtype, None)
        assemble(self.spec, self._names, source)
        return source.nbytes

    def decoder(self, threads: int, max_positions: int) -> Decoder:
        torch.manual_seed(0)
        source = _Random(self._ops.device, self._ops.dtype, self._ops)
        return Decoder(self.spec, assemble(self.spec, self._names, source), self._ops, max_positions)


class _Counted:
    """Stands for a weight that is only counted."""

    shape = (0, 0)
    nbytes = 0


class _Random:
    """A ``Source`` of normal values; packs nothing without ``ops``."""

    def __init__(self, device: torch.device, dtype: torch.dtype, ops: Ops | None) -> None:
        self.dtype = dtype
        self.nbytes = 0
        self._device = device
        self._ops = ops

    def has(self, name: str) -> bool:
        return False

    def vector(self, name: str, *shape: int) -> torch.Tensor:
        if self._ops is None:  # arithmetic on meta tensors makes torch import its compiler: seconds
            return torch.zeros(shape)
        return torch.randn(shape, device=self._device) * _SCALE + 1

    def constant(self, values: torch.Tensor) -> torch.Tensor:
        return values if self._ops is None else values.to(self._device)

    def matrix(self, module: str, outputs: int, inputs: int, stack: int = 1) -> Layout:
        weight = torch.empty((stack * outputs, inputs), dtype=self.dtype, device=self._device)
        self.nbytes += weight.nbytes
        return Dense(weight if self._ops is None else weight.normal_(std=_SCALE))

    def transposed(self, name: str, stack: int, outputs: int, inputs: int) -> Layout:
        return self.matrix(name, outputs, inputs, stack)

    def pack(self, layouts: Iterable[Layout]) -> Weight:
        made = list(layouts)
        return self._ops.pack(*made) if self._ops else _Counted()

    def pack_stack(self, layouts: Iterable[Layout]) -> Weight:
        made = list(layouts)
        return self._ops.pack_stack(made) if self._ops else _Counted()
