"""Products with quantised weights against the reference, for every layout, and what they expand to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from quire.model.decoder import Decoder, Step
from quire.model.dummy import DummyLoader
from quire.model.families import describe
from quire.ops.backend import Pages
from quire.ops.layouts import Codebook, Fp8, GroupedInt, Int8Channel, Layout
from quire.ops.reference import ReferenceOps
from quire.ops.shapes import ActivationQuant
from quire.ops.triton import TritonOps, octets, planes
from quire.ops.triton.narrow import OctetsWeight, PlanesWeight
from quire.ops.triton.quantised import expand
from quire.ops.triton.rounding import rounded
from quire.ops.triton.tiles import Experts
from quire.quant.at_load import NF4
from quire.quant.float4 import TABLE
from tests.ops.triton.harness import REFERENCE, close, draw, given, make_step, moved

N, K = 72, 512
ROWS = (1, 3, 16, 40, 300)


def grouped(bits: int, group: int, k: int = K, zero: bool = False, minimum: bool = False) -> GroupedInt:
    signed = bits == 8
    low, high = (-128, 128) if signed else (0, 1 << bits)
    kind = torch.int8 if signed else torch.uint8
    q = torch.randint(low, high, (N, k), dtype=torch.int16).to(kind)
    scale = (torch.rand(N, k // group) / (high - low) * 0.2 + 1e-3).half()
    zeros = torch.randint(low, high, (N, k // group), dtype=torch.int16).to(kind)
    least = torch.randn(N, k // group).half() * 0.1 if minimum else None
    return GroupedInt(q, scale, least, bits, group, zeros if zero else 0 if signed or minimum else 1 << (bits - 1))


def ordered(bits: int = 4) -> GroupedInt:
    return replace(grouped(bits, 128, zero=True), order=torch.randperm(K))


def super_blocks(bits: int = 4, group: int = 32) -> GroupedInt:
    q = torch.randint(0, 1 << bits, (N, K), dtype=torch.uint8)
    small = torch.randint(1, 64, (2, N, K // group), dtype=torch.uint8)
    large = torch.rand(2, N, K // 256).half() * 2e-3
    return GroupedInt(q, small[0], small[1], bits, group, 0, None, large[0], -large[1])


def iq4_xs() -> Codebook:
    scale = torch.randint(-32, 32, (N, K // 32), dtype=torch.int8)
    table = torch.randint(-127, 128, (16,)).float()
    large = torch.rand(N, K // 256).half() * 1e-4
    return Codebook(torch.randint(0, 16, (N, K), dtype=torch.uint8), table, scale, 32, large)


def codebook(table: torch.Tensor, group: int, exponents: bool = False) -> Codebook:
    q = torch.randint(0, 16, (N, K), dtype=torch.uint8)
    shape = (N, K // group)
    scale = torch.randint(118, 124, shape, dtype=torch.uint8) if exponents else torch.rand(shape) * 0.1
    return Codebook(q, table, scale, group)


def int8(how: ActivationQuant | None) -> Int8Channel:
    return Int8Channel(torch.randint(-127, 128, (N, K), dtype=torch.int16).to(torch.int8), torch.rand(N) * 1e-3, how)


def fp8(block: tuple[int, int], how: ActivationQuant | None, k: int = K) -> Fp8:
    weight = torch.randn(N, k).to(torch.float8_e4m3fn)
    return Fp8(weight, torch.rand(-(-N // block[0]), -(-k // block[1])) * 0.1, block, how)


LAYOUTS: dict[str, Callable[[], Layout]] = {
    "2 bits": lambda: grouped(2, 64),
    "3 bits, zeros": lambda: grouped(3, 128, zero=True),
    "4 bits": lambda: grouped(4, 128),
    "4 bits, zeros": lambda: grouped(4, 128, zero=True),
    "4 bits, minimums, groups of 32": lambda: grouped(4, 32, minimum=True),
    "4 bits, one group": lambda: grouped(4, K, zero=True),
    "4 bits, ragged": lambda: grouped(4, 16, 336, zero=True),
    "4 bits, order": ordered,
    "8 bits, order": lambda: ordered(8),
    "4 bits, super-blocks": super_blocks,
    "2 bits, super-blocks": lambda: super_blocks(2, 16),
    "3 bits, groups of 16": lambda: grouped(3, 16),
    "5 bits, minimums": lambda: grouped(5, 32, minimum=True),
    "6 bits, groups of 16": lambda: grouped(6, 16),
    "8 bits": lambda: grouped(8, 32),
    "8 bits, zeros": lambda: grouped(8, 128, zero=True),
    "7 bits, zeros": lambda: grouped(7, 128, zero=True),
    "groups of 8": lambda: grouped(4, 8),
    "nf4": lambda: codebook(NF4, 64),
    "mxfp4": lambda: codebook(TABLE, 32, exponents=True),
    "iq4_xs": iq4_xs,
    "int8": lambda: int8(None),
    "int8, rounded": lambda: int8(ActivationQuant("int8")),
    "int8, rounded with a zero": lambda: int8(ActivationQuant("int8", symmetric=False)),
    "int8, fixed": lambda: int8(ActivationQuant("int8", 0.03, 7)),
    "fp8": lambda: fp8((1, K), None),
    "fp8, rounded": lambda: fp8((1, K), ActivationQuant("fp8")),
    "fp8, one scale, fixed": lambda: fp8((N, K), ActivationQuant("fp8", 0.01)),
    "nvfp4": lambda: codebook(TABLE, 16),
    "mxfp8": lambda: fp8((1, 32), None),
    "fp8, blocks": lambda: fp8((32, 128), None),
    "fp8, blocks, rounded": lambda: fp8((32, 128), ActivationQuant("fp8", group=128), 448),
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("rows", ROWS)
def test_linear(ops: TritonOps, name: str, rows: int) -> None:
    layout = LAYOUTS[name]()
    x, bias = draw(ops, rows, layout.shape[1]), draw(ops, N)
    packed = ops.pack(layout)
    assert packed.shape == layout.shape
    want = REFERENCE.linear(x, REFERENCE.pack(layout), bias)
    got = ops.linear(given(ops, x), packed, given(ops, bias))
    assert got.dtype is ops.dtype
    close_enough(got, want, coarse_sums=ops.device.type == "cuda" and name.startswith("fp8, "))
    assert not ops._counters.any()


@pytest.mark.parametrize("name", ["3 bits, zeros", "4 bits, order", "nf4", "8 bits", "int8, rounded", "fp8"])
@pytest.mark.parametrize("rows", [1, 3, 70])
def test_gated_linear(ops: TritonOps, name: str, rows: int) -> None:
    layout = LAYOUTS[name]()
    x, bias = draw(ops, rows, K), draw(ops, N)
    want = REFERENCE.gated_linear(x, REFERENCE.pack(layout), bias, "silu")
    close_enough(ops.gated_linear(given(ops, x), ops.pack(layout), given(ops, bias), "silu"), want)


def close_enough(got: torch.Tensor, want: torch.Tensor, coarse_sums: bool = False) -> None:
    """By the size of a result: weights are rounded to the type of activations, as inputs may be to 8 bits.

    ``coarse_sums``: of products of 8-bit floats, which tensor cores add in fewer bits than float32's.
    """
    size = float(want.square().mean().sqrt())
    scale = 3.0 if got.dtype is not torch.float32 else 300.0 if coarse_sums else 5.0
    close(got / size, want / size, scale)


@pytest.mark.parametrize("name", ["4 bits, order", "4 bits, ragged", "6 bits, groups of 16", "nf4", "8 bits", "fp8"])
def test_expanded(ops: TritonOps, name: str) -> None:
    layout = LAYOUTS[name]()
    packed = ops.pack(layout)
    assert isinstance(packed, PlanesWeight | OctetsWeight)
    want, size = layout.dequantize(), float(layout.dequantize().abs().max())
    close(expand(packed, ops.dtype) / size, want / size)
    ids = torch.tensor([3, 0, N - 1])
    close(ops.embed(packed, ids.to(ops.device), 1.5) / size, want[ids] * 1.5 / size, scale=2)


EXPERTS = (
    *("4 bits, zeros", "4 bits, order", "mxfp4", "8 bits", "8 bits, zeros", "8 bits, order", "int8", "int8, rounded"),
    *("int8, rounded with a zero", "fp8", "fp8, rounded", "fp8, blocks", "fp8, blocks, rounded"),
)


@pytest.mark.parametrize("name", EXPERTS)
@pytest.mark.parametrize(("tokens", "gather"), [(3, True), (40, False), (270, True)])
def test_experts(ops: TritonOps, name: str, tokens: int, gather: bool) -> None:
    """Two of the four have no rows."""
    layouts = [LAYOUTS[name]() for _ in range(4)]
    stack = ops.pack_stack(layouts)
    assert isinstance(stack, PlanesWeight | OctetsWeight)
    assert stack.shape == (4 * N, layouts[0].shape[1])
    x, bias = draw(ops, tokens, stack.shape[1]), draw(ops, 4, N)
    offsets = torch.tensor([0, 2, 2, tokens, tokens], dtype=torch.int32)
    rows = torch.randint(0, tokens, (tokens,)).int() if gather else None
    want = REFERENCE.grouped_linear(x, REFERENCE.pack_stack(layouts), offsets, bias, rows)
    got_rows = None if rows is None else rows.to(ops.device)
    got = ops.grouped_linear(given(ops, x), stack, offsets.to(ops.device), given(ops, bias), got_rows)
    close_enough(got, want, coarse_sums=ops.device.type == "cuda" and name.startswith("fp8, "))


@pytest.mark.parametrize("name", ["4 bits, zeros", "int8", "int8, rounded with a zero", "fp8, blocks, rounded"])
def test_gated_experts(ops: TritonOps, name: str) -> None:
    layouts = [LAYOUTS[name]() for _ in range(3)]
    stack, tokens = ops.pack_stack(layouts), 20
    x, bias = draw(ops, tokens, stack.shape[1]), draw(ops, 3, N)
    offsets = torch.tensor([0, 0, 7, tokens], dtype=torch.int32)
    want = REFERENCE.grouped_linear(x, REFERENCE.pack_stack(layouts), offsets, bias)
    more = {"experts": Experts(offsets.to(ops.device), None), "activation": "silu"}
    inputs, offset = given(ops, x), given(ops, bias)
    if isinstance(stack, PlanesWeight):
        got = planes.product(inputs, stack, offset, ops._counters, **more)
    elif stack.activation is None:
        got = octets.product(inputs, stack, offset, ops._counters, ops.dtype, **more)
    else:
        q, scale, zero = rounded(inputs, stack.activation)
        got = octets.product(q, stack, offset, ops._counters, ops.dtype, scale, zero, **more)
    close_enough(got, REFERENCE.gate_up_act(want, "silu"), coarse_sums=name.startswith("fp8"))


def test_experts_that_round_inputs_otherwise(float_ops: TritonOps) -> None:
    """They stay narrow; no input is rounded."""
    layouts = [int8(ActivationQuant("int8", scale)) for scale in (0.02, 0.03)]
    stack = float_ops.pack_stack(layouts)
    assert isinstance(stack, OctetsWeight)
    x, offsets = draw(float_ops, 5, K), torch.tensor([0, 2, 5], dtype=torch.int32)
    want = torch.cat([x[:2] @ layouts[0].dequantize().T, x[2:] @ layouts[1].dequantize().T])
    close_enough(float_ops.grouped_linear(given(float_ops, x), stack, offsets.to(float_ops.device)), want)


@pytest.mark.parametrize("other", ["4 bits, zeros", "8 bits, zeros", "fp8"])
def test_experts_of_several_kinds_are_plain(float_ops: TritonOps, other: str) -> None:
    layouts = [LAYOUTS[name]() for name in ("int8", other)]
    stack = float_ops.pack_stack(layouts)
    want = torch.cat([layout.dequantize() for layout in layouts])
    assert stack.nbytes == want.nbytes
    x, offsets = draw(float_ops, 3, K), torch.tensor([0, 1, 3], dtype=torch.int32)
    got = float_ops.grouped_linear(given(float_ops, x), stack, offsets.to(float_ops.device))
    close_enough(got, torch.cat([x[:1] @ want[:N].T, x[1:] @ want[N:].T]))


def test_widths() -> None:
    """Bits of a weight in device memory."""
    ops = TritonOps("cpu", torch.float16)
    bits = {"4 bits, zeros": 4.25, "nf4": 4.5, "mxfp4": 5.0, "6 bits, groups of 16": 8.0, "3 bits, zeros": 3.25}
    for name, wanted in bits.items():
        layout = LAYOUTS[name]()
        assert ops.pack(layout).nbytes * 8 / layout.shape[0] / layout.shape[1] == wanted


@pytest.mark.parametrize("method", ["int4", "nf4", "fp8", "int8"])
def test_model(float_ops: TritonOps, method: str) -> None:
    """A whole model with quantised weights."""
    reference = ReferenceOps()
    reference.device = float_ops.device  # random weights are made there
    want, got = (logits_of(tiny_llama(ops, method), ops) for ops in (reference, float_ops))
    tolerance = 2e-2 if method == "fp8" and float_ops.device.type == "cuda" else 1e-3  # see ``coarse_sums``
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance * float(want.abs().max()))


def tiny_llama(ops: ReferenceOps | TritonOps, method: str) -> Decoder:
    config = _CONFIG | {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu"}
    spec, names = describe(config)
    return DummyLoader(spec, names, ops, method).decoder(1, 64)


def logits_of(decoder: Decoder, ops: ReferenceOps | TritonOps, wanted: torch.Tensor | None = None) -> torch.Tensor:
    """Of a prompt beside a decode."""
    torch.manual_seed(1)
    step, pages = make_step([(9, 9), (20, 1)], 16)
    stores = [new_pages(ops, pages) for _ in decoder.spec.layers]
    for store in stores:
        store.k.zero_()
        store.v.zero_()
    ids = (torch.arange(10) * 7).to(ops.device)
    return decoder.logits(decoder.forward(Step(ids, [moved(step, ops.device)], wanted), stores))


def new_pages(ops: ReferenceOps | TritonOps, pages: int) -> Pages:
    if isinstance(ops, ReferenceOps):
        return ops.new_pages_on(pages, 16, 2, 16, torch.float32, ops.device)
    return ops.new_pages(pages, 16, 2, 16, ops.dtype)


_CONFIG = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 128,
    "vocab_size": 96,
    "tie_word_embeddings": False,
    "rope_theta": 1e4,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64,
}
