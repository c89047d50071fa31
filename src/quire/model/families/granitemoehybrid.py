"""Granite 4 without its Mamba layers: Granite with the shared part of Granite-MoE, and experts where there are any."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from quire.model.config_reader import ConfigReader, UnsupportedVariant
from quire.model.families import granite, granitemoe, llama
from quire.model.spec import DecoderSpec, LayerSpec, MlpSpec

MODEL_TYPES: tuple[str, ...] = ("granitemoehybrid",)
_MOE = granitemoe.WEIGHTS.moe
WEIGHTS = replace(granitemoe.WEIGHTS, gate_up=_MOE.shared_gate_up, down=(_MOE.shared_down,))
_ATTENTION = ("attention", "full_attention")


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    c = ConfigReader(config)
    kinds = c.listed("layer_types") or c.listed("layers_block_type")
    layers = c.count("num_hidden_layers")
    if len(kinds) != layers or any(kind not in _ATTENTION for kind in kinds):
        raise UnsupportedVariant("Layers other than attention (layer_types) are not supported natively.")
    attention = llama.attention(c, qkv_bias=c.flag("attention_bias"))
    attention = replace(attention, scale=c.number("attention_multiplier", 1.0))
    if config.get("position_embedding_type") != "rope":
        attention = replace(attention, rope=None)
    norm, shared = llama.norm(c), MlpSpec(c.count("shared_intermediate_size", 1024), c.activation("silu"))
    experts = c.count("num_local_experts", 8, least=0)
    mlp = granitemoe.experts(c, shared) if experts else shared
    return granite.multiplied(c, c.decoder("granitemoehybrid", (LayerSpec(attention, mlp, norm),) * layers, norm))
