"""Persimmon: q/k layer norms, a plain mlp with squared ReLU, half of each head rotated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quire.model.config_reader import ConfigReader
from quire.model.families import llama
from quire.model.spec import DecoderSpec, LayerSpec, MlpSpec
from quire.model.weight_map import WeightMap

MODEL_TYPES: tuple[str, ...] = ("persimmon",)
WEIGHTS = WeightMap(
    qkv_by_group=True,
    qkv=("model.layers.{i}.self_attn.query_key_value",),
    out=("model.layers.{i}.self_attn.dense",),
    q_norm="model.layers.{i}.self_attn.q_layernorm",
    k_norm="model.layers.{i}.self_attn.k_layernorm",
    gate_up=("model.layers.{i}.mlp.dense_h_to_4h",),
    down=("model.layers.{i}.mlp.dense_4h_to_h",),
    final_norm="model.final_layernorm",
)


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    c = ConfigReader({"partial_rotary_factor": 0.5} | dict(config))
    norm = c.layer_norm("layer_norm_eps")
    attention = llama.attention(c, qkv_bias=True, qk_norm=norm if c.flag("qk_layernorm", True) else None)
    mlp = MlpSpec(c.count("intermediate_size"), c.activation("relu2"), gated=False, bias=True)
    return c.decoder("persimmon", (LayerSpec(attention, mlp, norm),) * c.count("num_hidden_layers"), norm)
