"""Jais 2: layer norms, a plain mlp with squared ReLU, biases everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quire.model.config_reader import ConfigReader
from quire.model.families import llama
from quire.model.spec import DecoderSpec, LayerSpec, MlpSpec
from quire.model.weight_map import WeightMap

MODEL_TYPES: tuple[str, ...] = ("jais2",)
WEIGHTS = WeightMap(gate_up=("model.layers.{i}.mlp.up_proj",))


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    c = ConfigReader(config)
    norm = c.layer_norm("layer_norm_eps")
    mlp = MlpSpec(c.count("intermediate_size"), c.activation("relu2"), gated=False, bias=c.flag("mlp_bias", True))
    layer = LayerSpec(llama.attention(c, qkv_bias=c.flag("attention_bias", True)), mlp, norm)
    return c.decoder("jais2", (layer,) * c.count("num_hidden_layers"), norm)
