"""Qwen2-MoE (biases on q, k and v, a gated shared expert) and Qwen3-MoE (q/k norms, none shared)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quire.model.config_reader import ConfigReader
from quire.model.families import llama
from quire.model.spec import DecoderSpec, LayerSpec, MlpSpec, MoeSpec
from quire.model.weight_map import MoeNames, WeightMap
from quire.ops.shapes import Routing

MODEL_TYPES: tuple[str, ...] = ("qwen2_moe", "qwen3_moe")
_SHARED = "model.layers.{i}.mlp.shared_expert."
WEIGHTS = WeightMap(
    moe=MoeNames(shared_gate_up=(_SHARED + "gate_proj", _SHARED + "up_proj"), shared_down=_SHARED + "down_proj")
)


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    c = ConfigReader(config)
    if not c.flag("use_sliding_window"):
        c = ConfigReader({**config, "sliding_window": None})
    norm, qwen2 = llama.norm(c), config["model_type"] == "qwen2_moe"
    if qwen2:
        attention = llama.attention(c, qkv_bias=c.flag("qkv_bias", True), out_bias=False)
    else:
        attention = llama.attention(c, qkv_bias=c.flag("attention_bias"), qk_norm=norm)
    layers = tuple(LayerSpec(attention, mlp, norm) for mlp in feed_forward(c, shared=qwen2))
    return c.decoder(str(config["model_type"]), layers, norm)


def feed_forward(c: ConfigReader, shared: bool) -> list[MlpSpec | MoeSpec]:
    """Of each layer: experts in every ``decoder_sparse_step``-th one, but for ``mlp_only_layers``."""
    activation = c.activation("silu")
    experts, top_k = c.experts("num_experts", "num_local_experts")
    moe = MoeSpec(
        experts,
        c.count("moe_intermediate_size"),
        activation,
        Routing(top_k, renormalize=c.flag("norm_topk_prob")),
        shared=MlpSpec(c.count("shared_expert_intermediate_size"), activation) if shared else None,
        shared_gate=shared,
    )
    step, dense_only = c.count("decoder_sparse_step", 1), c.listed("mlp_only_layers")
    sparse = [(i + 1) % step == 0 and i not in dense_only for i in range(c.count("num_hidden_layers"))]
    dense = None if all(sparse) else MlpSpec(c.count("intermediate_size"), activation)
    return [moe if is_sparse or dense is None else dense for is_sparse in sparse]
