"""One layer: attention and mlp, and where the norms and the residual stand.

A layer takes the stream of hidden states as a sum of two, ``x + residual`` (the first layer: only ``x``), and returns
it so, because the addition is fused with the norm that follows. The last layer is asked for the rows that are
``wanted``, if not for all: past its attention no row depends on another.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from quire.model.attention import Attention
from quire.model.latent import LatentAttention
from quire.model.mlp import Mlp
from quire.model.moe import Moe
from quire.model.norm import Norm
from quire.model.recurrent import GatedDelta
from quire.ops.backend import AttentionStep, Ops, Pages

State = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class _Parts:
    attention: Attention | LatentAttention | GatedDelta
    mlp: Mlp | Moe

    @property
    def nbytes(self) -> int:
        """Bytes of the matrices."""
        return self.attention.nbytes + self.mlp.nbytes


@dataclass(frozen=True)
class PreNorm(_Parts):
    """Norms before attention and mlp; in sandwiches after them too."""

    attention_norm: Norm
    mlp_norm: Norm
    post_attention_norm: Norm | None = None
    post_mlp_norm: Norm | None = None

    def __call__(
        self,
        ops: Ops,
        x: torch.Tensor,
        residual: torch.Tensor | None,
        cos_sin: torch.Tensor | None,
        pages: Pages,
        step: AttentionStep,
        wanted: torch.Tensor | None = None,
    ) -> State:
        x, residual = self.attention_norm(ops, x, residual)
        x = self.attention(ops, x, cos_sin, pages, step)
        if wanted is not None:
            x, residual = x[wanted], residual[wanted]
        x = self.attention.out(ops, x)
        if self.post_attention_norm is not None:
            x = self.post_attention_norm(ops, x)[0]
        x, residual = self.mlp_norm(ops, x, residual)
        x = self.mlp(ops, x)
        if self.post_mlp_norm is not None:
            x = self.post_mlp_norm(ops, x)[0]
        return x, residual


@dataclass(frozen=True)
class PostNorm(_Parts):
    """Norms only after attention and mlp, before the residual is added."""

    attention_norm: Norm
    mlp_norm: Norm

    def __call__(
        self,
        ops: Ops,
        x: torch.Tensor,
        residual: torch.Tensor | None,
        cos_sin: torch.Tensor | None,
        pages: Pages,
        step: AttentionStep,
        wanted: torch.Tensor | None = None,
    ) -> State:
        total = x if residual is None else ops.add(x, residual)
        x = self.attention(ops, total, cos_sin, pages, step)
        if wanted is not None:
            x, total = x[wanted], total[wanted]
        x = self.attention_norm(ops, self.attention.out(ops, x))[0]
        total = ops.add(x, total)
        return self.mlp_norm(ops, self.mlp(ops, total))[0], total


@dataclass(frozen=True)
class Parallel(_Parts):
    """Attention and mlp side by side, from one norm or one each."""

    norm: Norm
    mlp_norm: Norm | None = None

    def __call__(
        self,
        ops: Ops,
        x: torch.Tensor,
        residual: torch.Tensor | None,
        cos_sin: torch.Tensor | None,
        pages: Pages,
        step: AttentionStep,
        wanted: torch.Tensor | None = None,
    ) -> State:
        normed, residual = self.norm(ops, x, residual)
        x = self.attention(ops, normed, cos_sin, pages, step)
        if wanted is not None:
            x, normed, residual = x[wanted], normed[wanted], residual[wanted]
        y = normed if self.mlp_norm is None else self.mlp_norm(ops, residual)[0]
        return ops.add(self.attention.out(ops, x), self.mlp(ops, y)), residual


Layer = PreNorm | PostNorm | Parallel
