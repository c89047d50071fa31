"""GGUF files of dense models: a tiny Transformers model written by the gguf package under its names, and its logits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFWriter, RopeScalingType, get_tensor_name_map

from quire.ops.backend import Ops
from quire.ops.triton import TritonOps
from quire.weights.tensors import RawTensor
from tests.model.agreement import TOKENS, VOCAB, check_chunks, close, expected, random_model
from tests.model.harness import Harness
from tests.model.rms_cases import LONGROPE
from tests.model.test_families import CASES
from tests.quant.test_gguf_formats import BLOCKS, random_blocks, reference_values

ARCHS: dict[str, tuple[MODEL_ARCH, dict[str, Any]]] = {
    "qwen3": (MODEL_ARCH.QWEN3, CASES["qwen3"]),
    "gemma": (MODEL_ARCH.GEMMA, CASES["gemma"]),
    "gemma2": (MODEL_ARCH.GEMMA2, {**CASES["gemma2"], "query_pre_attn_scalar": 32}),
    "phi3": (MODEL_ARCH.PHI3, CASES["phi3-window"]),
    "phi3-longrope": (MODEL_ARCH.PHI3, CASES["phi3-longrope"]),
    "starcoder2": (MODEL_ARCH.STARCODER2, {**CASES["starcoder2"], "sliding_window": None}),
    "stablelm": (MODEL_ARCH.STABLELM, CASES["stablelm"]),
    "olmo2": (MODEL_ARCH.OLMO2, CASES["olmo2"]),
    "olmo3": (MODEL_ARCH.OLMO2, CASES["olmo3"]),
    "granite": (MODEL_ARCH.GRANITE, {**CASES["granite"], "attention_bias": False, "mlp_bias": False}),
    "smollm3": (MODEL_ARCH.SMOLLM3, {**CASES["smollm3"], "no_rope_layer_interval": 4}),
    "internlm2": (MODEL_ARCH.INTERNLM2, CASES["llama"]),
}
PERMUTED = (MODEL_ARCH.GRANITE, MODEL_ARCH.SMOLLM3, MODEL_ARCH.INTERNLM2)
NORMS_PLUS_ONE = (MODEL_ARCH.GEMMA, MODEL_ARCH.GEMMA2)


def write(path: Path, arch: MODEL_ARCH, model: Any, blocks: Mapping[str, RawTensor] | None = None) -> None:
    """As llama.cpp's converter does. ``blocks``: parameters that are quantised."""
    config = model.config
    writer = GGUFWriter(path, MODEL_ARCH_NAMES[arch])
    write_sizes(writer, config)
    write_special(writer, arch, config)
    writer.add_token_list([f"t{i}" for i in range(VOCAB)])
    names = get_tensor_name_map(arch, config.num_hidden_layers)
    for name, value in model.state_dict().items():
        if config.tie_word_embeddings and name == "lm_head.weight":
            continue
        if arch in PERMUTED and ("q_proj" in name or "k_proj" in name):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            value = value.view(heads, 2, -1, value.shape[-1]).transpose(1, 2).reshape(value.shape)
        if arch in NORMS_PLUS_ONE and name.endswith("norm.weight"):
            value = value + 1
        written = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert written is not None, name
        if blocks and name in blocks:
            quantised = blocks[name]
            data = quantised.data.reshape(quantised.shape[0], -1)
            writer.add_tensor(written, data, raw_dtype=GGMLQuantizationType[quantised.type])
            continue
        writer.add_tensor(written, value.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_sizes(writer: GGUFWriter, config: Any) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    if getattr(config, "head_dim", None):
        writer.add_key_length(config.head_dim)
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    writer.add_rope_freq_base(rope["rope_theta"])
    for name in ("rms_norm_eps", "layer_norm_eps", "norm_epsilon"):
        if hasattr(config, name):
            add = writer.add_layer_norm_rms_eps if name == "rms_norm_eps" else writer.add_layer_norm_eps
            add(getattr(config, name))


def write_special(writer: GGUFWriter, arch: MODEL_ARCH, config: Any) -> None:
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    width = config.hidden_size // config.num_attention_heads
    if arch in (MODEL_ARCH.STABLELM, MODEL_ARCH.PHI3):
        writer.add_rope_dimension_count(int(rope["partial_rotary_factor"] * width))
    if arch in (MODEL_ARCH.PHI3, MODEL_ARCH.GEMMA2):
        writer.add_sliding_window(config.sliding_window or 0)
    if arch == MODEL_ARCH.STABLELM:
        writer.add_parallel_residual(config.use_parallel_residual)
    if arch == MODEL_ARCH.GEMMA2:
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if arch == MODEL_ARCH.GRANITE:
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)
    if config.model_type == "olmo3":
        writer.add_sliding_window(config.sliding_window)
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config.layer_types])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if rope["rope_type"] == "longrope":
        writer.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)
        writer.add_rope_scaling_attn_factors(2.0**0.5)  # sqrt(1 + log(256 / 16) / log(16))
        for kind in ("long", "short"):
            writer.add_tensor(f"rope_factors_{kind}.weight", torch.tensor(LONGROPE[f"{kind}_factor"]).numpy())


@pytest.mark.parametrize("name", ARCHS)
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    arch, settings = ARCHS[name]
    model = random_model(settings, tmp_path / "hf")
    write(tmp_path / "m.gguf", arch, model)
    check_chunks(model, lambda sequences: Harness(tmp_path / "m.gguf", sequences))


@pytest.fixture(params=BLOCKS)
def quantised(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Any]:
    """A file whose layers are of random blocks of one type, and the model of their values."""
    settings = {**CASES["qwen3"], "hidden_size": 256, "intermediate_size": 512, "head_dim": 64}
    settings["num_hidden_layers"] = 1
    model = random_model(settings, tmp_path / "hf")
    blocks = {}
    for i, (name, parameter) in enumerate(model.named_parameters()):
        if parameter.dim() == 2 and "layers" in name:
            blocks[name] = random_blocks(request.param, *parameter.shape, seed=i, largest=0.1)
            parameter.data = reference_values(blocks[name])
    write(tmp_path / "m.gguf", MODEL_ARCH.QWEN3, model, blocks)
    return tmp_path / "m.gguf", model


def test_logits_are_those_of_the_dequantised_weights(quantised: tuple[Path, Any]) -> None:
    path, model = quantised
    check_chunks(model, lambda sequences: Harness(path, sequences))


@pytest.mark.parametrize("quantised", ["Q2_K", "Q3_K", "IQ4_NL", "IQ4_XS"], indirect=True)  # the interpreter is slow
def test_logits_of_the_gpus_kernels_are_those_of_the_dequantised_weights(quantised: tuple[Path, Any]) -> None:
    path, model = quantised
    ops: Ops = TritonOps(torch.device("cuda" if torch.cuda.is_available() else "cpu"), torch.float32)
    got = Harness(path, [TOKENS[:8]], ops=ops).step({0: 8})[0]
    close(got.cpu(), expected(model, TOKENS[:8]))
