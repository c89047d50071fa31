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
    c = ConfigReader(config)
    return llama.decoder(c, llama.attention(c, qkv_bias=True, out_bias=False), windows(c))


def windows(c: ConfigReader) -> list[int | None]:
    """Each layer's window: those after the first ``max_window_layers``, where sliding windows are used at all."""
    if not c.flag("use_sliding_window"):
        return [None] * c.count("num_hidden_layers")
    full = c.count("max_window_layers", 28)
    return c.windows(lambda layer: layer >= full)
