"""Command-R, Aya and Command-A: parallel layers, layer norms without biases, neighbouring dimensions rotated.

Cohere 2 has layers with a sliding window, and layers that see all, without a rotary embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from quire.model.config_reader import ConfigReader
from quire.model.families import llama
from quire.model.spec import DecoderSpec, LayerSpec, MlpSpec
from quire.model.weight_map import WeightMap

MODEL_TYPES: tuple[str, ...] = ("cohere", "cohere2")
WEIGHTS = WeightMap()


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    c = ConfigReader(config)
    norm = c.layer_norm("layer_norm_eps", bias=False)
    attention = llama.attention(c, qkv_bias=c.flag("attention_bias"))
    rope = replace(c.rope(c.head_dim()), interleaved=True)
    attention = replace(attention, rope=rope, window=None)
    if c.flag("use_qk_norm"):
        attention = replace(attention, qk_norm=norm, qk_norm_over="heads")
    layer = LayerSpec(attention, MlpSpec(c.count("intermediate_size"), c.activation("silu")), norm, "parallel")
    layers = (layer,) * c.count("num_hidden_layers")
    if config["model_type"] == "cohere2":
        full = replace(layer, attention=replace(attention, rope=None))
        local = replace(layer, attention=replace(attention, window=c.count("sliding_window")))
        layers = tuple(local if kind == "sliding_attention" else full for kind in c.layer_types(default_period=4))
    return c.decoder("cohere", layers, norm, tied_head=True, logit_scale=c.number("logit_scale", 0.0625))
