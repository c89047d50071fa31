"""Where a family's weights stand in a Hugging Face checkpoint: data only.

``{i}`` is the layer. A tuple of names is fused: their rows (outputs) are laid one after another. Names are modules;
``.weight`` and ``.bias`` are their parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

_ATTENTION = "model.layers.{i}.self_attn."
_MLP = "model.layers.{i}.mlp."


@dataclass(frozen=True)
class WeightMap:
    embedding: str = "model.embed_tokens"
    final_norm: str = "model.norm"
    head: str = "lm_head"
    attention_norm: str = "model.layers.{i}.input_layernorm"
    qkv: tuple[str, ...] = (_ATTENTION + "q_proj", _ATTENTION + "k_proj", _ATTENTION + "v_proj")
    q_norm: str = _ATTENTION + "q_norm"
    k_norm: str = _ATTENTION + "k_norm"
    out: tuple[str, ...] = (_ATTENTION + "o_proj",)
    post_attention_norm: str = ""
    mlp_norm: str = "model.layers.{i}.post_attention_layernorm"
    gate_up: tuple[str, ...] = (_MLP + "gate_proj", _MLP + "up_proj")
    down: tuple[str, ...] = (_MLP + "down_proj",)
    post_mlp_norm: str = ""
