"""StarCoder 1 and SantaCoder: GPT-2 with one key/value head, weights not transposed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from quire.model.families import gpt2
from quire.model.spec import DecoderSpec

MODEL_TYPES: tuple[str, ...] = ("gpt_bigcode",)
WEIGHTS = replace(gpt2.WEIGHTS, transposed=False, qkv_by_group=True)


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    defaults = {"multi_query": True, "activation_function": "gelu_pytorch_tanh"}
    return gpt2.spec(defaults | dict(config))
