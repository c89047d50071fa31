"""OPT and Galactica: learned positions (the first two are unused), ReLU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from quire.model.config_reader import ConfigReader, UnsupportedVariant
from quire.model.spec import AttentionSpec, DecoderSpec, LayerSpec, MlpSpec
from quire.model.weight_map import WeightMap

MODEL_TYPES: tuple[str, ...] = ("opt",)
_LAYER = "model.decoder.layers.{i}."
WEIGHTS = WeightMap(
    embedding="model.decoder.embed_tokens",
    positions="model.decoder.embed_positions",
    attention_norm=_LAYER + "self_attn_layer_norm",
    qkv=(_LAYER + "self_attn.q_proj", _LAYER + "self_attn.k_proj", _LAYER + "self_attn.v_proj"),
    out=(_LAYER + "self_attn.out_proj",),
    mlp_norm=_LAYER + "final_layer_norm",
    gate_up=(_LAYER + "fc1",),
    down=(_LAYER + "fc2",),
    final_norm="model.decoder.final_layer_norm",
)


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    c = ConfigReader(config)
    heads, hidden = c.count("num_attention_heads"), c.count("hidden_size")
    if not c.flag("do_layer_norm_before", True) or c.count("word_embed_proj_dim", hidden) != hidden:
        raise UnsupportedVariant("OPT-350M, which norms and projects otherwise than its family, is not native.")
    c.refuse("_remove_final_layer_norm")
    bias, affine = c.flag("enable_bias", True), c.flag("layer_norm_elementwise_affine", True)
    norm = replace(c.layer_norm("layer_norm_eps", bias=affine), affine=affine)
    mlp = MlpSpec(c.count("ffn_dim"), c.activation("relu", key="activation_function"), gated=False, bias=bias)
    head_dim = hidden // heads
    attention = AttentionSpec(heads, heads, head_dim, head_dim**-0.5, None, qkv_bias=bias, out_bias=bias)
    layers = (LayerSpec(attention, mlp, norm),) * c.count("num_hidden_layers")
    positions = c.count("max_position_embeddings")
    return c.decoder("opt", layers, norm, tied_head=True, learned_positions=positions, position_offset=2)
