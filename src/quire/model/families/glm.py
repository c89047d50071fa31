"""GLM-4: partial rotary embedding of neighbouring pairs, biases on q, k and v; GLM-4-0414 has sandwich norms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from quire.model.config_reader import ConfigReader
from quire.model.families import llama
from quire.model.spec import DecoderSpec
from quire.model.weight_map import WeightMap

MODEL_TYPES: tuple[str, ...] = ("glm", "glm4")
WEIGHTS = WeightMap(
    gate_up=("model.layers.{i}.mlp.gate_up_proj",),
    post_attention_norm="model.layers.{i}.post_self_attn_layernorm",
    post_mlp_norm="model.layers.{i}.post_mlp_layernorm",
)


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    c = ConfigReader(config)
    attention = llama.attention(c, qkv_bias=c.flag("attention_bias", True), out_bias=False)
    attention = replace(attention, rope=c.rope(attention.head_dim, partial=0.5, interleaved=True))
    plain = llama.decoder(c, attention)
    if config["model_type"] == "glm":
        return plain
    return replace(plain, layers=tuple(replace(layer, placement="sandwich") for layer in plain.layers))
