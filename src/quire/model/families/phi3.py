"""Phi-3, Phi-3.5 and Phi-4: Llama with fused projections and longrope."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quire.model.config_reader import ConfigReader
from quire.model.families import llama
from quire.model.spec import DecoderSpec
from quire.model.weight_map import WeightMap

MODEL_TYPES: tuple[str, ...] = ("phi3",)
WEIGHTS = WeightMap(
    qkv=("model.layers.{i}.self_attn.qkv_proj",),
    gate_up=("model.layers.{i}.mlp.gate_up_proj",),
)


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    c = ConfigReader(config)
    return llama.decoder(c, llama.attention(c, qkv_bias=False), c.windows())
