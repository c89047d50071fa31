"""EXAONE 4: norms after attention and mlp only, q/k norms; rotary embedding in sliding-window layers alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from quire.model.config_reader import ConfigReader
from quire.model.families import llama, olmo2
from quire.model.spec import DecoderSpec
from quire.model.weight_map import WeightMap

MODEL_TYPES: tuple[str, ...] = ("exaone4",)
WEIGHTS: WeightMap = olmo2.WEIGHTS


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    c = ConfigReader({"rms_norm_eps": 1e-5, **config})
    windows = _windows(c)
    plain = llama.decoder(c, llama.attention(c, qkv_bias=False, qk_norm=llama.norm(c)), windows)
    plain = replace(plain, layers=tuple(replace(layer, placement="post") for layer in plain.layers))
    hybrid = config.get("sliding_window") is not None
    return llama.without_rope(plain, [i for i, window in enumerate(windows) if hybrid and window is None])


def _windows(c: ConfigReader) -> list[int | None]:
    """``sliding_window_pattern``: how many layers a full one comes in, or a letter for each of them (``LLLG``)."""
    pattern = c.config.get("sliding_window_pattern")
    period = (
        len(pattern) if isinstance(pattern, str) and pattern else c.count("sliding_window_pattern", 4, least=0) or 4
    )
    return c.windows(lambda layer: (layer + 1) % period != 0)
