"""GLM-4.5 and dots1: Llama's attention with experts that are routed as in DeepSeek-V3."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from quire.model.config_reader import ConfigReader
from quire.model.families import deepseek, llama
from quire.model.spec import DecoderSpec
from quire.model.weight_map import WeightMap

MODEL_TYPES: tuple[str, ...] = ("glm4_moe", "dots1")
WEIGHTS = WeightMap()


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    glm = config["model_type"] == "glm4_moe"
    c = ConfigReader({"partial_rotary_factor": 0.5 if glm else 1.0, **config})
    normed, bias = not glm or c.flag("use_qk_norm"), c.flag("attention_bias")
    attention = llama.attention(c, bias, False if glm else bias, qk_norm=llama.norm(c) if normed else None)
    return deepseek.decoder(c, [replace(attention, window=window) for window in c.windows()], v3=True)
