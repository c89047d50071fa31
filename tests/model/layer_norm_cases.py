"""Families with layer norms: settings of tiny models."""

from __future__ import annotations

from typing import Any

from tests.model.rms_cases import COMMON, HEADS

FULL = {"num_attention_heads": 4, "num_key_value_heads": 4}
GPT = {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 256, "vocab_size": 320}
FALCON = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 320,
    "ffn_hidden_size": 160,
    "max_position_embeddings": 256,
}
OPT = {**{key: value for key, value in COMMON.items() if key != "intermediate_size"}, "ffn_dim": 160}
QUARTER = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.25}
CASES: dict[str, dict[str, Any]] = {
    "phi": dict(model_type="phi", **COMMON, **HEADS),
    "phi-qk-norm": dict(model_type="phi", **COMMON, **HEADS, qk_layernorm=True),
    "olmo": dict(model_type="olmo", **COMMON, **HEADS),
    "starcoder2": dict(model_type="starcoder2", **COMMON, **HEADS, sliding_window=24),
    "stablelm": dict(model_type="stablelm", **COMMON, **HEADS, use_qkv_bias=True),
    "stablelm-parallel": dict(model_type="stablelm", **COMMON, **HEADS, use_parallel_residual=True, qk_layernorm=True),
    "gpt2": dict(model_type="gpt2", **GPT),
    "gpt2-scales": dict(model_type="gpt2", **GPT, n_inner=96, scale_attn_by_inverse_layer_idx=True),
    "gpt_bigcode": dict(model_type="gpt_bigcode", **GPT),
    "gpt_bigcode-mha": dict(model_type="gpt_bigcode", **GPT, multi_query=False),
    "gpt_neo": {
        "model_type": "gpt_neo",
        "hidden_size": 64,
        "num_layers": 3,
        "num_heads": 4,
        "attention_types": [[["global", "local", "global"], 1]],
        "window_size": 24,
        "max_position_embeddings": 256,
        "vocab_size": 320,
    },
    "gpt_neox": dict(model_type="gpt_neox", **COMMON, num_attention_heads=4),
    "gpt_neox-serial": dict(
        model_type="gpt_neox", **COMMON, num_attention_heads=2, rope_parameters=QUARTER, use_parallel_residual=False
    ),
    "gptj": dict(model_type="gptj", **GPT, rotary_dim=8),
    "opt": dict(model_type="opt", **OPT, num_attention_heads=4),
    "opt-galactica": dict(
        model_type="opt",
        **OPT,
        num_attention_heads=4,
        enable_bias=False,
        layer_norm_elementwise_affine=False,
        activation_function="gelu",
    ),
    "falcon-7b": dict(model_type="falcon", **FALCON),
    "falcon-40b": dict(model_type="falcon", **FALCON, new_decoder_architecture=True, num_kv_heads=2),
    "falcon-11b": dict(
        model_type="falcon", **FALCON, new_decoder_architecture=True, num_kv_heads=2, num_ln_in_parallel_attn=1
    ),
    "falcon-rw": dict(
        model_type="falcon",
        **FALCON,
        multi_query=False,
        parallel_attn=False,
        alibi=True,
        bias=True,
        attention="sdpa",  # Transformers' eager one adds the biases twice
    ),
    "bloom": {"model_type": "bloom", "hidden_size": 64, "n_layer": 3, "n_head": 4, "vocab_size": 320},
    "bloom-six-heads": {"model_type": "bloom", "hidden_size": 96, "n_layer": 2, "n_head": 6, "vocab_size": 320},
    "mpt": {"model_type": "mpt", "d_model": 64, "n_layers": 3, "n_heads": 4, "max_seq_len": 256, "vocab_size": 320},
    "mpt-six-heads": {
        "model_type": "mpt",
        "d_model": 96,
        "n_layers": 2,
        "n_heads": 6,
        "max_seq_len": 256,
        "vocab_size": 320,
    },
    "cohere": dict(model_type="cohere", **COMMON, **HEADS),
    "cohere-qk-norm": dict(model_type="cohere", **COMMON, **FULL, use_qk_norm=True, attention_bias=True),
    "cohere2": dict(
        model_type="cohere2", **{**COMMON, "num_hidden_layers": 4}, **HEADS, head_dim=32, sliding_window=24
    ),
    "nemotron": dict(model_type="nemotron", **COMMON, **HEADS, head_dim=32, norm_eps=1e-5),
    "jais2": dict(model_type="jais2", **COMMON, **HEADS, head_dim=16),
    "persimmon": dict(model_type="persimmon", **COMMON, num_attention_heads=4),
}
