"""Gemma 2: sandwich norms, soft caps, every other layer a sliding window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from quire.model.config_reader import ConfigReader
from quire.model.families import gemma, gemma3, llama
from quire.model.spec import DecoderSpec, LayerSpec, MlpSpec
from quire.model.weight_map import WeightMap

MODEL_TYPES: tuple[str, ...] = ("gemma2",)
WEIGHTS: WeightMap = gemma3.WEIGHTS


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    c = ConfigReader({"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, **config})
    attention = replace(
        llama.attention(c, qkv_bias=c.flag("attention_bias")),
        scale=c.number("query_pre_attn_scalar", 256) ** -0.5,
        softcap=c.cap("attn_logit_softcapping"),
    )
    mlp = MlpSpec(c.count("intermediate_size"), c.activation("gelu_pytorch_tanh", key="hidden_activation"))
    layers = tuple(
        LayerSpec(replace(attention, window=window), mlp, gemma.norm(c), placement="sandwich")
        for window in c.windows(lambda layer: layer % 2 == 0)
    )
    multiplier = c.count("hidden_size") ** 0.5
    return c.decoder("gemma2", layers, gemma.norm(c), tied_head=True, embedding_multiplier=multiplier)
