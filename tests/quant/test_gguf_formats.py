"""Every GGUF block format, unpacked, against the reference formulas of llama.cpp's own package: equal in float32."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize as reference

from quire.ops.backend import backend
from quire.ops.layouts import Codebook, Dense, GroupedInt
from quire.quant.formats.storage import check_type
from quire.quant.gguf import CHUNK, dequantize, loaded_nbytes, unpack
from quire.weights.errors import CheckpointError
from quire.weights.gguf import GGUFFile
from quire.weights.tensor_types import GGUF_TYPES, TYPES
from quire.weights.tensors import RawTensor, TensorInfo

FLOATS = ["F32", "F16", "BF16"]
BLOCKS = {  # bytes of the float16 scales in a block, bits (of codes: 4) and group of the layout
    "Q4_0": ([0], 4, 32),
    "Q4_1": ([0, 2], 4, 32),
    "Q5_0": ([0], 5, 32),
    "Q5_1": ([0, 2], 5, 32),
    "Q8_0": ([0], 8, 32),
    "Q2_K": ([80, 82], 2, 16),
    "Q3_K": ([108], 3, 16),
    "Q4_K": ([0, 2], 4, 32),
    "Q5_K": ([0, 2], 5, 32),
    "Q6_K": ([208], 6, 16),
    "IQ4_NL": ([0], 4, 32),
    "IQ4_XS": ([0], 4, 32),
}
# The kernels take scales of super-blocks by whole bytes (Q2_K's have 4 bits), and 3 bits only in groups of 32 (Q3_K's
# have 16), else 4.
GROWTH = {"Q2_K": 1.2, "Q3_K": 1.34}


def random_blocks(kind: str, rows: int, columns: int, seed: int = 0, largest: float | None = None) -> RawTensor:
    """Any bytes at all, but for scales, which are any finite float16. ``largest``: about that of the values."""
    rng = np.random.default_rng(seed)
    info = TYPES[kind]
    count = rows * columns // info.block
    raw = rng.integers(0, 256, (count, info.nbytes), np.uint8)
    tensor = RawTensor(kind, (rows, columns), raw.reshape(-1))
    for at in BLOCKS[kind][0]:
        scales = rng.integers(0, 2**16, count, np.uint16)
        scales[(scales >> 10) & 31 == 31] &= 0xBFFF  # no infinities and NaNs
        if largest is not None:
            scales = np.full(count, 1, np.float16).view(np.uint16)
        raw[:, at : at + 2] = scales.astype("<u2").view(np.uint8).reshape(-1, 2)
    if largest is not None:
        size = largest / float(reference_values(tensor).abs().max())
        for at in BLOCKS[kind][0]:
            scales = (rng.uniform(0.5, 1.0, count) * size).astype("<f2")
            raw[:, at : at + 2] = scales.view(np.uint8).reshape(-1, 2)
    return tensor


def reference_values(tensor: RawTensor) -> torch.Tensor:
    rows = tensor.data.reshape(*tensor.shape[:-1], -1)
    return torch.from_numpy(np.array(reference(rows, GGMLQuantizationType[tensor.type])))


@pytest.mark.parametrize("kind", BLOCKS)
def test_random_blocks_are_exact(kind: str) -> None:
    tensor = random_blocks(kind, 7, 5 * TYPES[kind].block)
    layout = unpack(tensor)
    assert isinstance(layout, Codebook if kind.startswith("IQ4") else GroupedInt)
    bits = 4 if isinstance(layout, Codebook) else layout.bits
    assert (bits, layout.group) == BLOCKS[kind][1:]
    assert layout.shape == tensor.shape and layout.q.dtype == (torch.int8 if bits == 8 else torch.uint8)
    if isinstance(layout, GroupedInt):
        assert layout.minimum is None or layout.minimum.dtype == layout.scale.dtype
    assert torch.equal(layout.dequantize(), reference_values(tensor))


@pytest.mark.parametrize("kind", BLOCKS)
def test_tensors_larger_than_a_chunk_are_exact(kind: str) -> None:
    tensor = random_blocks(kind, CHUNK // 512, 3 * 256)
    assert np.prod(tensor.shape) > CHUNK
    assert torch.equal(unpack(tensor).dequantize(), reference_values(tensor))


@pytest.mark.parametrize("bits", [0x7BFF, 0x0001, 0x6FFF])
def test_scales_of_q4_0_stay_exact_at_the_ends_of_float16(bits: int) -> None:
    """-8 d does not fit float16 for large d."""
    raw = np.zeros((1, 18), np.uint8)
    raw[:, 2:] = np.arange(16) * 17
    raw[:, :2] = np.array([bits], "<u2").view(np.uint8)
    tensor = RawTensor("Q4_0", (1, 32), raw.reshape(-1))
    assert torch.equal(unpack(tensor).dequantize(), reference_values(tensor))


@pytest.mark.parametrize("kind", BLOCKS)
def test_packed_blocks_take_what_they_take_in_the_file(kind: str) -> None:
    """And are multiplied by exactly what they stand for."""
    tensor = random_blocks(kind, 24, 6 * TYPES[kind].block)
    layout, ops = unpack(tensor), backend("cpu")
    packed = ops.pack(layout)
    if ops.name == "cpu":
        planned = loaded_nbytes(TensorInfo("a.weight", kind, tensor.shape, 0, tensor.data.nbytes), torch.device("cpu"))
        assert packed.nbytes == pytest.approx(planned, rel=0.03)
        assert packed.nbytes <= GROWTH.get(kind, 1.03) * tensor.data.nbytes
    ids = torch.arange(24)
    torch.testing.assert_close(ops.embed(packed, ids, 1.0), reference_values(tensor), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", FLOATS)
def test_floats_are_kept(kind: str) -> None:
    rng = np.random.default_rng(1)
    values = rng.standard_normal((4, 6)).astype(np.float32)
    dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[kind]
    stored = torch.from_numpy(values).to(dtype)
    tensor = RawTensor(kind, (4, 6), stored.view(torch.uint8).reshape(-1).numpy())
    layout = unpack(tensor)
    assert isinstance(layout, Dense) and torch.equal(layout.weight, stored)
    assert torch.equal(dequantize(tensor), stored.float())
    flat = RawTensor(kind, (24,), tensor.data)
    assert torch.equal(dequantize(flat), stored.float().reshape(24))


@pytest.mark.parametrize("kind", BLOCKS)
def test_scales_that_are_no_numbers_are_refused(kind: str) -> None:
    for bits in (0x7C00, 0xFC00, 0x7E01):
        tensor = random_blocks(kind, 2, 2 * TYPES[kind].block)
        data = tensor.data.reshape(-1, TYPES[kind].nbytes).copy()
        at = BLOCKS[kind][0][0]
        data[1, at : at + 2] = np.array([bits], "<u2").view(np.uint8)
        with pytest.raises(CheckpointError, match="finite"):
            unpack(tensor.with_data(data.reshape(-1)))


def test_what_cannot_be_multiplied_is_refused() -> None:
    with pytest.raises(CheckpointError, match="I32"):
        unpack(RawTensor("I32", (1, 1), np.zeros(4, np.uint8)))
    with pytest.raises(CheckpointError, match="matrix"):
        unpack(RawTensor("F32", (2,), np.zeros(8, np.uint8)))


@pytest.mark.parametrize("model", ["smollm2", "qwen", "gemma"])
def test_real_tensors_are_exact(model: str, request: pytest.FixtureRequest) -> None:
    """The smallest matrices of each type in the file."""
    file = GGUFFile.open(request.getfixturevalue(f"{model}_path"))
    by_type: dict[str, list[str]] = {}
    for info in sorted(file.tensors.values(), key=lambda t: t.nbytes):
        if info.nbytes < 8_000_000:
            by_type.setdefault(info.type, []).append(info.name)
    assert by_type.keys() >= {"smollm2": {"Q4_1"}, "qwen": {"Q5_0", "Q6_K", "Q4_K"}, "gemma": {"Q6_K", "Q4_K"}}[model]
    for names in by_type.values():
        for name in names[:2]:
            info = file.tensors[name]
            tensor = RawTensor(info.type, info.shape, file.raw(name))
            assert torch.equal(dequantize(tensor), reference_values(tensor)), name


def test_all_types_of_the_issue_are_read() -> None:
    assert set(GGUF_TYPES.values()) >= {*FLOATS, *BLOCKS}


@pytest.mark.parametrize("kind", TYPES)
def test_types_that_plain_weights_may_have_are_those_that_are_read(kind: str) -> None:
    data = np.zeros(256 // TYPES[kind].block * TYPES[kind].nbytes, np.uint8)
    try:
        check_type("weight", kind)
    except CheckpointError:
        with pytest.raises(CheckpointError, match="cannot be computed with"):
            unpack(RawTensor(kind, (1, 256), data))
    else:
        assert unpack(RawTensor(kind, (1, 256), data)).shape == (1, 256)
