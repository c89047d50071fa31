"""Attention over keys and values of heads of their own, or shared by groups of query heads."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from quire.model.linear import Linear
from quire.model.norm import Norm
from quire.model.spec import AttentionSpec
from quire.ops.backend import AttentionStep, Ops, Pages


@dataclass(frozen=True)
class Attention:
    spec: AttentionSpec
    qkv: Linear
    out: Linear
    q_norm: torch.Tensor | None = None
    k_norm: torch.Tensor | None = None
    qk_norms: tuple[tuple[int, Norm], ...] = ()  # other norms than RMS of each head, from a column on
    slopes: torch.Tensor | None = None  # [heads]
    sinks: torch.Tensor | None = None  # [heads]
    gate: Linear | None = None  # the outputs are multiplied by its sigmoid

    def __call__(
        self, ops: Ops, x: torch.Tensor, cos_sin: torch.Tensor | None, pages: Pages, step: AttentionStep
    ) -> torch.Tensor:
        """What ``out`` takes for ``x [T, hidden]``; writes keys and values to ``pages``."""
        a = self.spec
        shape = (a.heads, a.kv_heads, a.head_dim)
        eps = a.qk_norm.eps if a.qk_norm else 0.0
        interleaved = a.rope is not None and a.rope.interleaved
        qkv = self.qkv(ops, x)
        for start, norm in self.qk_norms:
            norm.columns(ops, qkv, start)
        q = ops.qk_norm_rope_store(qkv, *shape, self.q_norm, self.k_norm, eps, cos_sin, interleaved, pages, step)
        y = ops.attention(q, pages, step, *shape, a.scale, a.window, a.softcap, self.sinks, self.slopes)
        return y if self.gate is None else y * self.gate(ops, x).sigmoid()

    @property
    def nbytes(self) -> int:
        return self.qkv.nbytes + self.out.nbytes + (self.gate.nbytes if self.gate else 0)
