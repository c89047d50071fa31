"""A decoder described by data: frozen dataclasses without tensors, made by the families from a model's config."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from quire.ops.shapes import DeltaShape, Routing

Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2", "swiglu_oss"]


@dataclass(frozen=True)
class NormSpec:
    kind: Literal["rms", "layer"] = "rms"
    eps: float = 1e-6
    weight_offset: float = 0.0  # Gemma multiplies by 1 + weight
    bias: bool = False
    affine: bool = True  # False: nothing is learned, the weight is one


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
    qk_norm: NormSpec | None = None  # of queries and keys, before the rotary embedding
    qk_norm_over: Literal["head", "heads", "all"] = "head"  # each head alike, each by its own weights, all together
    alibi: tuple[float, ...] | None = None  # slope of each head
    qkv_bias: bool = False
    out_bias: bool = False
    sinks: bool = False  # a learned logit of each head takes part in the softmax
    latent: LatentSpec | None = None
    gated: bool = False  # outputs are multiplied by the sigmoid of gates that are made like the queries

    def page_bytes(self, page_size: int, item_bytes: int, latent_once: bool = False) -> int:
        """``latent_once``: the device keeps the latent vector, which is key and value, once."""
        copies = 1 if self.latent and latent_once else 2
        scale = 4 if item_bytes == 1 else 0  # of 8-bit floats, for each head of each token
        return copies * self.kv_heads * page_size * (self.head_dim * item_bytes + scale)


@dataclass(frozen=True)
class DeltaSpec(DeltaShape):
    """A state of fixed size, which depends on all earlier tokens.

    Its pages hold states, not tokens: for the next token the page of the last one is enough, as for a window of two.
    """

    rope: ClassVar[None] = None
    window: ClassVar[int] = 2

    def page_bytes(self, page_size: int, item_bytes: int, latent_once: bool = False) -> int:
        state = self.value_heads * self.key_dim * self.value_dim
        return 2 * (4 * (self.channels * (self.kernel - 1) + state) + 8)


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
    """Where the norms are: before attention and mlp (``pre``), after them (``post``) or both (``sandwich``).

    ``parallel``: attention and mlp read the same normed input; ``parallel_norms``: each from a norm of its own.
    """

    attention: AttentionSpec | DeltaSpec
    mlp: MlpSpec | MoeSpec
    norm: NormSpec
    placement: Literal["pre", "post", "sandwich", "parallel", "parallel_norms"] = "pre"


@dataclass(frozen=True)
class DecoderSpec:
    family: str
    hidden_size: int
    vocab_size: int
    max_position: int
    layers: tuple[LayerSpec, ...]
    final_norm: NormSpec
    tied_head: bool
    head_bias: bool = False
    unit_head: bool = False  # the rows of the head are brought to unit length
    embedding_multiplier: float = 1.0
    embedding_norm: NormSpec | None = None
    learned_positions: int | None = None  # as many embeddings, added to those of the tokens
    position_offset: int = 0  # the embedding of position 0
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    eos_token_ids: tuple[int, ...] = field(default=())
    max_stretched_position: int = 0  # how far scaled rotary embeddings reach, where that is asked for
