"""Where a family's weights stand in a Hugging Face checkpoint: data only.

``{i}`` is the layer. A tuple of names is fused: their rows (outputs) are laid one after another. Names are modules;
``.weight`` and ``.bias`` are their parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

_ATTENTION = "model.layers.{i}.self_attn."
_MLP = "model.layers.{i}.mlp."
_DELTA = "model.layers.{i}.linear_attn."


@dataclass(frozen=True)
class LatentNames:
    q_down: str = _ATTENTION + "q_a_proj"
    q_norm: str = _ATTENTION + "q_a_layernorm"
    q: str = _ATTENTION + "q_proj"  # without a q_down
    q_up: str = _ATTENTION + "q_b_proj"
    kv_down: str = _ATTENTION + "kv_a_proj_with_mqa"
    kv_norm: str = _ATTENTION + "kv_a_layernorm"
    kv_up: str = _ATTENTION + "kv_b_proj"


@dataclass(frozen=True)
class DeltaNames:
    """``inputs``: queries with keys and values, gates, betas, decays; or the first two by key head, and the others."""

    inputs: tuple[str, ...]
    kernel: str = _DELTA + "conv1d.weight"
    decay: str = _DELTA + "A_log"
    decay_bias: str = _DELTA + "dt_bias"
    norm: str = _DELTA + "norm.weight"
    out: str = _DELTA + "out_proj"


@dataclass(frozen=True)
class MoeNames:
    """Experts are modules each, with ``{e}`` in their names, or one parameter ``[E, N, K]``.

    Such a parameter may be ``transposed``, to ``[E, K, N]``, where it is not quantised; its gates and ups may take
    turns (``interleaved``); its bias, if any, has ``bias_suffix`` in its name.
    """

    router: str = _MLP + "gate"
    correction: str = _MLP + "gate.e_score_correction_bias"
    gate_up: tuple[str, ...] = (_MLP + "experts.{e}.gate_proj", _MLP + "experts.{e}.up_proj")
    down: str = _MLP + "experts.{e}.down_proj"
    transposed: bool = False
    interleaved: bool = False
    bias_suffix: str = "_bias"
    shared_gate_up: tuple[str, ...] = (_MLP + "shared_experts.gate_proj", _MLP + "shared_experts.up_proj")
    shared_down: str = _MLP + "shared_experts.down_proj"
    shared_gate: str = _MLP + "shared_expert_gate"


@dataclass(frozen=True)
class WeightMap:
    embedding: str = "model.embed_tokens"
    positions: str = ""
    embedding_norm: str = ""
    final_norm: str = "model.norm"
    head: str = "lm_head"
    attention_norm: str = "model.layers.{i}.input_layernorm"
    transposed: bool = False  # weights of linear layers are stored [inputs, outputs], where they are not quantised
    qkv_by_group: bool = False  # of one module: each key/value head follows its query heads, and its value it
    qkv: tuple[str, ...] = (_ATTENTION + "q_proj", _ATTENTION + "k_proj", _ATTENTION + "v_proj")
    q_norm: str = _ATTENTION + "q_norm"
    k_norm: str = _ATTENTION + "k_norm"
    out: tuple[str, ...] = (_ATTENTION + "o_proj",)
    post_attention_norm: str = ""
    mlp_norm: str = "model.layers.{i}.post_attention_layernorm"
    gate_up: tuple[str, ...] = (_MLP + "gate_proj", _MLP + "up_proj")
    down: tuple[str, ...] = (_MLP + "down_proj",)
    post_mlp_norm: str = ""
    parallel_norms: tuple[str, str] | None = None  # of attention and mlp, where other than without parallel layers
    sinks: str = _ATTENTION + "sinks"
    latent: LatentNames = LatentNames()
    moe: MoeNames = MoeNames()
    delta: DeltaNames | None = None

    @property
    def kept_plain(self) -> list[str]:
        """Endings of modules that quantisation at load leaves as they are: embedding, head, routers."""
        return [name.rpartition("}.")[2] for name in (self.embedding, self.head, self.moe.router)]
