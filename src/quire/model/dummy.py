"""Random weights for benchmarks: a model's arithmetic and memory from its config alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from quire.model.assemble import assemble
from quire.model.decoder import Decoder
from quire.model.inventory import Matrix, Vector, WeightSizes, tensors_of, weight_sizes
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
        self._ops = ops
        self._tensors = tensors_of(spec, names, stored=())
        stored = dtype if ops.device.type == "cpu" else ops.dtype
        self._source = _Random(ops, stored, load_method(quantization) if quantization else None, names.kept_plain)

    def check(self) -> WeightSizes:
        return weight_sizes(self._tensors, self._source.nbytes)

    def decoder(self, threads: int, max_positions: int) -> Decoder:
        torch.manual_seed(0)
        return Decoder(self.spec, assemble(self._tensors, self._source), self._ops, max_positions)


class _Random:
    """A ``Source`` of normal values."""

    def __init__(self, ops: Ops, stored: torch.dtype, method: str | None, keep: Sequence[str]) -> None:
        self.dtype = ops.dtype
        self._stored = stored
        self._ops = ops
        self._method = method
        self._keep = tuple(keep)

    def nbytes(self, matrix: Matrix) -> int:
        """Once loaded."""
        count, method = matrix.stack * matrix.outputs * matrix.inputs, self._method_of(matrix)
        return nbytes(count, method, self._ops.device) if method else count * self._stored.itemsize

    def vector(self, vector: Vector) -> torch.Tensor:
        return torch.randn(vector.shape, device=self._ops.device) * _SCALE + 1

    def constant(self, values: torch.Tensor) -> torch.Tensor:
        return values.to(self._ops.device)

    def matrix(self, matrix: Matrix) -> Layout:
        shape, method = (matrix.stack * matrix.outputs, matrix.inputs), self._method_of(matrix)
        weight = torch.empty(shape, dtype=self._stored, device=self._ops.device).normal_(std=_SCALE)
        return quantize(weight, method) if method else Dense(weight)

    def _method_of(self, matrix: Matrix) -> str | None:
        return None if matrix.module.endswith(self._keep) else self._method

    def pack(self, layouts: Iterable[Layout]) -> Weight:
        return self._ops.pack(*layouts)

    def pack_stack(self, layouts: Iterable[Layout]) -> Weight:
        return self._ops.pack_stack(layouts)
