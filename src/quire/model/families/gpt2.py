"""GPT-2: learned positions, one module for queries, keys and values, weights stored transposed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quire.model.config_reader import ConfigReader, renamed
from quire.model.spec import AttentionSpec, DecoderSpec, LayerSpec, MlpSpec
from quire.model.weight_map import WeightMap

MODEL_TYPES: tuple[str, ...] = ("gpt2",)
WEIGHTS = WeightMap(
    embedding="transformer.wte",
    positions="transformer.wpe",
    attention_norm="transformer.h.{i}.ln_1",
    transposed=True,
    qkv=("transformer.h.{i}.attn.c_attn",),
    out=("transformer.h.{i}.attn.c_proj",),
    mlp_norm="transformer.h.{i}.ln_2",
    gate_up=("transformer.h.{i}.mlp.c_fc",),
    down=("transformer.h.{i}.mlp.c_proj",),
    final_norm="transformer.ln_f",
)
NAMES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
    "intermediate_size": "n_inner",
}


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    c = ConfigReader(renamed(config, **NAMES))
    heads, hidden = c.count("num_attention_heads"), c.count("hidden_size")
    norm = c.layer_norm("layer_norm_epsilon")
    mlp_size = c.count("intermediate_size", 4 * hidden)
    mlp = MlpSpec(mlp_size, c.activation("gelu_new", key="activation_function"), gated=False, bias=True)

    def layer(index: int) -> LayerSpec:
        scale = (hidden // heads) ** -0.5 if c.flag("scale_attn_weights", True) else 1.0
        attention = AttentionSpec(
            heads=heads,
            kv_heads=1 if c.flag("multi_query") else heads,
            head_dim=hidden // heads,
            scale=scale / (index + 1) if c.flag("scale_attn_by_inverse_layer_idx") else scale,
            rope=None,
            qkv_bias=True,
            out_bias=True,
        )
        return LayerSpec(attention, mlp, norm)

    layers = tuple(layer(i) for i in range(c.count("num_hidden_layers")))
    positions = c.count("max_position_embeddings")
    return c.decoder("gpt2", layers, norm, tied_head=True, learned_positions=positions)
