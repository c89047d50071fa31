"""GPT-J: attention and mlp in parallel from one norm, neighbouring dimensions rotated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quire.model.config_reader import ConfigReader, renamed
from quire.model.families import gpt2
from quire.model.spec import AttentionSpec, DecoderSpec, LayerSpec, MlpSpec, RopeSpec
from quire.model.weight_map import WeightMap

MODEL_TYPES: tuple[str, ...] = ("gptj",)
_LAYER = "transformer.h.{i}."
WEIGHTS = WeightMap(
    embedding="transformer.wte",
    attention_norm=_LAYER + "ln_1",
    qkv=(_LAYER + "attn.q_proj", _LAYER + "attn.k_proj", _LAYER + "attn.v_proj"),
    out=(_LAYER + "attn.out_proj",),
    gate_up=(_LAYER + "mlp.fc_in",),
    down=(_LAYER + "mlp.fc_out",),
    final_norm="transformer.ln_f",
)


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    c = ConfigReader(renamed(config, **gpt2.NAMES))
    heads, hidden = c.count("num_attention_heads"), c.count("hidden_size")
    head_dim, norm = hidden // heads, c.layer_norm("layer_norm_epsilon")
    rope = RopeSpec(10_000.0, c.count("rotary_dim", head_dim), interleaved=True)
    mlp_size = c.count("intermediate_size", 4 * hidden)
    mlp = MlpSpec(mlp_size, c.activation("gelu_new", key="activation_function"), gated=False, bias=True)
    layer = LayerSpec(AttentionSpec(heads, heads, head_dim, head_dim**-0.5, rope), mlp, norm, "parallel")
    return c.decoder("gptj", (layer,) * c.count("num_hidden_layers"), norm, head_bias=True)
