"""OLMo 2 and OLMo 3: norms after attention and mlp only, and over all queries and all keys; 3 has sliding windows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from quire.model.config_reader import ConfigReader
from quire.model.families import llama
from quire.model.spec import DecoderSpec, RopeSpec
from quire.model.weight_map import WeightMap

MODEL_TYPES: tuple[str, ...] = ("olmo2", "olmo3")
WEIGHTS = WeightMap(
    post_attention_norm="model.layers.{i}.post_attention_layernorm",
    post_mlp_norm="model.layers.{i}.post_feedforward_layernorm",
)


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    c = ConfigReader({"rms_norm_eps": 1e-5, **config})
    attention = llama.attention(c, c.flag("attention_bias"), qk_norm=llama.norm(c))
    attention = replace(attention, qk_norm_over="all")
    windows = c.windows(lambda layer: (layer + 1) % 4 != 0) if config["model_type"] == "olmo3" else None
    plain = llama.decoder(c, attention, windows)
    layers = (replace(layer, placement="post") for layer in plain.layers)
    if config["model_type"] == "olmo2":
        return replace(plain, layers=tuple(layers))
    base = c.number("rope_theta", 500_000.0)
    unscaled = RopeSpec(c.number("rope_local_base_freq", base), attention.head_dim)
    return replace(
        plain,
        layers=tuple(
            replace(x, attention=replace(attention, window=x.attention.window, rope=unscaled))
            if x.attention.window
            else x
            for x in layers
        ),
    )
