"""Random weights for benchmarks: a model's arithmetic and memory from its config alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from quire.model.assemble import assemble
from quire.model.decoder import Decoder
from quire.model.source import WeightSizes, narrow_numbers, unread
from quire.model.spec import DecoderSpec
from quire.model.weight_map import WeightMap
from quire.ops.backend import Ops, Weight
from quire.ops.layouts import Dense, Layout
from quire.quant.at_load import nbytes, quantize
from quire.quant.formats.detect import load_method

_SCALE = 0.02


def stored_dtype(config: Mapping[str, Any]) -> torch.dtype:
    """What the config says that weights are stored in; float32 where it doesn't say, or says something else."""
    name = str(config.get("dtype") or config.get("torch_dtype")).removeprefix("torch.")
    return {"float16": torch.float16, "bfloat16": torch.bfloat16}.get(name, torch.float32)


class DummyLoader:
    """As ``Loader``, for a checkpoint without tensors. ``quantization``: a method of quantising at load."""

    def __init__(
        self,
        spec: DecoderSpec,
        names: WeightMap,
        ops: Ops,
        quantization: str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """``dtype``: what the checkpoint's weights would be stored in, which is what they take on a CPU."""
        self.spec = spec
        self._names = names
        self._ops = ops
        self._dtype = dtype if ops.device.type == "cpu" else ops.dtype
        self._method = load_method(quantization) if quantization else None

    def check(self) -> WeightSizes:
        source = _Random(self._ops, self._dtype, self._method, self._names.kept_plain, made=False)
        assemble(self.spec, self._names, source)
        return WeightSizes(source.nbytes, source.widest)

    def decoder(self, threads: int, max_positions: int) -> Decoder:
        torch.manual_seed(0)
        source = _Random(self._ops, self._dtype, self._method, self._names.kept_plain)
        return Decoder(self.spec, assemble(self.spec, self._names, source), self._ops, max_positions)


class _Counted:
    """Stands for a weight that is only counted."""

    shape = (0, 0)
    nbytes = 0


class _Random:
    """A ``Source`` of normal values; not ``made``: of none, and it packs nothing."""

    def __init__(
        self, ops: Ops, stored: torch.dtype, method: str | None, keep: Sequence[str], made: bool = True
    ) -> None:
        self.dtype = ops.dtype
        self._stored = stored
        self.nbytes = 0
        self.widest = 0
        self._device = ops.device
        self._ops = ops if made else None
        self._method = method
        self._keep = tuple(keep)

    def has(self, name: str) -> bool:
        return False

    def vector(self, name: str, *shape: int) -> torch.Tensor:
        if self._ops is None:  # arithmetic on meta tensors makes torch import its compiler: seconds
            return torch.zeros(shape)
        return torch.randn(shape, device=self._device) * _SCALE + 1

    def constant(self, values: torch.Tensor) -> torch.Tensor:
        return values if self._ops is None else values.to(self._device)

    def matrix(self, module: str, outputs: int, inputs: int, stack: int = 1) -> Layout:
        method = None if module.endswith(self._keep) else self._method
        count = stack * outputs * inputs
        size = nbytes(count, method, self._device) if method else count * self._stored.itemsize
        self.nbytes += size
        if self._ops is None:
            return unread(stack * outputs, inputs, size)
        weight = torch.empty((stack * outputs, inputs), dtype=self._stored, device=self._device)
        weight.normal_(std=_SCALE)
        return quantize(weight, method) if method else Dense(weight)

    def transposed(self, name: str, stack: int, outputs: int, inputs: int) -> Layout:
        return self.matrix(name, outputs, inputs, stack)

    def pack(self, layouts: Iterable[Layout]) -> Weight:
        made = list(layouts)
        if self._ops is not None:
            return self._ops.pack(*made)
        self.widest = max(self.widest, narrow_numbers(made))
        return _Counted()

    def pack_stack(self, layouts: Iterable[Layout]) -> Weight:
        made = list(layouts)
        return self._ops.pack_stack(made) if self._ops else _Counted()
