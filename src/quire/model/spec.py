"""A decoder described by data: frozen dataclasses without tensors, made by the families from a model's config."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from quire.ops.backend import Routing

Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2", "swiglu_oss"]


@dataclass(frozen=True)
class NormSpec:
    kind: Literal["rms", "layer"] = "rms"
    eps: float = 1e-6
    weight_offset: float = 0.0  # Gemma multiplies by 1 + weight
    bias: bool = False


@dataclass(frozen=True)
class RopeSpec:
    """Rotary embedding: frequencies are ``base ** (-2i / rotary_dim)``, changed by ``scaling``."""

    base: float
    rotary_dim: int
    scaling: tuple[tuple[str, float | str | tuple[float, ...]], ...] = ()  # kind and its numbers, as in config.json
    interleaved: bool = False  # pairs (0, 1), (2, 3) ... instead of halves


@dataclass(frozen=True)
class LatentSpec:
    """Multi-head latent attention: keys and values come from ``rank`` numbers a token and ``rotary`` of the key."""

    rank: int
    plain: int  # dimensions of a head's query and key that are not rotated
    rotary: int
    value_dim: int
    q_rank: int | None = None  # queries are made from as many numbers


@dataclass(frozen=True)
class AttentionSpec:
    """``latent``: the rest is then as the pages see it, one key/value head of ``rotary + rank`` dimensions."""

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    rope: RopeSpec | None
    window: int | None = None  # tokens visible, the token itself included
    softcap: float | None = None
    qk_norm: NormSpec | None = None  # over head_dim, before the rotary embedding
    qkv_bias: bool = False
    out_bias: bool = False
    sinks: bool = False  # a learned logit of each head takes part in the softmax
    latent: LatentSpec | None = None


@dataclass(frozen=True)
class MlpSpec:
    size: int
    activation: Activation
    gated: bool = True
    bias: bool = False


@dataclass(frozen=True)
class MoeSpec:
    """Gated experts of ``expert_size`` each, chosen by ``routing``; ``shared`` is for all tokens."""

    experts: int
    expert_size: int
    activation: Activation
    routing: Routing
    router_bias: bool = False
    correction: bool = False  # a bias of the scores that choose
    expert_bias: bool = False
    shared: MlpSpec | None = None
    shared_gate: bool = False

    @property
    def size(self) -> int:
        """Of a dense layer that does as much for a token."""
        return self.routing.top_k * self.expert_size + (self.shared.size if self.shared else 0)


@dataclass(frozen=True)
class LayerSpec:
    """``sandwich`` norms the output of attention and mlp too, before the residual is added."""

    attention: AttentionSpec
    mlp: MlpSpec | MoeSpec
    norm: NormSpec
    placement: Literal["pre", "sandwich"] = "pre"


@dataclass(frozen=True)
class DecoderSpec:
    family: str
    hidden_size: int
    vocab_size: int
    max_position: int
    layers: tuple[LayerSpec, ...]
    final_norm: NormSpec
    tied_head: bool
    embedding_multiplier: float = 1.0
    logit_softcap: float | None = None
    eos_token_ids: tuple[int, ...] = field(default=())
