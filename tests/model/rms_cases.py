"""Families with RMS norms: settings of tiny models."""

from __future__ import annotations

from typing import Any

COMMON = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "vocab_size": 320,
    "max_position_embeddings": 256,
}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
CASES: dict[str, dict[str, Any]] = {
    "llama": dict(model_type="llama", **COMMON, **HEADS),
    "llama-mha-tied": dict(
        model_type="llama", **COMMON, num_attention_heads=4, num_key_value_heads=4, tie_word_embeddings=True
    ),
    "llama-biases": dict(model_type="llama", **COMMON, **HEADS, attention_bias=True, mlp_bias=True),
    "llama3-rope": dict(model_type="llama", **COMMON, **HEADS, rope_parameters=LLAMA3_ROPE),
    "llama-linear-rope": dict(
        model_type="llama",
        **COMMON,
        **HEADS,
        rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0},
    ),
    "mistral-window": dict(model_type="mistral", **COMMON, **HEADS, head_dim=32, sliding_window=24),
    "ministral-layers": dict(
        model_type="ministral",
        **COMMON,
        **HEADS,
        head_dim=16,
        sliding_window=24,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "qwen2": dict(model_type="qwen2", **COMMON, **HEADS),
    "qwen2-window": dict(
        model_type="qwen2", **COMMON, **HEADS, use_sliding_window=True, sliding_window=24, max_window_layers=1
    ),
    "qwen3": dict(model_type="qwen3", **COMMON, **HEADS, head_dim=32, tie_word_embeddings=True),
    "gemma3": dict(
        model_type="gemma3_text",
        **{**COMMON, "num_hidden_layers": 7},
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=32,
        sliding_window=24,
        query_pre_attn_scalar=32,
    ),
}
