"""Ernie 4.5 (dense) and Helium: Llama with neighbouring dimensions rotated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from quire.model.config_reader import ConfigReader, renamed
from quire.model.families import llama
from quire.model.spec import DecoderSpec
from quire.model.weight_map import WeightMap

MODEL_TYPES: tuple[str, ...] = ("ernie4_5", "helium")
WEIGHTS = WeightMap()


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    c = ConfigReader(renamed(config, attention_bias="use_bias", mlp_bias="use_bias"))
    out_bias = c.flag("attention_bias") and config["model_type"] == "ernie4_5"
    attention = llama.attention(c, qkv_bias=c.flag("attention_bias"), out_bias=out_bias)
    attention = replace(attention, rope=c.rope(attention.head_dim, interleaved=True))
    return llama.decoder(c, attention, tied=config["model_type"] == "ernie4_5")
