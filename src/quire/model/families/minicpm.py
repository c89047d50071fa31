"""MiniCPM 1, 2 and 4: Llama with the residuals and logits scaled by the model's depth and width."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quire.model.config_reader import ConfigReader
from quire.model.families import granite, llama
from quire.model.spec import DecoderSpec
from quire.model.weight_map import WeightMap

MODEL_TYPES: tuple[str, ...] = ("minicpm",)
WEIGHTS = WeightMap()


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    c = ConfigReader(config)
    c.refuse("num_experts", "mup_denominator")
    hidden, layers = c.count("hidden_size"), c.count("num_hidden_layers")
    multipliers = {
        "embedding_multiplier": c.number("scale_emb", 1.0),
        "residual_multiplier": c.number("scale_depth", 1.0) / layers**0.5,
        "logits_scaling": hidden / c.count("dim_model_base", hidden),
    }
    c = ConfigReader({**config, **multipliers})
    return granite.multiplied(c, llama.decoder(c, llama.attention(c, qkv_bias=False), tied=True))
