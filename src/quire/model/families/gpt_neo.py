"""GPT-Neo: GPT-2 with unscaled attention, every second layer within a window."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

from quire.model.config_reader import ConfigReader, renamed
from quire.model.spec import AttentionSpec, DecoderSpec, LayerSpec, MlpSpec
from quire.model.weight_map import WeightMap
from quire.weights.errors import CheckpointError

MODEL_TYPES: tuple[str, ...] = ("gpt_neo",)
_ATTENTION = "transformer.h.{i}.attn.attention."
WEIGHTS = WeightMap(
    embedding="transformer.wte",
    positions="transformer.wpe",
    attention_norm="transformer.h.{i}.ln_1",
    qkv=(_ATTENTION + "q_proj", _ATTENTION + "k_proj", _ATTENTION + "v_proj"),
    out=(_ATTENTION + "out_proj",),
    mlp_norm="transformer.h.{i}.ln_2",
    gate_up=("transformer.h.{i}.mlp.c_fc",),
    down=("transformer.h.{i}.mlp.c_proj",),
    final_norm="transformer.ln_f",
)


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    c = ConfigReader(renamed(config, num_hidden_layers="num_layers", num_attention_heads="num_heads"))
    heads, hidden = c.count("num_attention_heads"), c.count("hidden_size")
    norm = c.layer_norm("layer_norm_epsilon")
    mlp_size = c.count("intermediate_size", 4 * hidden)
    mlp = MlpSpec(mlp_size, c.activation("gelu_new", key="activation_function"), gated=False, bias=True)

    def layer(kind: str) -> LayerSpec:
        window = c.count("window_size", 256) if kind == "local" else None
        return LayerSpec(AttentionSpec(heads, heads, hidden // heads, 1.0, None, window, out_bias=True), mlp, norm)

    layers = tuple(layer(kind) for kind in _kinds(c))
    positions = c.count("max_position_embeddings")
    return c.decoder("gpt_neo", layers, norm, tied_head=True, learned_positions=positions)


def _kinds(c: ConfigReader) -> list[str]:
    """``global`` or ``local`` of each layer."""
    layers = c.count("num_hidden_layers")
    try:
        kinds = list(chain(*(list(kinds) * count for kinds, count in c.config["attention_types"])))
    except (KeyError, TypeError, ValueError):
        kinds = []
    if len(kinds) != layers:
        raise CheckpointError(f"The model's config must give attention_types for {layers} layers.")
    return kinds
