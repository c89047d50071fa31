"""Gemma 3 (text): sandwich norms, q/k norms, five sliding-window layers to one full, a rotary base for each kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quire.model.config_reader import ConfigReader
from quire.model.spec import AttentionSpec, DecoderSpec, LayerSpec, MlpSpec, NormSpec, RopeSpec
from quire.model.weight_map import WeightMap

MODEL_TYPES: tuple[str, ...] = ("gemma3_text",)
WEIGHTS = WeightMap(
    mlp_norm="model.layers.{i}.pre_feedforward_layernorm",
    post_attention_norm="model.layers.{i}.post_attention_layernorm",
    post_mlp_norm="model.layers.{i}.post_feedforward_layernorm",
)


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    c = ConfigReader(config)
    norm = NormSpec(eps=c.number("rms_norm_eps", 1e-6), weight_offset=1.0)
    head_dim = c.head_dim()
    full_rope = c.rope(head_dim)
    sliding_rope = RopeSpec(c.number("rope_local_base_freq", 10_000.0), head_dim)
    mlp = MlpSpec(c.count("intermediate_size"), c.activation("gelu_pytorch_tanh", key="hidden_activation"))

    def layer(sliding: bool) -> LayerSpec:
        attention = AttentionSpec(
            heads=c.count("num_attention_heads"),
            kv_heads=c.count("num_key_value_heads"),
            head_dim=head_dim,
            scale=c.number("query_pre_attn_scalar", head_dim) ** -0.5,
            rope=sliding_rope if sliding else full_rope,
            window=c.count("sliding_window") if sliding else None,
            softcap=c.cap("attn_logit_softcapping"),
            qk_norm=norm,
        )
        return LayerSpec(attention, mlp, norm, placement="sandwich")

    layers = tuple(layer(kind == "sliding_attention") for kind in c.layer_types(default_period=6))
    return c.decoder("gemma3", layers, norm, tied_head=True, embedding_multiplier=c.count("hidden_size") ** 0.5)
