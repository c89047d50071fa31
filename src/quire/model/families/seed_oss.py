"""Seed-OSS: Llama with biases on q, k and v, or on the output too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quire.model.config_reader import ConfigReader
from quire.model.families import llama
from quire.model.spec import DecoderSpec
from quire.model.weight_map import WeightMap

MODEL_TYPES: tuple[str, ...] = ("seed_oss",)
WEIGHTS = WeightMap()


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    c = ConfigReader(config)
    attention = llama.attention(c, qkv_bias=c.flag("attention_bias", True), out_bias=c.flag("attention_out_bias"))
    return llama.decoder(c, attention)
