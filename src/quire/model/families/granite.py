"""Granite: Llama with multipliers of embeddings, attention scores, residuals and logits.

A residual multiplier m needs no arithmetic of its own: the stream of hidden states is kept divided by m. Embeddings are
divided by it, and RMS norms, which undo any factor, have their epsilon divided by its square.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from quire.model.config_reader import ConfigReader
from quire.model.families import llama
from quire.model.spec import DecoderSpec
from quire.model.weight_map import WeightMap

MODEL_TYPES: tuple[str, ...] = ("granite",)
WEIGHTS = WeightMap()


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    c = ConfigReader(config)
    attention = llama.attention(c, qkv_bias=c.flag("attention_bias"))
    attention = replace(attention, scale=c.number("attention_multiplier", 1.0))
    return multiplied(c, llama.decoder(c, attention))


def multiplied(c: ConfigReader, plain: DecoderSpec) -> DecoderSpec:
    """``plain`` with the multipliers of embeddings, residuals and logits."""
    residual = c.number("residual_multiplier", 1.0)
    norm = replace(plain.final_norm, eps=plain.final_norm.eps / residual**2)
    return replace(
        plain,
        layers=tuple(replace(layer, norm=norm) for layer in plain.layers),
        final_norm=norm,
        embedding_multiplier=c.number("embedding_multiplier", 1.0) / residual,
        logit_scale=1.0 / c.number("logits_scaling", 1.0),
    )
