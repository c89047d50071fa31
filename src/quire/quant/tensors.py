"""Tensors out of checkpoint files."""

from __future__ import annotations

import torch

from quire.weights.errors import CheckpointError
from quire.weights.tensors import RawTensor

_TYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.uint8,  # as its bits
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
}


def to_torch(raw: RawTensor) -> torch.Tensor:
    """A tensor of plain numbers, copied out of the file."""
    return torch.from_numpy(raw.data.copy()).view(_TYPES[raw.type]).view(raw.shape)


def finite(name: str, values: torch.Tensor) -> torch.Tensor:
    """``values``; raises ``CheckpointError`` where one is infinite or no number."""
    if not bool(values.isfinite().all()):
        raise CheckpointError(f"The checkpoint is corrupt: {name} holds values that are not finite numbers.")
    return values
