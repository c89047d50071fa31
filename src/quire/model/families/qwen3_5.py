"""Qwen3.5 (text), dense or with experts: Qwen3-Next with its projections apart."""

from __future__ import annotations

from dataclasses import replace

from quire.model.families import qwen3_next
from quire.model.weight_map import DeltaNames

MODEL_TYPES: tuple[str, ...] = ("qwen3_5_text", "qwen3_5_moe_text")
_DELTA = "model.layers.{i}.linear_attn.in_proj_"
WEIGHTS = replace(qwen3_next.WEIGHTS, delta=DeltaNames(tuple(_DELTA + part for part in ("qkv", "z", "b", "a"))))
spec = qwen3_next.spec
