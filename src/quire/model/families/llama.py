"""Llama 1-3 and what shares its architecture (Mistral, SmolLM2, Yi, ...)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from quire.model.config_reader import ConfigReader
from quire.model.spec import AttentionSpec, DecoderSpec, LayerSpec, MlpSpec, NormSpec
from quire.model.weight_map import WeightMap

MODEL_TYPES: tuple[str, ...] = ("llama", "mistral", "ministral", "cwm")
WEIGHTS = WeightMap()


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    c = ConfigReader(config)
    windows = None if config.get("model_type") == "llama" else c.windows()
    return decoder(c, attention(c, qkv_bias=c.flag("attention_bias")), windows)


def decoder(
    c: ConfigReader, attention: AttentionSpec, windows: Sequence[int | None] | None = None, tied: bool = False
) -> DecoderSpec:
    """The plain pre-norm gated decoder, for families that differ from Llama in their attention.

    ``windows``: of each layer; without them all attention is full.
    """
    mlp = MlpSpec(c.count("intermediate_size"), c.activation("silu"), bias=c.flag("mlp_bias"))
    layers = tuple(
        LayerSpec(replace(attention, window=window), mlp, norm(c))
        for window in windows or [None] * c.count("num_hidden_layers")
    )
    return c.decoder(str(c.config.get("model_type", "llama")), layers, norm(c), tied_head=tied)


def without_rope(spec: DecoderSpec, layers: Collection[int]) -> DecoderSpec:
    """``spec`` with no rotary embedding in the layers given."""
    return replace(
        spec,
        layers=tuple(
            replace(layer, attention=replace(layer.attention, rope=None))
            if i in layers and isinstance(layer.attention, AttentionSpec)
            else layer
            for i, layer in enumerate(spec.layers)
        ),
    )


def norm(c: ConfigReader) -> NormSpec:
    return NormSpec(eps=c.number("rms_norm_eps", 1e-6))


def attention(
    c: ConfigReader, qkv_bias: bool, out_bias: bool | None = None, qk_norm: NormSpec | None = None
) -> AttentionSpec:
    head_dim = c.head_dim()
    return AttentionSpec(
        heads=c.count("num_attention_heads"),
        kv_heads=c.count("num_key_value_heads", c.count("num_attention_heads")),
        head_dim=head_dim,
        scale=head_dim**-0.5,
        rope=c.rope(head_dim),
        window=c.window(),
        qk_norm=qk_norm,
        qkv_bias=qkv_bias,
        out_bias=qkv_bias if out_bias is None else out_bias,
    )
