"""SmolLM3: Llama with every fourth layer without rotary embedding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quire.model.config_reader import ConfigReader
from quire.model.families import llama
from quire.model.spec import DecoderSpec
from quire.model.weight_map import WeightMap
from quire.weights.errors import CheckpointError

MODEL_TYPES: tuple[str, ...] = ("smollm3",)
WEIGHTS = WeightMap()


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    c = ConfigReader(config)
    rotated = _rotated(c)
    sliding = c.flag("use_sliding_window")
    windows = c.windows(lambda layer: not rotated[layer]) if sliding else [None] * len(rotated)
    attention = llama.attention(c, qkv_bias=c.flag("attention_bias"))
    plain = llama.decoder(c, attention, windows, tied=True)
    return llama.without_rope(plain, [i for i, kept in enumerate(rotated) if not kept])


def _rotated(c: ConfigReader) -> list[bool]:
    """Which layers have a rotary embedding: ``no_rope_layers`` says 1 of those, despite its name."""
    layers, listed = c.count("num_hidden_layers"), c.config.get("no_rope_layers")
    if listed is None:
        interval = c.count("no_rope_layer_interval", 4)
        return [(i + 1) % interval != 0 for i in range(layers)]
    if not isinstance(listed, list) or len(listed) != layers:
        raise CheckpointError(f"The model's config must list {layers} no_rope_layers, one for each layer.")
    return [bool(entry) for entry in listed]
