"""OLMoE: norms over all queries and all keys, and experts in every layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from quire.model.config_reader import ConfigReader
from quire.model.families import llama
from quire.model.spec import DecoderSpec, LayerSpec, MoeSpec
from quire.model.weight_map import WeightMap
from quire.ops.shapes import Routing

MODEL_TYPES: tuple[str, ...] = ("olmoe",)
WEIGHTS = WeightMap()


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    c = ConfigReader({"rms_norm_eps": 1e-5, **config})
    c.refuse("clip_qkv")
    norm = llama.norm(c)
    attention = llama.attention(c, qkv_bias=c.flag("attention_bias"), qk_norm=norm)
    experts, top_k = c.experts("num_experts", "num_local_experts")
    routing = Routing(top_k, renormalize=c.flag("norm_topk_prob"))
    moe = MoeSpec(experts, c.count("intermediate_size"), c.activation("silu"), routing)
    layer = LayerSpec(replace(attention, qk_norm_over="all"), moe, norm)
    return c.decoder("olmoe", (layer,) * c.count("num_hidden_layers"), norm)
