"""A small model in every format: its logits against Transformers' with the weights that the format's formula gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from quire.config.engine import EngineConfig
from quire.runtime.build import make_blueprint
from tests.model.harness import Harness
from tests.quant.checkpoints import (
    Awq,
    EightBit,
    Float8,
    FourBit,
    Gptq,
    Mxfp8,
    Nvfp4,
    Packed,
    autoround,
    compressed,
    write,
)

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "vocab_size": 320,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


class RoundedInt8:
    """compressed-tensors' W8A8: a scale for each output, inputs rounded by each token's own."""

    def __init__(self, n: int, k: int, seed: int) -> None:
        rng = torch.Generator().manual_seed(seed)
        q, scale = (
            torch.randint(-127, 128, (n, k), generator=rng).to(torch.int8),
            torch.rand(n, 1, generator=rng) * 2e-3,
        )
        self.tensors = {".weight": q, ".weight_scale": scale}
        self.weight = q.float() * scale
        token = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True, "symmetric": True}
        weights = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}
        self.config = compressed("int-quantized", weights, token)

    @staticmethod
    def inputs(x: torch.Tensor) -> torch.Tensor:
        scale = x.abs().amax(-1, keepdim=True) / 127.5
        return (x / scale).round().clamp(-128, 127) * scale


class RoundedFp8(Float8):
    """DeepSeek's blocks of 128 x 128, inputs rounded by 128 of a token."""

    def __init__(self, n: int, k: int, seed: int) -> None:
        super().__init__(n, k, (128, 128), ".weight_scale_inv", seed)
        self.config = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}

    @staticmethod
    def inputs(x: torch.Tensor) -> torch.Tensor:
        parts = []
        for group in x.split(128, dim=-1):
            scale = group.abs().amax(-1, keepdim=True) / 448
            parts.append((group / scale).to(torch.float8_e4m3fn).float() * scale)
        return torch.cat(parts, dim=-1)


FORMATS: dict[str, Callable[[int, int, int], Any]] = {
    "gptq": lambda n, k, seed: Gptq(n, k, 4, 64, True, True, False, seed),
    "gptq-order-3-bits": lambda n, k, seed: Gptq(n, k, 3, 64, False, False, True, seed),
    "autoround-5-bits": lambda n, k, seed: autoround(Gptq(n, k, 5, 64, False, False, False, seed), "auto_round"),
    "awq": lambda n, k, seed: Awq(n, k, 64, seed),
    "nf4": lambda n, k, seed: FourBit(n, k, "nf4", 64, True, seed),
    "bnb-int8": EightBit,
    "mxfp8": Mxfp8,
    "nvfp4": Nvfp4,
    "w4a16": lambda n, k, seed: Packed(n, k, 4, 32, False, True, seed),
    "w8a8": RoundedInt8,
    "fp8-blocks": RoundedFp8,
}


def quantized_model(path: Path, make: Callable[[int, int, int], Any]) -> Any:
    """Writes the checkpoint; returns Transformers' model with the same weights."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**CONFIG), dtype=torch.float32).eval()
    tensors, config = model.state_dict(), {}
    for seed, (name, module) in enumerate(model.named_modules()):
        if not isinstance(module, torch.nn.Linear) or name == "lm_head":
            continue
        made = make(module.out_features, module.in_features, seed)
        del tensors[name + ".weight"]
        tensors |= {name + ending: t for ending, t in made.tensors.items()}
        module.weight.data, config = made.weight, made.config
        if hasattr(made, "inputs"):
            module.register_forward_pre_hook(lambda _, args, how=made.inputs: (how(args[0]),))
    write(path, tensors, config, **CONFIG)
    return model


@pytest.mark.parametrize("format", FORMATS)
def test_logits(format: str, tmp_path: Path) -> None:
    model = quantized_model(tmp_path, FORMATS[format])
    tokens = torch.randint(0, 320, (60,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        want = model(tokens[None]).logits[0]
    harness = Harness(tmp_path, [tokens.tolist()])
    loader = make_blueprint(EngineConfig(model=str(tmp_path), device="cpu")).loader
    assert loader.check().widest == 2 * 192 * 128  # gate and up, side by side; the head, which is larger, is plain
    planned = loader.check().nbytes
    assert abs(planned - harness.decoder.nbytes) < 0.05 * harness.decoder.nbytes
    got = torch.cat([harness.step({0: count})[0] for count in (40, 1, 19)])
    if format in ("w8a8", "fp8-blocks"):  # an input halfway between two steps may fall to either
        assert (got - want).norm() < 0.02 * want.norm()
    else:
        assert (got - want).abs().max() < 1e-4 * want.abs().max()


AT_LOAD_ERRORS = {
    "int8": 0.02,
    "int4": 0.2,
    "nf4": 0.2,
    "fp8": 0.08,
    "fp8_per_tensor": 0.08,
    "fp8_per_block": 0.08,
    "mxfp8": 0.08,
}


@pytest.mark.parametrize("quantization", AT_LOAD_ERRORS)
def test_quantisation_at_load(quantization: str, tmp_path: Path) -> None:
    """Close to the plain model, and in less memory."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**CONFIG), dtype=torch.float32).eval()
    model.save_pretrained(tmp_path)
    tokens = torch.randint(0, 320, (60,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        want = model(tokens[None]).logits[0]
    plain, narrow = (Harness(tmp_path, [tokens.tolist()], quantization=q) for q in (None, quantization))
    for load_format in ("auto", "dummy"):
        config = EngineConfig(model=str(tmp_path), device="cpu", quantization=quantization, load_format=load_format)
        assert make_blueprint(config).loader.check().widest == 2 * 192 * 128  # gate and up, side by side
    got = narrow.step({0: 60})[0]
    error = (got - want).norm() / want.norm()
    assert 1e-4 < error < AT_LOAD_ERRORS[quantization]
    layers = sum(p.numel() for n, p in model.named_parameters() if "layers" in n)
    saved = plain.decoder.nbytes - narrow.decoder.nbytes
    assert saved > layers * (3.2 if quantization in ("int4", "nf4") else 2.8)


@pytest.mark.parametrize("model", ["smollm2", "qwen", "gemma"])
def test_gguf_weights_take_no_more_than_their_file(model: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(f"{model}_path")
    assert Harness(path, [[1, 2]]).decoder.nbytes <= path.stat().st_size
