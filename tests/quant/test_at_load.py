"""Quantising plain weights as they are read: by each method's formula, close to the weights, what is kept is kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from quire.ops.layouts import Codebook, Dense, Fp8, GroupedInt, Int8Channel
from quire.ops.shapes import ActivationQuant
from quire.quant.at_load import METHODS, quantize
from quire.quant.formats.detect import storage_of
from quire.quant.reader import reader_of
from tests.quant.checkpoints import NF4, tensor, write


@pytest.fixture
def weight() -> torch.Tensor:
    return torch.randn(40, 192, generator=torch.Generator().manual_seed(0)) * 0.02


def test_int8(weight: torch.Tensor) -> None:
    layout = quantize(weight, "int8")
    assert isinstance(layout, Int8Channel) and layout.activation is None
    scale = weight.numpy().max(axis=1, initial=0, where=True)
    scale = np.abs(weight.numpy()).max(axis=1, keepdims=True) / np.float32(127)
    assert np.array_equal(layout.dequantize().numpy(), np.rint(weight.numpy() / scale) * scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_int4(weight: torch.Tensor, dtype: torch.dtype) -> None:
    """Groups of 128, or what divides the inputs; each covers its own range, 0 included, in 15 steps."""
    weight = weight.to(dtype)
    layout = quantize(weight, "int4")
    assert isinstance(layout, GroupedInt) and layout.group == 64
    groups = weight.float().view(40, 3, 64)
    step = (groups.amax(2).clamp(min=0) - groups.amin(2).clamp(max=0)) / 15
    error = (layout.dequantize().view(40, 3, 64) - groups).abs()
    assert (error <= step[..., None] * 1.01).all() and (error.mean(2) <= 0.3 * step).all()
    assert quantize(torch.randn(4, 256), "int4").group == 128  # type: ignore[union-attr]


def test_constant_and_one_sided_groups_survive() -> None:
    weight = torch.cat([torch.zeros(1, 128), torch.full((1, 128), 0.5), torch.rand(1, 128), -torch.rand(1, 128)])
    for method in METHODS:
        error = (quantize(weight, method).dequantize() - weight).abs().amax(1)
        own_scale = method not in ("fp8_per_tensor", "fp8_per_block", "mxfp8")
        assert error[0] == 0 and error.max() < 0.153  # half of nf4's widest step
        assert error[1] < (1e-3 if own_scale else 0.5 / 16)


def test_nf4(weight: torch.Tensor) -> None:
    """The nearest of 16 levels, in blocks of 64."""
    layout = quantize(weight, "nf4")
    assert isinstance(layout, Codebook)
    blocks = weight.numpy().reshape(-1, 64)
    scale = np.abs(blocks).max(axis=1, keepdims=True)
    nearest = np.abs((blocks / scale)[..., None] - np.array(NF4, np.float32)).argmin(axis=2)
    assert np.array_equal(layout.q.numpy().reshape(-1, 64), nearest)
    assert np.array_equal(layout.dequantize().numpy().reshape(-1, 64), np.array(NF4, np.float32)[nearest] * scale)


def test_fp8(weight: torch.Tensor) -> None:
    layout = quantize(weight, "fp8")
    assert isinstance(layout, Fp8) and layout.block == (1, 192)
    assert layout.activation is not None and layout.activation.scale is None
    scale = weight.abs().amax(1, keepdim=True) / 448
    assert torch.equal(layout.dequantize(), (weight / scale).to(torch.float8_e4m3fn).float() * scale)


def e4m3(x: torch.Tensor) -> torch.Tensor:
    """The nearest of e4m3's numbers: three bits after the first, the least step 2 ** -9."""
    step = np.exp2(np.floor(np.log2(np.maximum(np.abs(x.double().numpy()), 2.0**-6))) - 3)
    return torch.from_numpy(np.rint(x.double().numpy() / step) * step).float()


def test_fp8_per_tensor(weight: torch.Tensor) -> None:
    layout = quantize(weight, "fp8_per_tensor")
    assert isinstance(layout, Fp8) and layout.block == (40, 192) and layout.scale.shape == (1, 1)
    assert layout.activation == ActivationQuant("fp8")
    scale = weight.abs().max() / 448
    assert torch.equal(layout.dequantize(), e4m3(weight / scale) * scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fp8_per_block(dtype: torch.dtype) -> None:
    """128 x 128, smaller at the ends; inputs rounded by 128 of a token."""
    weight = (torch.randn(300, 200, generator=torch.Generator().manual_seed(0)) * 0.02).to(dtype)
    layout = quantize(weight, "fp8_per_block")
    assert isinstance(layout, Fp8) and layout.block == (128, 128) and layout.scale.shape == (3, 2)
    assert layout.activation == ActivationQuant("fp8", group=128)
    got = layout.dequantize()
    for n in (0, 128, 256):
        for k in (0, 128):
            block = weight[n : n + 128, k : k + 128].float()
            scale = block.abs().max() / 448
            assert torch.equal(got[n : n + 128, k : k + 128], e4m3(block / scale) * scale)


def test_mxfp8(weight: torch.Tensor) -> None:
    """Blocks of 32 inputs; the least power of two with which no number is beyond e4m3's largest."""
    weight[0, :32] = torch.linspace(-448, 448, 32) * 2.0**-9  # which fills the range exactly
    layout = quantize(weight, "mxfp8")
    assert isinstance(layout, Fp8) and layout.block == (1, 32) and layout.activation is None
    blocks = weight.numpy().reshape(40, 6, 32)
    power = np.exp2(np.ceil(np.log2(np.abs(blocks).max(axis=2).astype(np.float64) / 448)))
    assert np.array_equal(layout.scale.numpy(), power) and power[0, 0] == 2.0**-9
    scale = tensor(np.repeat(power, 32, axis=1)).float()
    assert torch.equal(layout.dequantize(), e4m3(weight / scale) * scale)


def test_inputs_that_make_no_groups_stay_plain() -> None:
    for method in ("int4", "nf4", "mxfp8"):
        assert isinstance(quantize(torch.randn(4, 12), method), Dense)


@pytest.mark.parametrize("method", ["int8", "int4", "bitsandbytes", "fp8", "fp8_per_tensor", "fp8_per_block", "mxfp8"])
def test_reader(tmp_path: Path, weight: torch.Tensor, method: str) -> None:
    tensors = {f"{m}.weight": weight.bfloat16() for m in ("lm_head", "model.layers.0.mlp.gate", "model.layers.0.up")}
    reader = reader_of(storage_of(write(tmp_path, tensors, None), method), keep=("lm_head", "mlp.gate"))
    for module in ("lm_head", "model.layers.0.mlp.gate"):
        assert isinstance(reader.read(module, 40, 192), Dense)
        assert reader.nbytes(module, 40, 192) == weight.numel() * 2
    assert not isinstance(reader.read("model.layers.0.up", 40, 192), Dense)
    assert reader.nbytes("model.layers.0.up", 40, 192) <= weight.numel() * 1.125
