"""BLOOM: ALiBi, a norm of the embeddings, queries, keys and values of a head side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quire.model.alibi import alibi_slopes
from quire.model.config_reader import ConfigReader, renamed
from quire.model.spec import AttentionSpec, DecoderSpec, LayerSpec, MlpSpec
from quire.model.weight_map import WeightMap

MODEL_TYPES: tuple[str, ...] = ("bloom",)
_LAYER = "transformer.h.{i}."
WEIGHTS = WeightMap(
    embedding="transformer.word_embeddings",
    embedding_norm="transformer.word_embeddings_layernorm",
    attention_norm=_LAYER + "input_layernorm",
    qkv_by_group=True,
    qkv=(_LAYER + "self_attention.query_key_value",),
    out=(_LAYER + "self_attention.dense",),
    mlp_norm=_LAYER + "post_attention_layernorm",
    gate_up=(_LAYER + "mlp.dense_h_to_4h",),
    down=(_LAYER + "mlp.dense_4h_to_h",),
    final_norm="transformer.ln_f",
)
_NAMES = {"num_hidden_layers": "n_layer", "num_attention_heads": "n_head", "max_position_embeddings": "seq_length"}


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    defaults = {"max_position_embeddings": 2048, "hidden_size": config.get("n_embed")}
    c = ConfigReader(defaults | renamed(config, **_NAMES))
    c.refuse("apply_residual_connection_post_layernorm")
    heads, hidden = c.count("num_attention_heads"), c.count("hidden_size")
    head_dim, norm = hidden // heads, c.layer_norm("layer_norm_epsilon")
    attention = AttentionSpec(
        heads, heads, head_dim, head_dim**-0.5, None, alibi=alibi_slopes(heads), qkv_bias=True, out_bias=True
    )
    layer = LayerSpec(attention, MlpSpec(4 * hidden, "gelu_tanh", gated=False, bias=True), norm)
    return c.decoder("bloom", (layer,) * c.count("num_hidden_layers"), norm, tied_head=True, embedding_norm=norm)
