"""Families that Transformers has no class for: its Llama's weights under their names, and Llama's logits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from quire.model.families import baichuan
from tests.model.agreement import WAYS, check_recorded, random_model
from tests.model.harness import Harness
from tests.model.rms_cases import COMMON, HEADS

Tensors = dict[str, torch.Tensor]
HEAD_DIM = 16
LLAMA = {"model_type": "llama", **COMMON, **HEADS}
FULL_HEADS = {**LLAMA, "num_key_value_heads": 4}
INTERNLM2 = {
    "tok_embeddings": "embed_tokens",
    "output.": "lm_head.",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
}

EXAONE = {
    "transformer.wte": "model.embed_tokens",
    "transformer.ln_f": "model.norm",
    "transformer.h.": "model.layers.",
    "ln_1": "input_layernorm",
    "ln_2": "post_attention_layernorm",
    "attn.attention.out_proj": "self_attn.o_proj",
    "attn.attention.": "self_attn.",
    "mlp.c_fc_0": "mlp.gate_proj",
    "mlp.c_fc_1": "mlp.up_proj",
    "mlp.c_proj": "mlp.down_proj",
}


def fused(tensors: Tensors, name: str, fuse: Callable[..., torch.Tensor]) -> Tensors:
    """q, k and v of all layers as one tensor each, ``name`` in place of ``q_proj``."""
    out = {key: value for key, value in tensors.items() if not any(f"{part}_proj" in key for part in "qkv")}
    for key, value in tensors.items():
        if ".self_attn.q_proj." in key:
            parts = (value, *(tensors[key.replace("q_proj", f"{part}_proj")] for part in "kv"))
            out[key.replace("self_attn.q_proj", name)] = fuse(*parts)
    return out


def by_group(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Each key/value head's queries, its key, its value, as InternLM2 takes its ``wqkv`` apart."""
    groups = len(k) // HEAD_DIM
    parts = [x.view(groups, -1, HEAD_DIM, *x.shape[1:]) for x in (q, k, v)]
    return torch.cat(parts, dim=1).flatten(0, 2)


def renamed(tensors: Tensors, names: dict[str, str]) -> Tensors:
    """``names``: own part of a name -> Llama's."""
    out = {}
    for name, value in tensors.items():
        for own, llama in names.items():
            name = name.replace(llama, own)
        out[name] = value
    return out


def internlm2(tensors: Tensors) -> Tensors:
    return renamed(fused(tensors, "attention.wqkv", by_group), INTERNLM2)


def with_packed_attention(tensors: Tensors) -> Tensors:
    return fused(tensors, "self_attn.W_pack", lambda *parts: torch.cat(parts))


def rewrite(path: Path, change: Callable[[Tensors], Tensors], **settings: Any) -> None:
    """The checkpoint with its tensors changed, and its config; ``None`` takes a field out."""
    tensors = {name: value.contiguous() for name, value in change(load_file(path / "model.safetensors")).items()}
    save_file(tensors, path / "model.safetensors")
    config = json.loads((path / "config.json").read_text()) | settings
    (path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def internlm2_model(path: Path) -> Any:
    model = random_model({**LLAMA, "attention_bias": True}, path)
    rewrite(path, internlm2, model_type="internlm2", bias=True)
    return model


def baichuan_7b(path: Path) -> Any:
    model = random_model(FULL_HEADS, path)
    rewrite(path, with_packed_attention, model_type="baichuan")
    return model


def baichuan_13b(path: Path) -> Any:
    """Positions as linear biases; slopes are those of the paper for 4 heads."""
    model = random_model(FULL_HEADS, path)
    rewrite(path, with_packed_attention, model_type="baichuan", max_position_embeddings=None, model_max_length=256)
    model.model.rotary_emb.inv_freq.zero_()  # no rotation
    slopes = torch.tensor([2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8])

    def with_biases(tokens: torch.Tensor) -> Any:
        positions = torch.arange(tokens.shape[1], dtype=torch.float32)
        biases = slopes[:, None, None] * (positions[None] - positions[:, None])
        mask = biases.masked_fill(positions[None] > positions[:, None], float("-inf"))
        return model(tokens, attention_mask=mask[None])

    return with_biases


def baichuan2(path: Path) -> Any:
    """The head's rows at unit length; told by the vocabulary, which a test can't have as large."""
    model = baichuan_7b(path)
    with torch.no_grad():
        model.lm_head.weight /= model.lm_head.weight.norm(dim=1, keepdim=True)
    return model


def exaone(path: Path) -> Any:
    model = random_model(LLAMA, path)
    settings = {"num_layers": 3, "activation_function": "silu", "layer_norm_epsilon": 1e-6}
    absent = dict.fromkeys(("num_hidden_layers", "hidden_act", "rms_norm_eps"))
    rewrite(path, lambda tensors: renamed(tensors, EXAONE), model_type="exaone", **absent, **settings)
    return model


def minicpm(path: Path) -> Any:
    """Granite's multipliers, told by other numbers."""
    multipliers = {"embedding_multiplier": 12.0, "residual_multiplier": 1.4 / 3**0.5, "logits_scaling": 4.0}
    model = random_model({**LLAMA, "model_type": "granite", "attention_multiplier": 0.25, **multipliers}, path)
    plain = dict.fromkeys(("embedding_multiplier", "residual_multiplier", "logits_scaling", "attention_multiplier"))
    own = {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 16}
    rewrite(path, lambda tensors: tensors, model_type="minicpm", **plain, **own)
    return model


MODELS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "exaone": ("exaone", exaone),
    "minicpm": ("minicpm", minicpm),
    "internlm2": ("internlm2", internlm2_model),
    "baichuan-7b": ("baichuan", baichuan_7b),
    "baichuan-13b": ("baichuan", baichuan_13b),
    "baichuan2": ("baichuan", baichuan2),
}


@pytest.mark.parametrize("name", MODELS)
def test_agrees_with_llama_of_the_same_weights(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS[name][1](tmp_path)
    if name == "baichuan2":
        monkeypatch.setattr(baichuan, "_BAICHUAN2_VOCABULARY", COMMON["vocab_size"])
    for way in (*WAYS, check_recorded):
        way(model, lambda sequences: Harness(tmp_path, sequences))
