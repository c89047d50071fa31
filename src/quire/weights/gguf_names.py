"""How each GGUF architecture maps to Hugging Face's names: parameters and config fields, as data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True)
class ArchMap:
    """``layer``: part of a GGUF name after ``blk.N.`` to the part of a parameter name after ``model.layers.N.``."""

    model_type: str
    layer: Mapping[str, str]
    permuted: frozenset[str] = frozenset()  # layer parts whose rows llama.cpp reordered for its rotary embedding
    norms_plus_one: bool = False  # norm weights are stored with the model's 1 added
    defaults: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    fields: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))  # metadata -> config, where given
    layer_norm: str = ""  # the config's name of layer norms' epsilon; other models have RMS norms


GLOBAL = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}

_ATTENTION = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
_MLP = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_PRE_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_SANDWICH_NORMS = {
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_EXPERTS = {  # all experts in one tensor of three dimensions
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.gate_proj",
    "ffn_up_exps": "mlp.experts.up_proj",
    "ffn_down_exps": "mlp.experts.down_proj",
}
_QK_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_POST_NORMS = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
_GELU = {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"}
_PERMUTED = frozenset({"attn_q", "attn_k"})
_WINDOW = {"attention.sliding_window": "sliding_window"}

ARCHITECTURES: dict[str, ArchMap] = {
    "llama": ArchMap("llama", _ATTENTION | _MLP | _PRE_NORMS, _PERMUTED),
    "internlm2": ArchMap("llama", _ATTENTION | _MLP | _PRE_NORMS, _PERMUTED),  # converted with q, k and v apart
    "smollm3": ArchMap("smollm3", _ATTENTION | _MLP | _PRE_NORMS, _PERMUTED),
    "granite": ArchMap(
        "granite",
        _ATTENTION | _MLP | _PRE_NORMS,
        _PERMUTED,
        fields={
            "attention.scale": "attention_multiplier",
            "embedding_scale": "embedding_multiplier",
            "residual_scale": "residual_multiplier",
            "logit_scale": "logits_scaling",
        },
    ),
    "phi3": ArchMap(
        "phi3",
        {
            "attn_qkv": "self_attn.qkv_proj",
            "attn_output": "self_attn.o_proj",
            "ffn_up": "mlp.gate_up_proj",
            "ffn_down": "mlp.down_proj",
            **_PRE_NORMS,
        },
        fields=_WINDOW,
    ),
    "olmo2": ArchMap("olmo2", _ATTENTION | _MLP | _POST_NORMS | _QK_NORMS),
    "starcoder2": ArchMap(
        "starcoder2",
        _ATTENTION | _PRE_NORMS | {"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"},
        layer_norm="norm_epsilon",
    ),
    "stablelm": ArchMap(
        "stablelm",
        _ATTENTION | _MLP | _PRE_NORMS,
        fields={"use_parallel_residual": "use_parallel_residual"},
        layer_norm="layer_norm_eps",
    ),
    "qwen2": ArchMap("qwen2", _ATTENTION | _MLP | _PRE_NORMS, defaults={"attention_bias": True}),
    "qwen3": ArchMap("qwen3", _ATTENTION | _MLP | _PRE_NORMS | _QK_NORMS),
    "qwen3moe": ArchMap("qwen3_moe", _ATTENTION | _EXPERTS | _PRE_NORMS | _QK_NORMS, defaults={"norm_topk_prob": True}),
    "olmoe": ArchMap("olmoe", _ATTENTION | _EXPERTS | _PRE_NORMS | _QK_NORMS),
    "gemma": ArchMap("gemma", _ATTENTION | _MLP | _PRE_NORMS, norms_plus_one=True, defaults=_GELU),
    "gemma2": ArchMap(
        "gemma2",
        _ATTENTION | _MLP | _SANDWICH_NORMS,
        norms_plus_one=True,
        defaults=_GELU,
        fields={"attn_logit_softcapping": "attn_logit_softcapping", **_WINDOW},
    ),
    "gemma3": ArchMap(
        "gemma3_text",
        _ATTENTION | _MLP | _SANDWICH_NORMS | _QK_NORMS,
        norms_plus_one=True,
        defaults=_GELU,
    ),
}

_MIXTRAL = {
    "ffn_gate_inp": "block_sparse_moe.gate",
    "ffn_gate_exps": "block_sparse_moe.experts.w1",
    "ffn_up_exps": "block_sparse_moe.experts.w3",
    "ffn_down_exps": "block_sparse_moe.experts.w2",
}
MIXTRAL = ArchMap("mixtral", _ATTENTION | _MIXTRAL | _PRE_NORMS, _PERMUTED)

ROPE_FACTORS = "rope_freqs.weight"
LONGROPE_FACTORS = {"short_factor": "rope_factors_short.weight", "long_factor": "rope_factors_long.weight"}
_LAYER = re.compile(r"blk\.(\d{1,5})\.(\w+)\.(weight|bias)")
_GLOBAL = re.compile(r"(\w+)\.(weight|bias)")


@dataclass(frozen=True)
class Named:
    """A tensor's Hugging Face name, and what undoes llama.cpp's changes to it."""

    name: str
    permuted: bool = False
    minus_one: bool = False


def translate(arch: ArchMap, gguf_name: str) -> Named | None:
    """The Hugging Face name of a GGUF tensor, or ``None`` for one that no model here has."""
    if match := _LAYER.fullmatch(gguf_name):
        layer, part, kind = match.groups()
        if part not in arch.layer:
            return None
        name = f"model.layers.{int(layer)}.{arch.layer[part]}.{kind}"
        return Named(name, part in arch.permuted, arch.norms_plus_one and part.endswith("norm"))
    match = _GLOBAL.fullmatch(gguf_name)
    if match is None or match[1] not in GLOBAL:
        return None
    return Named(f"{GLOBAL[match[1]]}.{match[2]}", False, arch.norms_plus_one and match[1].endswith("norm"))
