"""From token ids to the first hidden states."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from quire.model.norm import Norm
from quire.ops.backend import Ops, Weight


@dataclass(frozen=True)
class Embedding:
    tokens: Weight
    multiplier: float = 1.0
    positions: torch.Tensor | None = None  # [positions, hidden], learned
    norm: Norm | None = None

    def __call__(self, ops: Ops, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """``ids [T] int64``, ``positions [T] int32`` -> ``[T, hidden]``."""
        x = ops.embed(self.tokens, ids, self.multiplier)
        if self.positions is not None:
            x = ops.add_positions(x, self.positions, positions)
        return x if self.norm is None else self.norm(ops, x)[0]
