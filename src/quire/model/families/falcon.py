"""Falcon 7B, 40B, 180B, 11B and RW: parallel layers, grouped queries in one module, rotary embedding or ALiBi."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quire.model.alibi import alibi_slopes
from quire.model.config_reader import ConfigReader, renamed
from quire.model.spec import AttentionSpec, DecoderSpec, LayerSpec, MlpSpec
from quire.model.weight_map import WeightMap

MODEL_TYPES: tuple[str, ...] = ("falcon",)
_LAYER = "transformer.h.{i}."
WEIGHTS = WeightMap(
    embedding="transformer.word_embeddings",
    attention_norm=_LAYER + "input_layernorm",
    qkv_by_group=True,
    qkv=(_LAYER + "self_attention.query_key_value",),
    out=(_LAYER + "self_attention.dense",),
    mlp_norm=_LAYER + "post_attention_layernorm",
    parallel_norms=(_LAYER + "ln_attn", _LAYER + "ln_mlp"),
    gate_up=(_LAYER + "mlp.dense_h_to_4h",),
    down=(_LAYER + "mlp.dense_4h_to_h",),
    final_norm="transformer.ln_f",
)


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    c = ConfigReader(renamed(config, num_hidden_layers="n_layer", num_attention_heads="n_head"))
    bias, norm = c.flag("bias"), c.layer_norm("layer_norm_epsilon")
    hidden = c.count("hidden_size")
    size = c.count("ffn_hidden_size", 4 * hidden)
    mlp = MlpSpec(size, c.activation("gelu", key="activation"), gated=False, bias=bias)
    layer = LayerSpec(_attention(c, bias), mlp, norm, _placement(c))
    positions = {"max_position_embeddings": 2048}
    return ConfigReader(positions | dict(c.config)).decoder(
        "falcon", (layer,) * c.count("num_hidden_layers"), norm, tied_head=True
    )


def _attention(c: ConfigReader, bias: bool) -> AttentionSpec:
    heads = c.count("num_attention_heads")
    head_dim = c.head_dim()
    scale = head_dim**-0.5
    if c.flag("new_decoder_architecture"):
        kv_heads = c.count("num_kv_heads", heads)
    else:
        kv_heads = 1 if c.flag("multi_query", True) else heads
    alibi = c.flag("alibi")
    return AttentionSpec(
        heads,
        kv_heads,
        head_dim,
        scale,
        rope=None if alibi else c.rope(head_dim),
        alibi=tuple(slope * scale for slope in alibi_slopes(heads)) if alibi else None,  # added before scaling
        qkv_bias=bias,
        out_bias=bias,
    )


def _placement(c: ConfigReader) -> Any:
    if c.flag("new_decoder_architecture"):
        return "parallel" if c.count("num_ln_in_parallel_attn", 2) == 1 else "parallel_norms"
    return "parallel" if c.flag("parallel_attn", True) else "pre"
