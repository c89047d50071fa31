"""The one decoder: its parts are chosen by the spec, its arithmetic is done by the ops of a backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from quire.model.attention import Attention
from quire.model.latent import LatentAttention
from quire.model.linear import Linear
from quire.model.mlp import Mlp
from quire.model.moe import Moe
from quire.model.rope import cos_sin_table
from quire.model.spec import DecoderSpec, RopeSpec
from quire.ops.backend import AttentionStep, Ops, Pages, Weight


@dataclass(frozen=True)
class LayerWeights:
    attention_norm: torch.Tensor
    attention: Attention | LatentAttention
    post_attention_norm: torch.Tensor | None
    mlp_norm: torch.Tensor
    mlp: Mlp | Moe
    post_mlp_norm: torch.Tensor | None


@dataclass(frozen=True)
class DecoderWeights:
    embedding: Weight
    layers: tuple[LayerWeights, ...]
    final_norm: torch.Tensor
    head: Linear

    @property
    def nbytes(self) -> int:
        """Bytes of the matrices; a tied head counts once."""
        head = 0 if self.head.weight is self.embedding else self.head.nbytes
        return sum(w.attention.nbytes + w.mlp.nbytes for w in self.layers) + self.embedding.nbytes + head


@dataclass(frozen=True)
class Step:
    """Tokens of all sequences laid end to end; ``attention`` holds one entry for each KV group."""

    token_ids: torch.Tensor  # [T] int64
    attention: Sequence[AttentionStep]


def kv_windows(spec: DecoderSpec) -> list[int | None]:
    """The window of each KV group, full attention (``None``) first; layers of equal window share a group."""
    windows = {layer.attention.window for layer in spec.layers}
    return sorted(windows, key=lambda window: (window is not None, window or 0))


class Model(Protocol):
    """What the runner needs of a model."""

    spec: DecoderSpec

    @property
    def nbytes(self) -> int:
        """Bytes of the matrices."""
        ...

    def forward(self, step: Step, pages: Sequence[Pages]) -> torch.Tensor: ...

    def logits(self, hidden: torch.Tensor) -> torch.Tensor: ...


class Decoder:
    """Runs a step's tokens through all layers. ``max_positions`` bounds the rotary tables."""

    def __init__(self, spec: DecoderSpec, weights: DecoderWeights, ops: Ops, max_positions: int) -> None:
        self.spec = spec
        self._weights = weights
        self._ops = ops
        windows = kv_windows(spec)
        self._group = [windows.index(layer.attention.window) for layer in spec.layers]
        tables: dict[RopeSpec, torch.Tensor] = {}
        for layer in spec.layers:
            rope = layer.attention.rope
            if rope is not None and rope not in tables:
                tables[rope] = cos_sin_table(rope, max_positions)
        self._cos_sin = [tables[a.rope] if (a := layer.attention).rope else None for layer in spec.layers]

    @property
    def nbytes(self) -> int:
        """Bytes of the matrices."""
        return self._weights.nbytes

    def forward(self, step: Step, pages: Sequence[Pages]) -> torch.Tensor:
        """Last hidden states ``[T, hidden]``, normed; writes keys and values to ``pages`` (one entry a layer)."""
        ops = self._ops
        x = ops.embed(self._weights.embedding, step.token_ids, self.spec.embedding_multiplier)
        residual: torch.Tensor | None = None
        for i, (layer, w) in enumerate(zip(self.spec.layers, self._weights.layers, strict=True)):
            eps = layer.norm.eps
            x, residual = ops.rms_norm(x, w.attention_norm, eps, residual)
            x = w.attention(ops, x, self._cos_sin[i], pages[i], step.attention[self._group[i]])
            x = self._post(x, w.post_attention_norm, eps)
            x, residual = ops.rms_norm(x, w.mlp_norm, eps, residual)
            x = w.mlp(ops, x)
            x = self._post(x, w.post_mlp_norm, eps)
        return ops.rms_norm(x, self._weights.final_norm, self.spec.final_norm.eps, residual)[0]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 ``[R, vocab]`` for rows ``[R, hidden]`` of ``forward``."""
        logits = self._weights.head(self._ops, hidden).float()
        cap = self.spec.logit_softcap
        return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)

    def _post(self, x: torch.Tensor, norm: torch.Tensor | None, eps: float) -> torch.Tensor:
        return x if norm is None else self._ops.rms_norm(x, norm, eps)[0]
