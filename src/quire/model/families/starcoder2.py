"""StarCoder 2: grouped queries, rotary embedding, layer norms, a plain mlp, biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quire.model.config_reader import ConfigReader
from quire.model.families import llama
from quire.model.spec import DecoderSpec, LayerSpec, MlpSpec
from quire.model.weight_map import WeightMap

MODEL_TYPES: tuple[str, ...] = ("starcoder2",)
WEIGHTS = WeightMap(gate_up=("model.layers.{i}.mlp.c_fc",), down=("model.layers.{i}.mlp.c_proj",))


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    c = ConfigReader(config)
    bias, norm = c.flag("use_bias", True), c.layer_norm("norm_epsilon")
    mlp = MlpSpec(c.count("intermediate_size"), c.activation("gelu_pytorch_tanh"), gated=False, bias=bias)
    layer = LayerSpec(llama.attention(c, qkv_bias=bias), mlp, norm)
    return c.decoder("starcoder2", (layer,) * c.count("num_hidden_layers"), norm, tied_head=True)
