"""Phi-1, 1.5 and 2: attention and mlp in parallel, biases everywhere, a part of each head rotated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quire.model.config_reader import ConfigReader
from quire.model.families import llama
from quire.model.spec import DecoderSpec, LayerSpec, MlpSpec
from quire.model.weight_map import WeightMap

MODEL_TYPES: tuple[str, ...] = ("phi",)
WEIGHTS = WeightMap(
    out=("model.layers.{i}.self_attn.dense",),
    q_norm="model.layers.{i}.self_attn.q_layernorm",
    k_norm="model.layers.{i}.self_attn.k_layernorm",
    gate_up=("model.layers.{i}.mlp.fc1",),
    down=("model.layers.{i}.mlp.fc2",),
    final_norm="model.final_layernorm",
)


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    c = ConfigReader(config)
    norm = c.layer_norm("layer_norm_eps")
    attention = llama.attention(c, qkv_bias=True, qk_norm=norm if c.flag("qk_layernorm") else None)
    mlp = MlpSpec(c.count("intermediate_size"), c.activation("gelu_new"), gated=False, bias=True)
    layer = LayerSpec(attention, mlp, norm, placement="parallel")
    return c.decoder("phi", (layer,) * c.count("num_hidden_layers"), norm, head_bias=True)
