"""InternLM3: Llama under another name, with biases of their own for q, k and v and for the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quire.model.config_reader import ConfigReader, renamed
from quire.model.families import llama
from quire.model.spec import DecoderSpec
from quire.model.weight_map import WeightMap

MODEL_TYPES: tuple[str, ...] = ("internlm3",)
WEIGHTS = WeightMap()


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    c = ConfigReader(renamed(config, mlp_bias="bias", attention_bias="qkv_bias"))
    return llama.decoder(c, llama.attention(c, c.flag("attention_bias"), out_bias=c.flag("mlp_bias")))
