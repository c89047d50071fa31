"""OLMo 1: Llama with layer norms that learn nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quire.model.config_reader import ConfigReader
from quire.model.families import llama
from quire.model.spec import DecoderSpec, LayerSpec, MlpSpec, NormSpec
from quire.model.weight_map import WeightMap

MODEL_TYPES: tuple[str, ...] = ("olmo",)
WEIGHTS = WeightMap()


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    c = ConfigReader(config)
    c.refuse("clip_qkv")
    norm = NormSpec("layer", eps=1e-5, affine=False)
    mlp = MlpSpec(c.count("intermediate_size"), c.activation("silu"))
    layer = LayerSpec(llama.attention(c, qkv_bias=c.flag("attention_bias")), mlp, norm)
    return c.decoder("olmo", (layer,) * c.count("num_hidden_layers"), norm)
