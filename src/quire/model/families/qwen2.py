"""Qwen2 and Qwen2.5: Llama with biases on q, k and v."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quire.model.config_reader import ConfigReader
from quire.model.families import llama
from quire.model.spec import DecoderSpec
from quire.model.weight_map import WeightMap

MODEL_TYPES: tuple[str, ...] = ("qwen2",)
WEIGHTS = WeightMap()


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    if not config.get("use_sliding_window"):
        config = {**config, "sliding_window": None}
    return llama.spec_from(ConfigReader(config), qkv_bias=True, out_bias=False)
