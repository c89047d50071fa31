"""GPT-NeoX and Pythia: a norm each for attention and mlp side by side, a part of each head rotated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quire.model.config_reader import ConfigReader, renamed
from quire.model.families import llama
from quire.model.spec import DecoderSpec, LayerSpec, MlpSpec
from quire.model.weight_map import WeightMap

MODEL_TYPES: tuple[str, ...] = ("gpt_neox",)
_LAYER = "gpt_neox.layers.{i}."
WEIGHTS = WeightMap(
    embedding="gpt_neox.embed_in",
    attention_norm=_LAYER + "input_layernorm",
    qkv_by_group=True,
    qkv=(_LAYER + "attention.query_key_value",),
    out=(_LAYER + "attention.dense",),
    mlp_norm=_LAYER + "post_attention_layernorm",
    gate_up=(_LAYER + "mlp.dense_h_to_4h",),
    down=(_LAYER + "mlp.dense_4h_to_h",),
    final_norm="gpt_neox.final_layer_norm",
    head="embed_out",
)


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    c = ConfigReader(renamed(config, partial_rotary_factor="rotary_pct", rope_theta="rotary_emb_base"))
    norm = c.layer_norm("layer_norm_eps")
    attention = llama.attention(c, qkv_bias=c.flag("attention_bias", True))
    mlp = MlpSpec(c.count("intermediate_size"), c.activation("gelu"), gated=False, bias=True)
    parallel = c.flag("use_parallel_residual", True)
    layer = LayerSpec(attention, mlp, norm, "parallel_norms" if parallel else "pre")
    return c.decoder("gpt_neox", (layer,) * c.count("num_hidden_layers"), norm)
