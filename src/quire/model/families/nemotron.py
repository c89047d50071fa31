"""Nemotron 3 and 4, Minitron: layer norms by 1 + weight, a plain mlp with squared ReLU, a part of each head rotated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from quire.model.config_reader import ConfigReader
from quire.model.families import llama
from quire.model.spec import DecoderSpec, LayerSpec, MlpSpec
from quire.model.weight_map import WeightMap

MODEL_TYPES: tuple[str, ...] = ("nemotron",)
WEIGHTS = WeightMap(gate_up=("model.layers.{i}.mlp.up_proj",))


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    c = ConfigReader(config)
    norm = replace(c.layer_norm("norm_eps"), weight_offset=1.0)
    mlp = MlpSpec(c.count("intermediate_size"), c.activation("relu2"), gated=False, bias=c.flag("mlp_bias"))
    layer = LayerSpec(llama.attention(c, qkv_bias=c.flag("attention_bias")), mlp, norm)
    return c.decoder("nemotron", (layer,) * c.count("num_hidden_layers"), norm)
