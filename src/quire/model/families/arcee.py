"""Arcee's AFM: Llama with a plain mlp of squared ReLU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quire.model.config_reader import ConfigReader
from quire.model.families import llama
from quire.model.spec import DecoderSpec, LayerSpec, MlpSpec
from quire.model.weight_map import WeightMap

MODEL_TYPES: tuple[str, ...] = ("arcee",)
WEIGHTS = WeightMap(gate_up=("model.layers.{i}.mlp.up_proj",))


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    c = ConfigReader(config)
    mlp = MlpSpec(c.count("intermediate_size"), c.activation("relu2"), gated=False, bias=c.flag("mlp_bias"))
    layer = LayerSpec(llama.attention(c, qkv_bias=c.flag("attention_bias")), mlp, llama.norm(c))
    return c.decoder("arcee", (layer,) * c.count("num_hidden_layers"), layer.norm)
