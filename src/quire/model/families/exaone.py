"""EXAONE 3 and 3.5: Llama under other names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quire.model.config_reader import ConfigReader, renamed
from quire.model.families import llama
from quire.model.spec import DecoderSpec
from quire.model.weight_map import WeightMap

MODEL_TYPES: tuple[str, ...] = ("exaone",)
_LAYER = "transformer.h.{i}."
_ATTENTION = _LAYER + "attn.attention."
WEIGHTS = WeightMap(
    embedding="transformer.wte",
    attention_norm=_LAYER + "ln_1",
    qkv=(_ATTENTION + "q_proj", _ATTENTION + "k_proj", _ATTENTION + "v_proj"),
    out=(_ATTENTION + "out_proj",),
    mlp_norm=_LAYER + "ln_2",
    gate_up=(_LAYER + "mlp.c_fc_0", _LAYER + "mlp.c_fc_1"),
    down=(_LAYER + "mlp.c_proj",),
    final_norm="transformer.ln_f",
)
_NAMES = {
    "num_hidden_layers": "num_layers",
    "hidden_act": "activation_function",
    "rms_norm_eps": "layer_norm_epsilon",
}


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    c = ConfigReader(renamed(config, **_NAMES))
    return llama.decoder(c, llama.attention(c, qkv_bias=False))
