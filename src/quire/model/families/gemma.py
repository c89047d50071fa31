"""Gemma 1: norms times 1 + weight, scaled embeddings, GELU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quire.model.config_reader import ConfigReader
from quire.model.families import llama
from quire.model.spec import Activation, DecoderSpec, LayerSpec, MlpSpec, NormSpec
from quire.model.weight_map import WeightMap

MODEL_TYPES: tuple[str, ...] = ("gemma",)
WEIGHTS = WeightMap()


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    c = ConfigReader(config)
    mlp = MlpSpec(c.count("intermediate_size"), _activation(c))
    layer = LayerSpec(llama.attention(c, qkv_bias=c.flag("attention_bias")), mlp, norm(c))
    layers = (layer,) * c.count("num_hidden_layers")
    return c.decoder("gemma", layers, norm(c), tied_head=True, embedding_multiplier=c.count("hidden_size") ** 0.5)


def norm(c: ConfigReader) -> NormSpec:
    return NormSpec(eps=c.number("rms_norm_eps", 1e-6), weight_offset=1.0)


def _activation(c: ConfigReader) -> Activation:
    """The first configs say gelu, and mean its tanh form."""
    name = c.activation("gelu_pytorch_tanh")
    return "gelu_tanh" if name == "gelu" else name
