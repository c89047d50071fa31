"""Granite-MoE: Granite with experts in every layer, each kind of matrix of all experts in one tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from quire.model.config_reader import ConfigReader
from quire.model.families import granite, llama
from quire.model.spec import DecoderSpec, LayerSpec, MlpSpec, MoeSpec
from quire.model.weight_map import MoeNames, WeightMap
from quire.ops.shapes import Routing

MODEL_TYPES: tuple[str, ...] = ("granitemoe", "granitemoeshared")
_LAYER = "model.layers.{i}."
WEIGHTS = WeightMap(
    moe=MoeNames(
        router=_LAYER + "block_sparse_moe.router.layer",
        gate_up=(_LAYER + "block_sparse_moe.input_linear",),
        down=_LAYER + "block_sparse_moe.output_linear",
        shared_gate_up=(_LAYER + "shared_mlp.input_linear",),
        shared_down=_LAYER + "shared_mlp.output_linear",
    )
)


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    c = ConfigReader(config)
    norm, attention = llama.norm(c), llama.attention(c, qkv_bias=c.flag("attention_bias"))
    size = c.count("shared_intermediate_size", 0, least=0) if config["model_type"] == "granitemoeshared" else 0
    moe = experts(c, MlpSpec(size, c.activation("silu")) if size else None)
    layer = LayerSpec(replace(attention, scale=c.number("attention_multiplier", 1.0)), moe, norm)
    plain = c.decoder(str(config["model_type"]), (layer,) * c.count("num_hidden_layers"), norm)
    return granite.multiplied(c, plain)


def experts(c: ConfigReader, shared: MlpSpec | None) -> MoeSpec:
    count, top_k = c.experts("num_local_experts")
    size = c.count("intermediate_size")
    return MoeSpec(count, size, c.activation("silu"), Routing(top_k, renormalize=True), shared=shared)
