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
LONGROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "partial_rotary_factor": 1.0,
    "short_factor": [1.0 + 0.05 * i for i in range(8)],
    "long_factor": [1.5 + 0.2 * i for i in range(8)],
}
PARTIAL_FACTORS = {key: LONGROPE[key][:6] for key in ("short_factor", "long_factor")}
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
    "phi3": dict(model_type="phi3", **COMMON, **HEADS, pad_token_id=0),
    "phi3-window": dict(model_type="phi3", **COMMON, **HEADS, pad_token_id=0, sliding_window=24),
    "phi3-longrope": dict(
        model_type="phi3",
        **COMMON,
        **HEADS,
        pad_token_id=0,
        original_max_position_embeddings=16,
        rope_parameters=LONGROPE,
    ),
    "phi4-mini": dict(
        model_type="phi3",
        **COMMON,
        **HEADS,
        pad_token_id=0,
        tie_word_embeddings=True,
        original_max_position_embeddings=16,
        rope_parameters={**LONGROPE, "partial_rotary_factor": 0.75, **PARTIAL_FACTORS},
    ),
    "smollm3": dict(
        model_type="smollm3", **{**COMMON, "num_hidden_layers": 4}, **HEADS, no_rope_layer_interval=2, pad_token_id=0
    ),
    "granite": dict(
        model_type="granite",
        **COMMON,
        **HEADS,
        embedding_multiplier=12.0,
        attention_multiplier=0.1,
        residual_multiplier=0.22,
        logits_scaling=8.0,
        tie_word_embeddings=True,
        attention_bias=True,
        mlp_bias=True,
    ),
    "olmo2": dict(model_type="olmo2", **COMMON, **HEADS),
    "olmo3": dict(
        model_type="olmo3",
        **{**COMMON, "num_hidden_layers": 4},
        **HEADS,
        sliding_window=24,
        rope_parameters={
            "full_attention": {
                "rope_type": "yarn",
                "rope_theta": 500_000.0,
                "factor": 8.0,
                "original_max_position_embeddings": 32,
            },
            "sliding_attention": {"rope_type": "default", "rope_theta": 500_000.0},
        },
    ),
    "glm": dict(model_type="glm", **COMMON, **HEADS, head_dim=16, pad_token_id=0),
    "glm4": dict(model_type="glm4", **COMMON, **HEADS, head_dim=16, pad_token_id=0),
    "internlm3": dict(model_type="internlm3", **COMMON, **HEADS, head_dim=32, attention_bias=True, mlp_bias=True),
    "exaone4": dict(model_type="exaone4", **COMMON, **HEADS, sliding_window=24, sliding_window_pattern=3),
    "exaone4-full": dict(
        model_type="exaone4", **COMMON, **HEADS, sliding_window=None, layer_types=["full_attention"] * 3
    ),
    "gemma": dict(model_type="gemma", **COMMON, num_attention_heads=4, num_key_value_heads=1, head_dim=32),
    "gemma2": dict(
        model_type="gemma2",
        **COMMON,
        **HEADS,
        head_dim=32,
        sliding_window=24,
        query_pre_attn_scalar=24,
        attn_logit_softcapping=5.0,
        final_logit_softcapping=3.0,
    ),
    "gemma3": dict(
        model_type="gemma3_text",
        **{**COMMON, "num_hidden_layers": 7},
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=32,
        sliding_window=24,
        query_pre_attn_scalar=32,
    ),
    "arcee": dict(model_type="arcee", **COMMON, **HEADS, head_dim=16),
    "cwm": dict(model_type="cwm", **COMMON, **HEADS, head_dim=16, sliding_window=24),
    "ernie4_5": dict(model_type="ernie4_5", **COMMON, **HEADS, head_dim=16, use_bias=True),
    "helium": dict(model_type="helium", **COMMON, **HEADS, head_dim=16, attention_bias=True),
    "seed_oss": dict(model_type="seed_oss", **COMMON, **HEADS, head_dim=16),
}
