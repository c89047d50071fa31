"""GGUF files of models with experts: the tensors of a tiny Transformers model, its logits from the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize

from tests.model.agreement import TOKENS, VOCAB, check_chunks, expected, random_model
from tests.model.harness import Harness
from tests.weights.gguf_builder import Builder, Tensor

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "vocab_size": VOCAB,
    "max_position_embeddings": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_experts": 4,
    "num_experts_per_tok": 2,
}
CASES: dict[str, dict[str, Any]] = {
    "qwen3moe": {"model_type": "qwen3_moe", **SIZES, "moe_intermediate_size": 32, "norm_topk_prob": True},
    "olmoe": {"model_type": "olmoe", **SIZES},
    "llama": {"model_type": "mixtral", **SIZES, "num_local_experts": 4},
}
LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate": "ffn_gate_inp",
}
HEADS = {"self_attn.q_proj": 4, "self_attn.k_proj": 2}
GLOBAL = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def interleaved(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of each head in the order of llama.cpp's rotary embedding."""
    return rows.view(heads, 2, -1, rows.shape[1]).transpose(1, 2).reshape(rows.shape).contiguous()


def gguf(arch: str, model: Any, experts: GGMLQuantizationType) -> Builder:
    """``model`` as llama.cpp's converter writes it, experts in the type given, whose values the model then has too."""
    config = model.config
    fields = {
        "block_count": config.num_hidden_layers,
        "context_length": 256,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.key_length": 16,
        "expert_count": 4,
        "expert_used_count": 2,
    }
    pairs: list[tuple[str, str, Any]] = [("general.architecture", "str", arch)]
    pairs += [(f"{arch}.{key}", "u32", value) for key, value in fields.items()]
    pairs += [(f"{arch}.attention.layer_norm_rms_epsilon", "f32", config.rms_norm_eps)]
    pairs += [(f"{arch}.rope.freq_base", "f32", config.rope_parameters["rope_theta"])]
    pairs += [("tokenizer.ggml.tokens", "arr:str", [f"t{i}" for i in range(VOCAB)])]
    if arch == "qwen3moe":
        pairs += [(f"{arch}.expert_feed_forward_length", "u32", config.moe_intermediate_size)]
    tensors = []

    def add(name: str, value: torch.Tensor, kind: GGMLQuantizationType = GGMLQuantizationType.F32) -> None:
        data = quantize(value.detach().numpy(), kind)
        value.data.copy_(torch.from_numpy(dequantize(data, kind)).view(value.shape))
        tensors.append(Tensor(name + ".weight", tuple(value.shape), int(kind), data.tobytes()))

    for name, parameter in model.named_parameters():
        if name.removesuffix(".weight") in GLOBAL:
            add(GLOBAL[name.removesuffix(".weight")], parameter)
            continue
        index, part = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
        if part == "mlp.experts.gate_up_proj":
            gate, up = parameter.chunk(2, dim=1)
            add(f"blk.{index}.ffn_gate_exps", gate, experts)
            add(f"blk.{index}.ffn_up_exps", up, experts)
        elif part == "mlp.experts.down_proj":
            add(f"blk.{index}.ffn_down_exps", parameter, experts)
        elif arch == "llama" and part in HEADS:
            add(f"blk.{index}.{LAYER[part]}", interleaved(parameter, HEADS[part]))
        else:
            add(f"blk.{index}.{LAYER[part]}", parameter)
    return Builder(pairs, tensors)


@pytest.mark.parametrize("kind", [GGMLQuantizationType.F32, GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_1])
@pytest.mark.parametrize("arch", CASES)
def test_logits_are_those_of_transformers(tmp_path: Path, arch: str, kind: GGMLQuantizationType) -> None:
    model = random_model(CASES[arch], tmp_path)
    path = tmp_path / "m.gguf"
    with torch.no_grad():
        path.write_bytes(gguf(arch, model, kind).build())
    check_chunks(model, lambda sequences: Harness(path, sequences))
    assert expected(model, TOKENS).abs().max() > 1
