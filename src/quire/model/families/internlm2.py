"""InternLM2: Llama with other names, and with queries, keys and values in one module, group by group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quire.model.config_reader import ConfigReader
from quire.model.families import llama
from quire.model.spec import DecoderSpec
from quire.model.weight_map import WeightMap

MODEL_TYPES: tuple[str, ...] = ("internlm2",)
_LAYER = "model.layers.{i}."
WEIGHTS = WeightMap(
    embedding="model.tok_embeddings",
    head="output",
    attention_norm=_LAYER + "attention_norm",
    qkv=(_LAYER + "attention.wqkv",),
    qkv_by_group=True,
    out=(_LAYER + "attention.wo",),
    mlp_norm=_LAYER + "ffn_norm",
    gate_up=(_LAYER + "feed_forward.w1", _LAYER + "feed_forward.w3"),
    down=(_LAYER + "feed_forward.w2",),
)


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    c = ConfigReader(config)
    return llama.decoder(c, llama.attention(c, qkv_bias=c.flag("bias")))
