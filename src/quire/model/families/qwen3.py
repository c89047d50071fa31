"""Qwen3: Llama with q/k norms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quire.model.config_reader import ConfigReader
from quire.model.families import llama, qwen2
from quire.model.spec import DecoderSpec
from quire.model.weight_map import WeightMap

MODEL_TYPES: tuple[str, ...] = ("qwen3",)
WEIGHTS = WeightMap()


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    c = ConfigReader(config)
    attention = llama.attention(c, c.flag("attention_bias"), qk_norm=llama.norm(c))
    return llama.decoder(c, attention, qwen2.windows(c))
