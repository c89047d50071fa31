"""Mixtral: Mistral with experts in place of the feed-forward layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quire.model.config_reader import ConfigReader
from quire.model.families import llama
from quire.model.spec import DecoderSpec, LayerSpec, MoeSpec
from quire.model.weight_map import MoeNames, WeightMap
from quire.ops.shapes import Routing

MODEL_TYPES: tuple[str, ...] = ("mixtral",)
_MOE = "model.layers.{i}.block_sparse_moe."
NAMES = MoeNames(
    router=_MOE + "gate",
    gate_up=(_MOE + "experts.{e}.w1", _MOE + "experts.{e}.w3"),
    down=_MOE + "experts.{e}.w2",
)
WEIGHTS = WeightMap(moe=NAMES)


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    c = ConfigReader(config)
    experts, top_k = c.experts("num_local_experts", "num_experts")
    moe = MoeSpec(experts, c.count("intermediate_size"), c.activation("silu"), Routing(top_k, renormalize=True))
    layer = LayerSpec(llama.attention(c, qkv_bias=False), moe, llama.norm(c))
    return c.decoder("mixtral", (layer,) * c.count("num_hidden_layers"), layer.norm)
