"""Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434), in its absorbed form.

Keys and values of all heads are linear in one latent vector a token. So the pages hold the latent (after the part of
the key that is rotated), as the key and the value of a single head, and each head's matrices move to the query and the
output: ``q . (K c) = (K^T q) . c``, and ``sum_t p_t (V c_t) = V sum_t p_t c_t``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from quire.model.linear import Linear
from quire.model.spec import AttentionSpec, LatentSpec
from quire.ops.backend import AttentionStep, Ops, Pages, Weight


@dataclass(frozen=True)
class LatentAttention:
    """``spec``: attention as the pages see it, one key/value head of ``rotary + rank`` dimensions."""

    spec: AttentionSpec
    latent: LatentSpec
    eps: float
    q_down: Linear | None  # hidden -> q_rank
    q_norm: torch.Tensor | None
    q: Linear  # hidden or q_rank -> heads * (plain + rotary)
    kv_down: Linear  # hidden -> rank + rotary
    kv_norm: torch.Tensor  # [rank]
    keys: Weight  # stack of a head's K^T: plain -> rank
    values: Weight  # stack of a head's V: rank -> value_dim
    out: Linear

    def __call__(
        self, ops: Ops, x: torch.Tensor, cos_sin: torch.Tensor | None, pages: Pages, step: AttentionStep
    ) -> torch.Tensor:
        """What ``out`` takes for ``x [T, hidden]``; writes latents to ``pages``."""
        a, m, tokens = self.spec, self.latent, len(x)
        shape = (a.heads, a.kv_heads, a.head_dim)
        interleaved = a.rope is not None and a.rope.interleaved
        qkv = torch.cat([self._queries(ops, x), *self._keys_and_values(ops, x)], dim=1)
        q = ops.qk_norm_rope_store(qkv, *shape, None, None, 0.0, cos_sin, interleaved, pages, step)
        y = ops.attention(q, pages, step, *shape, a.scale, a.window, a.softcap)
        return self._by_head(ops, y.view(tokens, a.heads, a.head_dim)[..., m.rotary :], self.values).flatten(1)

    def _queries(self, ops: Ops, x: torch.Tensor) -> torch.Tensor:
        """``[T, heads * (rotary + rank)]``."""
        m = self.latent
        if self.q_down is not None and self.q_norm is not None:
            x = ops.rms_norm(self.q_down(ops, x), self.q_norm, self.eps)[0]
        plain, rotary = self.q(ops, x).view(len(x), self.spec.heads, -1).split([m.plain, m.rotary], dim=2)
        return torch.cat([rotary, self._by_head(ops, plain, self.keys)], dim=2).flatten(1)

    def _keys_and_values(self, ops: Ops, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The single head's key and value ``[T, rotary + rank]``: the same, but that the key will be rotated."""
        latent, rotary = self.kv_down(ops, x).split([self.latent.rank, self.latent.rotary], dim=1)
        latent = ops.rms_norm(latent, self.kv_norm, self.eps)[0]
        both = torch.cat([rotary, latent], dim=1)
        return both, both

    def _by_head(self, ops: Ops, x: torch.Tensor, stack: Weight) -> torch.Tensor:
        """``x [T, heads, K]``, each head times its own matrix: ``[T, heads, N]``."""
        tokens, heads, width = x.shape
        offsets = torch.arange(0, (heads + 1) * tokens, tokens, dtype=torch.int32, device=x.device)
        y = ops.grouped_linear(x.transpose(0, 1).reshape(heads * tokens, width), stack, offsets)
        return y.view(heads, tokens, -1).transpose(0, 1)

    @property
    def nbytes(self) -> int:
        q_down = self.q_down.nbytes if self.q_down else 0
        heads = self.keys.nbytes + self.values.nbytes
        return q_down + self.q.nbytes + self.kv_down.nbytes + heads + self.out.nbytes
