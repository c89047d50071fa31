"""A Hugging Face style config made from GGUF metadata."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from quire.weights.errors import CheckpointError
from quire.weights.gguf import GGUFFile
from quire.weights.gguf_names import LONGROPE_FACTORS, ROPE_FACTORS, ArchMap
from quire.weights.tensors import TensorInfo

GEMMA_LOCAL_ROPE_BASE = 10_000.0
GEMMA_WINDOW_PERIOD = 6
OLMO_WINDOW_PERIOD = 4
GEMMA2_27B_LAYERS = 46  # as below
GEMMA_27B_LAYERS = 62  # the one size whose attention scale is not head_dim's; its GGUF does not say so

_END_TOKENS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "<|eom_id|>", "<end_of_turn>", "<|end|>")
_SAMPLING = {
    "general.sampling.temp": "temperature",
    "general.sampling.top_k": "top_k",
    "general.sampling.top_p": "top_p",
    "general.sampling.min_p": "min_p",
    "general.sampling.penalty_repeat": "repetition_penalty",
}


class _Fields:
    """Typed access to ``<architecture>.*`` metadata, each value checked."""

    def __init__(self, file: GGUFFile) -> None:
        self.file = file
        self.arch = file.metadata["general.architecture"]

    def value(self, key: str) -> Any:
        return self.file.metadata.get(f"{self.arch}.{key}")

    def integer(self, key: str, default: int | None = None, low: int = 1, high: int = 2**31 - 1) -> int:
        value = self.value(key)
        value = default if value is None else value
        if type(value) is not int or not low <= value <= high:
            raise self.wrong(key, f"an integer from {low} to {high}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.value(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
            raise self.wrong(key, "a positive number")
        return float(value)

    def wrong(self, key: str, kind: str) -> CheckpointError:
        if self.value(key) is None:
            return CheckpointError(f"{self.file.path.name} is incomplete: its metadata lacks {self.arch}.{key}.")
        return CheckpointError(f"{self.file.path.name} is corrupt: {self.arch}.{key} is not {kind}.")


def config_of(file: GGUFFile, arch: ArchMap, tensors: Mapping[str, TensorInfo]) -> dict[str, Any]:
    """The fields that a family reads. Raises ``CheckpointError`` for a missing or impossible value."""
    fields = _Fields(file)
    hidden, heads = fields.integer("embedding_length"), fields.integer("attention.head_count", high=2**16)
    head_dim = fields.integer("attention.key_length", default=hidden // heads or 1, high=2**16)
    config: dict[str, Any] = dict(arch.defaults) | {
        "model_type": arch.model_type,
        "hidden_size": hidden,
        "num_hidden_layers": fields.integer("block_count", high=10_000),
        "num_attention_heads": heads,
        "num_key_value_heads": fields.integer("attention.head_count_kv", default=heads, high=2**16),
        "head_dim": head_dim,
        "intermediate_size": fields.integer("feed_forward_length"),
        "vocab_size": _vocab_size(file, tensors),
        "max_position_embeddings": fields.integer("context_length"),
        arch.layer_norm or "rms_norm_eps": fields.number(
            "attention.layer_norm_epsilon" if arch.layer_norm else "attention.layer_norm_rms_epsilon"
        ),
        "rope_theta": fields.number("rope.freq_base", default=10_000.0),
        "tie_word_embeddings": "lm_head.weight" not in tensors,
    }
    config |= _rope(fields, head_dim) | _tokens(file, config["vocab_size"])
    config |= {name: value for key, name in arch.fields.items() if (value := fields.value(key))}
    if arch.model_type == "gemma3_text":
        config |= _gemma3(fields, config)
    if arch.model_type == "gemma2":
        config |= _gemma2(config)
    if arch.model_type == "olmo2" and fields.value("attention.sliding_window"):
        config |= {"model_type": "olmo3"} | _windows(fields, config["num_hidden_layers"], period=OLMO_WINDOW_PERIOD)
    if arch.model_type == "stablelm":
        config["use_qkv_bias"] = "model.layers.0.self_attn.q_proj.bias" in tensors
    if fields.value("expert_count") is not None:
        config |= {
            "num_experts": fields.integer("expert_count", high=2**16),
            "num_experts_per_tok": fields.integer("expert_used_count", high=2**16),
            "moe_intermediate_size": fields.integer("expert_feed_forward_length", config["intermediate_size"]),
        }
    if (cap := fields.value("final_logit_softcapping")) is not None:
        config["final_logit_softcapping"] = cap
    return config


def generation_config_of(file: GGUFFile, config: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling defaults that the file recommends, and its end tokens."""
    out = {key: config[key] for key in ("bos_token_id", "eos_token_id") if key in config}
    for key, name in _SAMPLING.items():
        if isinstance(value := file.metadata.get(key), (int, float)):
            out[name] = value
    return out


def _vocab_size(file: GGUFFile, tensors: Mapping[str, TensorInfo]) -> int:
    embedding = tensors.get("model.embed_tokens.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise CheckpointError(f"{file.path.name} lacks the token embedding (token_embd.weight).")
    return embedding.shape[0]


def _rope(fields: _Fields, head_dim: int) -> dict[str, Any]:
    out: dict[str, Any] = {}
    rotary = fields.integer("rope.dimension_count", default=head_dim, high=head_dim)
    if rotary != head_dim:
        out["partial_rotary_factor"] = rotary / head_dim
    kind = fields.value("rope.scaling.type")
    if kind not in (None, "none"):
        if kind not in ("linear", "yarn", "longrope"):
            raise CheckpointError(
                f"{fields.file.path.name} needs the rope scaling {str(kind)[:40]!r}, unknown to Quire."
            )
        out["rope_scaling"] = {"rope_type": kind, "factor": fields.number("rope.scaling.factor", default=1.0)}
        if fields.value("rope.scaling.original_context_length") is not None:
            original = fields.integer("rope.scaling.original_context_length")
            out["rope_scaling"]["original_max_position_embeddings"] = original
    if ROPE_FACTORS in fields.file.tensors:
        factors = _rope_factors(fields.file, ROPE_FACTORS, rotary)
        out["rope_scaling"] = {"rope_type": "factors", "factors": factors}
    if any(name in fields.file.tensors for name in LONGROPE_FACTORS.values()):
        out["rope_scaling"] = {
            "rope_type": "longrope",
            "original_max_position_embeddings": fields.integer("rope.scaling.original_context_length"),
            "attention_factor": fields.number("rope.scaling.attn_factor", default=1.0),
        } | {key: _rope_factors(fields.file, name, rotary) for key, name in LONGROPE_FACTORS.items()}
    return out


def _rope_factors(file: GGUFFile, name: str, rotary: int) -> list[float]:
    """What each rotary frequency is divided by (Llama 3.1 and later, Phi-3)."""
    info = file.tensors.get(name)
    if info is None or info.type != "F32" or info.shape != (rotary // 2,):
        raise CheckpointError(f"{file.path.name} is corrupt: {name} is not F32 of {rotary // 2} values.")
    factors = file.raw(name).view("<f4")
    if not bool(np.all(np.isfinite(factors) & (factors > 0))):
        raise CheckpointError(f"{file.path.name} is corrupt: {name} holds values that are not positive.")
    return [float(f) for f in factors]


def _gemma2(config: Mapping[str, Any]) -> dict[str, Any]:
    width = config["hidden_size"] // config["num_attention_heads"]
    return {"query_pre_attn_scalar": width if config["num_hidden_layers"] == GEMMA2_27B_LAYERS else config["head_dim"]}


def _gemma3(fields: _Fields, config: Mapping[str, Any]) -> dict[str, Any]:
    layers = config["num_hidden_layers"]
    out: dict[str, Any] = {
        "rope_local_base_freq": fields.number("rope.freq_base_swa", default=GEMMA_LOCAL_ROPE_BASE),
        "query_pre_attn_scalar": config["head_dim"],
        "layer_types": ["full_attention"] * layers,
    }
    if layers == GEMMA_27B_LAYERS:
        out["query_pre_attn_scalar"] = config["hidden_size"] // config["num_attention_heads"]
    if fields.value("attention.sliding_window"):
        out |= _windows(fields, layers, period=GEMMA_WINDOW_PERIOD)
    return out


def _windows(fields: _Fields, layers: int, period: int) -> dict[str, Any]:
    """The window, and which layers slide: but for every ``period``-th one, where the file doesn't say."""
    sliding = _sliding_layers(fields, layers, period)
    return {
        "sliding_window": fields.integer("attention.sliding_window"),
        "layer_types": ["sliding_attention" if s else "full_attention" for s in sliding],
    }


def _sliding_layers(fields: _Fields, layers: int, period: int) -> list[bool]:
    pattern = fields.value("attention.sliding_window_pattern")
    if isinstance(pattern, np.ndarray) and pattern.dtype == np.bool_ and len(pattern) >= layers:
        return [bool(p) for p in pattern[:layers]]
    period = fields.integer("attention.sliding_window_pattern", default=period, high=layers + 10_000)
    return [bool((layer + 1) % period) for layer in range(layers)]


def _tokens(file: GGUFFile, vocab_size: int) -> dict[str, Any]:
    """bos, and every token that ends an answer: eos, end of turn, end of message, and those known by their text."""
    out: dict[str, Any] = {}
    ids = {name: file.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "eot", "eom")}
    for name, value in ids.items():
        if value is not None and (type(value) is not int or not 0 <= value < vocab_size):
            raise CheckpointError(f"{file.path.name} is corrupt: its {name} token is not one of {vocab_size} tokens.")
    if ids["bos"] is not None:
        out["bos_token_id"] = ids["bos"]
    ends = [ids[name] for name in ("eos", "eot", "eom") if ids[name] is not None]
    for text in _END_TOKENS:
        index = file.metadata.index("tokenizer.ggml.tokens", text)
        if index is not None and index < vocab_size:
            ends.append(index)
    if ends:
        out["eos_token_id"] = list(dict.fromkeys(ends))
    return out
