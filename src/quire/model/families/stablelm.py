"""StableLM 2 and 3B: Llama with layer norms, a part of each head rotated; some with parallel layers or q/k norms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from quire.model.config_reader import ConfigReader
from quire.model.families import llama
from quire.model.spec import DecoderSpec, LayerSpec, MlpSpec
from quire.model.weight_map import WeightMap

MODEL_TYPES: tuple[str, ...] = ("stablelm",)
WEIGHTS = WeightMap(
    q_norm="model.layers.{i}.self_attn.q_layernorm.norms.{h}",
    k_norm="model.layers.{i}.self_attn.k_layernorm.norms.{h}",
)


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    c = ConfigReader(config)
    norm = c.layer_norm("layer_norm_eps")
    attention = llama.attention(c, qkv_bias=c.flag("use_qkv_bias"), out_bias=False)
    if c.flag("qk_layernorm"):
        attention = replace(attention, qk_norm=replace(norm, bias=False), qk_norm_over="heads")
    mlp = MlpSpec(c.count("intermediate_size"), c.activation("silu"))
    layer = LayerSpec(attention, mlp, norm, "parallel" if c.flag("use_parallel_residual") else "pre")
    return c.decoder("stablelm", (layer,) * c.count("num_hidden_layers"), norm)
