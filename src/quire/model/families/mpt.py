"""MPT: ALiBi, no biases, not even in layer norms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quire.model.alibi import mpt_slopes
from quire.model.config_reader import ConfigReader, renamed
from quire.model.spec import AttentionSpec, DecoderSpec, LayerSpec, MlpSpec
from quire.model.weight_map import WeightMap

MODEL_TYPES: tuple[str, ...] = ("mpt",)
_LAYER = "transformer.blocks.{i}."
WEIGHTS = WeightMap(
    embedding="transformer.wte",
    attention_norm=_LAYER + "norm_1",
    qkv=(_LAYER + "attn.Wqkv",),
    out=(_LAYER + "attn.out_proj",),
    mlp_norm=_LAYER + "norm_2",
    gate_up=(_LAYER + "ffn.up_proj",),
    down=(_LAYER + "ffn.down_proj",),
    final_norm="transformer.norm_f",
)
_NAMES = {
    "hidden_size": "d_model",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "max_position_embeddings": "max_seq_len",
}


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    c = ConfigReader(renamed(config, **_NAMES))
    a = ConfigReader(c.fields("attn_config"))
    a.refuse("clip_qkv", "qk_ln", "prefix_lm")
    heads, hidden = c.count("num_attention_heads"), c.count("hidden_size")
    head_dim, norm = hidden // heads, c.layer_norm("layer_norm_epsilon", bias=False)
    slopes = mpt_slopes(heads, a.number("alibi_bias_max", 8.0))
    attention = AttentionSpec(heads, heads, head_dim, a.number("softmax_scale", head_dim**-0.5), None, alibi=slopes)
    layer = LayerSpec(attention, MlpSpec(c.count("expansion_ratio", 4) * hidden, "gelu", gated=False), norm)
    return c.decoder("mpt", (layer,) * c.count("num_hidden_layers"), norm, tied_head=True)
