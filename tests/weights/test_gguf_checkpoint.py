"""GGUF files as Hugging Face checkpoints: names, shapes, config and values against Transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize as reference_dequantize
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_gguf_pytorch_utils import Gemma2TensorProcessor, LlamaTensorProcessor

from quire.quant.gguf import dequantize
from quire.weights.checkpoint import open_checkpoint
from quire.weights.errors import CheckpointError
from quire.weights.gguf_checkpoint import GGUFCheckpoint
from tests.weights.gguf_builder import Builder, Tensor, f32, tiny_llama

MODELS = ["smollm2", "qwen", "gemma"]


@pytest.fixture(params=MODELS)
def real(request: pytest.FixtureRequest) -> GGUFCheckpoint:
    path: Path = request.getfixturevalue(f"{request.param}_path")
    return GGUFCheckpoint(path)


def test_names_and_shapes_are_those_of_transformers(real: GGUFCheckpoint) -> None:
    config = AutoConfig.for_model(**real.config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    expected = {name: tuple(p.shape) for name, p in model.named_parameters()}  # a tied head counts once
    assert {name: real.info(name).shape for name in real.names()} == expected


def test_configs_are_those_of_the_models(smollm2_path: Path, qwen_path: Path, gemma_path: Path) -> None:
    smollm2, qwen, gemma = (open_checkpoint(p).config for p in (smollm2_path, qwen_path, gemma_path))
    assert smollm2 == {
        "model_type": "llama", "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "head_dim": 64, "intermediate_size": 1536, "vocab_size": 49152,
        "max_position_embeddings": 8192, "rms_norm_eps": pytest.approx(1e-5), "rope_theta": 100000.0,
        "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": [2, 0],
    }  # fmt: skip
    assert (qwen["model_type"], qwen["rope_theta"], qwen["tie_word_embeddings"]) == ("qwen2", 1e6, False)
    assert qwen["eos_token_id"] == [151645, 151643] and qwen["attention_bias"]
    assert (gemma["model_type"], gemma["head_dim"], gemma["sliding_window"]) == ("gemma3_text", 256, 512)
    assert (gemma["rope_theta"], gemma["rope_local_base_freq"], gemma["query_pre_attn_scalar"]) == (1e6, 1e4, 256)
    assert [i for i, kind in enumerate(gemma["layer_types"]) if kind == "full_attention"] == [5, 11, 17]
    assert gemma["eos_token_id"] == [1, 106]


def _hugging_face(real: GGUFCheckpoint, gguf_name: str) -> torch.Tensor:
    """The tensor as Transformers computes it from the file's blocks."""
    info = real.gguf.tensors[gguf_name]
    rows = real.gguf.raw(gguf_name).reshape(*info.shape[:-1], -1)
    values = reference_dequantize(rows, GGMLQuantizationType[info.type])
    kind = {"llama": LlamaTensorProcessor, "gemma3_text": Gemma2TensorProcessor}.get(real.config["model_type"])
    if kind is not None:
        values = kind(config=dict(real.config)).process(values, gguf_name).weights
    return torch.from_numpy(np.array(values))


def test_values_are_those_of_transformers_bit_for_bit(real: GGUFCheckpoint) -> None:
    """Every kind of tensor of a layer at each end, every type, and the final norm; embeddings by their first rows."""
    last = real.config["num_hidden_layers"] - 1
    pairs = {
        hf: gguf
        for hf, gguf in real._gguf_names.items()
        if f".{last}." in hf or ".0." in hf or hf == "model.norm.weight"
    }
    assert len(pairs) > 18
    for name, gguf_name in pairs.items():
        assert torch.equal(dequantize(real.read(name)), _hugging_face(real, gguf_name)), name


def test_rows_of_q_and_k_are_put_back(tmp_path: Path) -> None:
    """Two heads of four rows: llama.cpp stores each as 0 2 1 3."""
    path = tmp_path / "m.gguf"
    path.write_bytes(tiny_llama(hidden=8, heads=2, kv_heads=1).build())
    checkpoint = GGUFCheckpoint(path)
    stored = checkpoint.gguf.raw("blk.0.attn_q.weight").view("<f4").reshape(8, 8)
    read = dequantize(checkpoint.read("model.layers.0.self_attn.q_proj.weight")).numpy()
    assert np.array_equal(read[[0, 2, 1, 3, 4, 6, 5, 7]], stored)
    stored = checkpoint.gguf.raw("blk.0.attn_v.weight").view("<f4").reshape(4, 8)
    assert np.array_equal(dequantize(checkpoint.read("model.layers.0.self_attn.v_proj.weight")).numpy(), stored)


def _refused(tmp_path: Path, builder: Builder, reason: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(builder.build())
    with pytest.raises(CheckpointError, match=reason) as caught:
        open_checkpoint(path)
    assert str(caught.value).endswith(".")


def _with(builder: Builder, key: str, kind: str | None, value: Any = None) -> Builder:
    builder.pairs = [p for p in builder.pairs if p[0] != key]
    if kind is not None:
        builder.pairs.append((key, kind, value))
    return builder


@pytest.mark.parametrize(
    ("key", "kind", "value", "reason"),
    [
        ("general.architecture", None, None, "architecture 'None'"),
        ("general.architecture", "str", "mamba", "architecture 'mamba'"),
        ("general.architecture", "u32", 5, "architecture '5'"),
        ("split.count", "u16", 3, "one of 3 parts"),
        ("llama.block_count", None, None, "lacks llama.block_count"),
        ("llama.block_count", "u32", 0, "block_count is not an integer from 1"),
        ("llama.block_count", "u32", 2**31, "block_count is not an integer"),
        ("llama.embedding_length", "str", "8", "embedding_length is not an integer"),
        ("llama.embedding_length", "bool", True, "embedding_length is not an integer"),
        ("llama.attention.head_count", "u32", 0, "head_count is not"),
        ("llama.attention.head_count", "arr:u32", [4, 4], "head_count is not"),
        ("llama.attention.layer_norm_rms_epsilon", "f32", float("nan"), "positive number"),
        ("llama.rope.freq_base", "f32", float("inf"), "positive number"),
        ("llama.rope.freq_base", "f32", -1.0, "positive number"),
        ("llama.rope.dimension_count", "u32", 4, "dimension_count is not an integer from 1 to 2"),
        ("llama.rope.scaling.type", "str", "magic", "rope scaling 'magic'"),
        ("tokenizer.ggml.eos_token_id", "u32", 4000000000, "eos token is not one of"),
        ("tokenizer.ggml.eos_token_id", "i32", -1, "eos token is not one of"),
    ],
)
def test_impossible_metadata_ends_in_one_sentence(
    tmp_path: Path, key: str, kind: str | None, value: Any, reason: str
) -> None:
    _refused(tmp_path, _with(tiny_llama(), key, kind, value), reason)


def test_a_tensor_of_another_model_is_refused(tmp_path: Path) -> None:
    for name in ("blk.0.ffn_gate_exps.weight", "blk.x.attn_q.weight", "other.weight", "token_embd"):
        builder = tiny_llama()
        builder.tensors.append(Tensor(name, (4,), 0, f32(4)))
        _refused(tmp_path, builder, "no use for")


def test_two_tensors_for_one_parameter_are_refused(tmp_path: Path) -> None:
    builder = tiny_llama()
    builder.tensors.append(Tensor("blk.00.attn_norm.weight", (8,), 0, f32(8)))
    _refused(tmp_path, builder, "two tensors for model.layers.0.input_layernorm.weight")


def test_a_file_without_embedding_is_refused(tmp_path: Path) -> None:
    builder = tiny_llama()
    builder.tensors = builder.tensors[1:]
    _refused(tmp_path, builder, "lacks the token embedding")


def test_rope_factors_become_part_of_the_config(tmp_path: Path) -> None:
    builder = tiny_llama()
    builder.tensors.append(Tensor("rope_freqs.weight", (1,), 0, f32(1, 4.0)))
    path = tmp_path / "m.gguf"
    path.write_bytes(builder.build())
    checkpoint = open_checkpoint(path)
    assert checkpoint.config["rope_scaling"] == {"rope_type": "factors", "factors": [4.0]}
    assert "rope_freqs.weight" not in checkpoint.names()


def test_recommended_sampling_and_end_tokens_are_read(tmp_path: Path) -> None:
    builder = _with(_with(tiny_llama(), "general.sampling.temp", "f32", 0.5), "tokenizer.ggml.eot_token_id", "u32", 3)
    path = tmp_path / "m.gguf"
    path.write_bytes(builder.build())
    checkpoint = open_checkpoint(path)
    assert checkpoint.generation_config == {"temperature": 0.5, "bos_token_id": 0, "eos_token_id": [1, 3]}
