"""Reading a checkpoint's linear layers, whatever it stores them in."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

import torch

from quire.ops.layouts import Dense, Layout
from quire.quant import awq, bitsandbytes, compressed_tensors, float4, fp8, gptq
from quire.quant.at_load import nbytes, quantize
from quire.quant.formats.awq import AwqScheme
from quire.quant.formats.bitsandbytes import EightBitScheme, FourBitScheme
from quire.quant.formats.compressed_tensors import Int8Scheme, PackedScheme
from quire.quant.formats.fp8 import Fp8Scheme
from quire.quant.formats.gptq import GptqScheme
from quire.quant.formats.mxfp4 import Mxfp4Scheme
from quire.quant.formats.nvfp4 import Nvfp4Scheme
from quire.quant.formats.scheme import Scheme
from quire.quant.formats.storage import Storage
from quire.quant.gguf import loaded_nbytes, unpack
from quire.quant.tensors import to_torch
from quire.weights.errors import CheckpointError
from quire.weights.tensors import RawTensor

_CPU = torch.device("cpu")
# The kernel layout of a layer's tensors, keyed, shaped and typed as the scheme's ``parts`` say. Each raises
# ``CheckpointError`` for values that make no sense.
LAYOUTS: dict[type[Scheme], Callable[[Any, Mapping[str, torch.Tensor], int, int], Layout]] = {
    GptqScheme: gptq.layout,
    AwqScheme: awq.layout,
    FourBitScheme: bitsandbytes.four_bit,
    EightBitScheme: bitsandbytes.eight_bit,
    PackedScheme: compressed_tensors.packed,
    Int8Scheme: compressed_tensors.int8,
    Fp8Scheme: fp8.layout,
    Mxfp4Scheme: float4.mxfp4,
    Nvfp4Scheme: float4.nvfp4,
}

logger = logging.getLogger("quire.quant")


class Reader(Protocol):
    """Linear layers by name. ``stack``: that many matrices in one tensor, laid end to end (experts)."""

    def nbytes(self, module: str, outputs: int, inputs: int, stack: int = 1) -> int:
        """Bytes of a module once loaded. Raises ``CheckpointError`` as ``Storage.tensors`` does."""
        ...

    def read(self, module: str, outputs: int, inputs: int, stack: int = 1) -> Layout:
        """``[stack * outputs, inputs]``. Raises ``CheckpointError`` for what ``nbytes`` refuses, and corrupt values."""
        ...

    def made(self, module: str, weight: torch.Tensor) -> Layout:
        """The layout of plain weights ``[N, K]`` that come from elsewhere."""
        ...


class StoredReader:
    """A checkpoint's layers as they are stored."""

    def __init__(self, storage: Storage, device: torch.device) -> None:
        self._storage = storage
        self._checkpoint = storage.checkpoint
        self._device = device

    def nbytes(self, module: str, outputs: int, inputs: int, stack: int = 1) -> int:
        total = 0
        for name, part in self._storage.tensors(module, outputs, inputs, stack).items():
            info = self._checkpoint.info(name)
            total += 4 * part.floats * math.prod(info.shape) if part.floats else loaded_nbytes(info, self._device)
        return total

    def read(self, module: str, outputs: int, inputs: int, stack: int = 1) -> Layout:
        names = self._storage.tensors(module, outputs, inputs, stack)
        scheme = self._storage.scheme_of(module)
        if scheme is None:
            (name,) = names
            return self._plain(name, stack * outputs, inputs)
        tensors = {}
        for name in names:
            tensor = to_torch(self._checkpoint.read(name))
            self._checkpoint.release(name)
            tensors[name.removeprefix(module)] = tensor.flatten(0, 1) if stack > 1 else tensor
        try:
            return LAYOUTS[type(scheme)](scheme, tensors, stack * outputs, inputs)
        except CheckpointError as error:
            raise CheckpointError(f"{module}: {error}") from None

    def made(self, module: str, weight: torch.Tensor) -> Layout:
        return Dense(weight)

    def _plain(self, name: str, outputs: int, inputs: int) -> Layout:
        raw = self._checkpoint.read(name)
        try:
            layout = unpack(RawTensor(raw.type, (outputs, inputs), raw.data))
        except CheckpointError as error:
            raise CheckpointError(f"{name}: {error}") from None
        self._checkpoint.release(name)
        return layout


class LoadReader:
    """``reader``'s weights by ``method``, computed on ``device``; modules that end in one of ``keep`` stay."""

    def __init__(self, reader: Reader, method: str, keep: Collection[str], device: torch.device) -> None:
        self._reader = reader
        self._method = method
        self._keep = tuple(keep)
        self._device = device

    def nbytes(self, module: str, outputs: int, inputs: int, stack: int = 1) -> int:
        stored = self._reader.nbytes(module, outputs, inputs, stack)
        return (
            stored if self._kept(module) else min(stored, nbytes(stack * outputs * inputs, self._method, self._device))
        )

    def read(self, module: str, outputs: int, inputs: int, stack: int = 1) -> Layout:
        layout = self._reader.read(module, outputs, inputs, stack)
        return self.made(module, layout.weight) if isinstance(layout, Dense) else layout

    def made(self, module: str, weight: torch.Tensor) -> Layout:
        return Dense(weight) if self._kept(module) else quantize(weight.to(self._device), self._method)

    def _kept(self, module: str) -> bool:
        return module.endswith(self._keep) if self._keep else False


def reader_of(storage: Storage, keep: Collection[str] = (), device: torch.device = _CPU) -> Reader:
    """The reader of a checkpoint's linear layers.

    ``keep``: endings of modules that quantisation at load leaves as they are (embedding, head, routers). ``device``:
    that of the kernels, where it is computed.
    """
    if storage.kv_scales:
        logger.warning(
            "The checkpoint's scales of keys and values (kv_cache_scheme) are not used: pages hold them in the type "
            "of activations, or of --kv-cache-dtype, whose fp8 has a finer scale for each head and token."
        )
    reader = StoredReader(storage, device)
    return reader if storage.at_load is None else LoadReader(reader, storage.at_load, keep, device)
