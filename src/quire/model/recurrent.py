"""Layers that keep a state of fixed size a sequence: a short convolution, then the gated delta rule (Qwen3-Next)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from quire.model.linear import Linear
from quire.model.spec import DeltaSpec
from quire.ops.backend import AttentionStep, DeltaWeights, Ops, Pages


@dataclass(frozen=True)
class GatedDelta:
    spec: DeltaSpec
    inputs: Linear  # hidden -> queries, keys, values (which the convolution mixes), output gates, betas, decays
    weights: DeltaWeights
    norm: torch.Tensor  # [value_dim]
    eps: float
    out: Linear

    def __call__(
        self, ops: Ops, x: torch.Tensor, cos_sin: torch.Tensor | None, pages: Pages, step: AttentionStep
    ) -> torch.Tensor:
        """What ``out`` takes for ``x [T, hidden]``; moves the states in ``pages`` on."""
        s = self.spec
        width, heads = s.value_heads * s.value_dim, s.value_heads
        mixed, gate, beta, decay = self.inputs(ops, x).split([s.channels, width, heads, heads], dim=1)
        y = ops.gated_delta(mixed, beta, decay, self.weights, s, pages, step)
        y = ops.rms_norm(y.view(-1, s.value_dim), self.norm, self.eps)[0].view(len(x), width) * F.silu(gate.float())
        return y.to(x.dtype)

    @property
    def nbytes(self) -> int:
        return self.inputs.nbytes + self.out.nbytes
