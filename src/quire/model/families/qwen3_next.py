"""Qwen3-Next: three layers of the gated delta rule to one of gated attention, and experts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from quire.model.config_reader import ConfigReader
from quire.model.families import llama, qwen_moe
from quire.model.spec import AttentionSpec, DecoderSpec, DeltaSpec, LayerSpec, MlpSpec, MoeSpec, NormSpec
from quire.model.weight_map import DeltaNames

MODEL_TYPES: tuple[str, ...] = ("qwen3_next",)
_DELTA = "model.layers.{i}.linear_attn.in_proj_"
WEIGHTS = replace(qwen_moe.WEIGHTS, delta=DeltaNames((_DELTA + "qkvz", _DELTA + "ba")))


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    c = ConfigReader({"partial_rotary_factor": 0.25, "norm_topk_prob": True, **config})
    norm = NormSpec(eps=c.number("rms_norm_eps", 1e-6), weight_offset=1.0)
    attention = replace(llama.attention(c, qkv_bias=False, qk_norm=norm), gated=True)
    delta = DeltaSpec(
        key_heads=c.count("linear_num_key_heads"),
        value_heads=c.count("linear_num_value_heads"),
        key_dim=c.count("linear_key_head_dim"),
        value_dim=c.count("linear_value_head_dim"),
        kernel=c.count("linear_conv_kernel_dim"),
    )
    parts = zip(_mixers(c, attention, delta), _feed_forward(c), strict=True)
    return c.decoder(str(config["model_type"]), tuple(LayerSpec(mixer, mlp, norm) for mixer, mlp in parts), norm)


def _mixers(c: ConfigReader, attention: AttentionSpec, delta: DeltaSpec) -> list[AttentionSpec | DeltaSpec]:
    period, layers = c.count("full_attention_interval", 4), c.count("num_hidden_layers")
    if c.config.get("layer_types") is None:
        return [attention if (i + 1) % period == 0 else delta for i in range(layers)]
    return [attention if kind == "full_attention" else delta for kind in c.layer_types(default_period=1)]


def _feed_forward(c: ConfigReader) -> list[MlpSpec | MoeSpec]:
    if c.config["model_type"] != "qwen3_5_text":
        return qwen_moe.feed_forward(c, shared=True)
    return [MlpSpec(c.count("intermediate_size"), c.activation("silu"))] * c.count("num_hidden_layers")
