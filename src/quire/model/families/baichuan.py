"""Baichuan 1 and 2: Llama with queries, keys and values in one module; the 13B models have ALiBi for positions.

Baichuan 2, told by its vocabulary, brings the rows of its head to unit length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from quire.model.alibi import alibi_slopes
from quire.model.config_reader import ConfigReader
from quire.model.families import llama
from quire.model.spec import DecoderSpec
from quire.model.weight_map import WeightMap

MODEL_TYPES: tuple[str, ...] = ("baichuan",)
WEIGHTS = WeightMap(qkv=("model.layers.{i}.self_attn.W_pack",))
_BAICHUAN2_VOCABULARY = 125_696


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    rotary = "max_position_embeddings" in config
    c = ConfigReader(config if rotary else {**config, "max_position_embeddings": config.get("model_max_length")})
    attention = llama.attention(c, qkv_bias=False)
    if not rotary:
        attention = replace(attention, rope=None, alibi=alibi_slopes(attention.heads))
    plain = llama.decoder(c, attention)
    return replace(plain, unit_head=plain.vocab_size == _BAICHUAN2_VOCABULARY)
