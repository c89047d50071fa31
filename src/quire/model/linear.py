"""A linear layer: a packed weight and a bias."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from quire.ops.backend import Ops, Weight


@dataclass(frozen=True)
class Linear:
    weight: Weight
    bias: torch.Tensor | None = None

    def __call__(self, ops: Ops, x: torch.Tensor) -> torch.Tensor:
        """``x [T, K]`` -> ``[T, N]``."""
        return ops.linear(x, self.weight, self.bias)

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes
