"""Norms of hidden states, with what they multiply by and add."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from quire.model.spec import NormSpec
from quire.ops.backend import Ops, Weight


@dataclass(frozen=True)
class Norm:
    """``reader``: the weight of the product that alone reads the result, which may then be of use to it only."""

    spec: NormSpec
    weight: torch.Tensor
    bias: torch.Tensor | None = None
    reader: Weight | None = None

    def __call__(
        self, ops: Ops, x: torch.Tensor, residual: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``x [T, hidden]`` plus ``residual``, normed; and that sum itself. May overwrite ``residual``."""
        if self.spec.kind == "layer":
            return ops.layer_norm(x, self.weight, self.bias, self.spec.eps, residual, self.reader)
        return ops.rms_norm(x, self.weight, self.spec.eps, residual, self.reader)

    def columns(self, ops: Ops, x: torch.Tensor, start: int) -> None:
        """Norm columns of ``x`` from ``start`` on, in place: as many parts as the weight has rows."""
        ops.norm_columns(x, start, self.weight, self.bias, self.spec.eps, self.spec.kind == "layer")
