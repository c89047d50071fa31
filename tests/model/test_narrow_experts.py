"""Experts of 8 bits on the GPU's ops: what the plan counts is what is loaded, and logits are those of the CPU's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from quire.config.engine import EngineConfig
from quire.model.dummy import DummyLoader
from quire.model.families import describe
from quire.model.latent import LatentAttention
from quire.model.moe import Moe
from quire.ops.triton import TritonOps
from quire.ops.triton.narrow import OctetsWeight
from quire.runtime.build import make_blueprint
from tests.model import test_moe_families
from tests.model.agreement import TOKENS, random_model
from tests.model.harness import Harness
from tests.quant.checkpoints import Float8, write
from tests.quant.test_models import RoundedFp8, RoundedInt8

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
pytestmark = [pytest.mark.gpu] if GPU else []
CONFIG: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "architectures": ["Qwen3MoeForCausalLM"],
    "hidden_size": 512,
    "intermediate_size": 512,
    "moe_intermediate_size": 256,
    "num_hidden_layers": 2,
    "vocab_size": 320,
    "max_position_embeddings": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "num_experts": 4,
    "num_experts_per_tok": 2,
}
DEEPSEEK = {
    **test_moe_families.COMMON,
    **test_moe_families.CASES["deepseek_v2"],
    "architectures": ["DeepseekV2ForCausalLM"],
}


class PlainFp8(Float8):
    """One scale for each output, inputs as they are."""

    def __init__(self, n: int, k: int, seed: int) -> None:
        super().__init__(n, k, (1, k), ".weight_scale", seed)
        weights = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}
        self.config = {
            "quant_method": "compressed-tensors",
            "format": "float-quantized",
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        }


# How a checkpoint is stored, or else the method by which a plain one is quantised at load.
STORED: dict[str, Callable[[int, int, int], Any]] = {
    "w8a8": RoundedInt8,
    "fp8-channels": PlainFp8,
    "fp8-blocks": RoundedFp8,
}
AT_LOAD = ("int8", "fp8", "fp8_per_block", "mxfp8")


def checkpoint(path: Path, kind: str) -> str | None:
    """Writes one; returns how it is to be quantised at load."""
    random_model(CONFIG, path)
    tensors = {name: tensor.half() for name, tensor in load_file(path / "model.safetensors").items()}
    quantization = None
    for seed, name in enumerate([name for name in tensors if name.endswith("_proj.weight")] if kind in STORED else ()):
        made = STORED[kind](*tensors.pop(name).shape, seed)
        tensors |= {name.removesuffix(".weight") + ending: tensor for ending, tensor in made.tensors.items()}
        quantization = made.config
    write(path, tensors, quantization, **CONFIG, dtype="float16")
    return None if kind in STORED else kind


@pytest.mark.parametrize("kind", [*STORED, *AT_LOAD])
def test_plan_is_what_is_loaded(kind: str, tmp_path: Path) -> None:
    method = checkpoint(tmp_path, kind)
    ops = TritonOps(DEVICE, torch.float16)
    for load_format in ("auto", "dummy") if method else ("auto",):
        config = EngineConfig(
            model=str(tmp_path), device="cpu", quantization=method, threads=1, load_format=load_format
        )
        loader = make_blueprint(config, ops).loader
        planned, decoder = loader.check().nbytes, loader.decoder(1, 128)
        assert abs(planned - decoder.nbytes) < 0.015 * decoder.nbytes
        for layer in decoder._parts.layers:
            assert isinstance(layer.mlp, Moe)
            assert isinstance(layer.mlp.experts.gate_up, OctetsWeight)
            assert isinstance(layer.mlp.experts.down, OctetsWeight)


@pytest.mark.parametrize("kind", ["w8a8", "fp8-channels", "int8"])
def test_logits(kind: str, tmp_path: Path) -> None:
    method = checkpoint(tmp_path, kind)
    tokens = TOKENS[:12]
    got, want = (
        torch.cat([harness.step({0: count})[0].float().cpu() for count in (11, 1)])
        for harness in (
            Harness(tmp_path, [tokens], method, TritonOps(DEVICE, torch.float32)),
            Harness(tmp_path, [tokens], method),
        )
    )
    assert (got - want).norm() < (0.02 if kind == "w8a8" else 1e-3) * want.norm()  # halfway, inputs round either way


@pytest.mark.parametrize("quantization", ["int8", "fp8"])
def test_values_of_heads_are_narrow(quantization: str) -> None:
    """Of latent attention; what they multiply is no input that a checkpoint rounds."""
    spec, names = describe(DEEPSEEK)
    decoder = DummyLoader(spec, names, TritonOps(DEVICE, torch.float16), quantization).decoder(1, 64)
    for layer in decoder._parts.layers:
        assert isinstance(layer.attention, LatentAttention)
        assert isinstance(layer.attention.values, OctetsWeight)
        assert layer.attention.values.activation is None
