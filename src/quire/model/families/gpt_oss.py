"""gpt-oss: attention sinks, every other layer a sliding window, experts with biases and a clamped activation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from quire.model.config_reader import ConfigReader
from quire.model.families import llama
from quire.model.spec import DecoderSpec, LayerSpec, MoeSpec
from quire.model.weight_map import MoeNames, WeightMap
from quire.ops.shapes import Routing
from quire.weights.errors import CheckpointError

MODEL_TYPES: tuple[str, ...] = ("gpt_oss",)
_MLP = "model.layers.{i}.mlp."
WEIGHTS = WeightMap(
    moe=MoeNames(
        router=_MLP + "router",
        gate_up=(_MLP + "experts.gate_up_proj",),
        down=_MLP + "experts.down_proj",
        transposed=True,
        interleaved=True,
    )
)


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    c = ConfigReader(config)
    alpha, limit = c.number("swiglu_alpha", 1.702), c.number("swiglu_limit", 7.0)
    if (alpha, limit) != (1.702, 7.0):
        raise CheckpointError(
            f"Of gpt-oss's activation, swiglu_alpha {alpha} and swiglu_limit {limit} are unsupported."
        )
    experts, top_k = c.experts("num_local_experts")
    moe = MoeSpec(
        experts,
        c.count("intermediate_size"),
        "swiglu_oss",
        Routing(top_k, renormalize=True),
        router_bias=True,
        expert_bias=True,
    )
    norm, bias = llama.norm(c), c.flag("attention_bias", True)
    sliding = replace(llama.attention(c, qkv_bias=bias), sinks=True)
    full = replace(sliding, window=None)
    kinds = c.layer_types(default_period=2)
    layers = tuple(LayerSpec(sliding if kind == "sliding_attention" else full, moe, norm) for kind in kinds)
    return c.decoder("gpt_oss", layers, norm)
