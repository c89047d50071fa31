"""A linear layer: packed weights in one or several kernel layouts, side by side, and a bias."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from quire.ops.backend import Ops, Weight


@dataclass(frozen=True)
class Linear:
    """``parts`` lie one after another along the outputs: fused layers whose checkpoints mix layouts have several."""

    parts: tuple[Weight, ...]
    bias: torch.Tensor | None = None

    def __call__(self, ops: Ops, x: torch.Tensor) -> torch.Tensor:
        """``x [T, K]`` -> ``[T, N]``."""
        if len(self.parts) == 1:
            return ops.linear(x, self.parts[0], self.bias)
        y = torch.cat([ops.linear(x, part) for part in self.parts], dim=1)
        return y if self.bias is None else y.add_(self.bias)

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)
