"""Phi-3.5-MoE: layer norms, biases of attention and head, experts chosen one after the other (sparsemixer)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quire.model.config_reader import ConfigReader, UnsupportedVariant
from quire.model.families import llama, mixtral
from quire.model.spec import DecoderSpec, LayerSpec, MoeSpec
from quire.model.weight_map import WeightMap
from quire.ops.shapes import Routing

MODEL_TYPES: tuple[str, ...] = ("phimoe",)
WEIGHTS = WeightMap(moe=mixtral.NAMES)


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    c = ConfigReader(_with_attention_factor(config))
    norm = c.layer_norm("rms_norm_eps")
    experts, top_k = c.experts("num_local_experts")
    if top_k != 2:
        raise UnsupportedVariant(f"Phi-3.5-MoE takes 2 experts a token, not {top_k} (num_experts_per_tok).")
    routing = Routing(top_k, "sparsemixer", jitter=c.number("router_jitter_noise", 0.01))
    moe = MoeSpec(experts, c.count("intermediate_size"), c.activation("silu"), routing)
    layer = LayerSpec(llama.attention(c, qkv_bias=c.flag("attention_bias")), moe, norm)
    layers = (layer,) * c.count("num_hidden_layers")
    return c.decoder("phimoe", layers, norm, head_bias=c.flag("lm_head_bias"))


def _with_attention_factor(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The scaling of the rotary table under the name that other models have for it."""
    scaling = ConfigReader(config).fields("rope_scaling")
    short, long = scaling.get("short_mscale"), scaling.get("long_mscale")
    if short != long:
        raise UnsupportedVariant("A short_mscale and a long_mscale that differ are not supported natively.")
    if short is None:
        return config
    return {**config, "rope_scaling": {**scaling, "attention_factor": short}}
