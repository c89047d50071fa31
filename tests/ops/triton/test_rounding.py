"""Norms that round their results themselves, against a norm and then a rounding: bit for bit the same."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from quire.ops.layouts import Dense, Fp8, Int8Channel, Layout
from quire.ops.reference.rounding import rounded as reference_rounded
from quire.ops.shapes import ActivationQuant
from quire.ops.triton import TritonOps, norm, quantised, rounding
from quire.ops.triton.rounding import RoundedInput, rounded
from tests.ops.triton.harness import draw, given
from tests.ops.triton.test_quantised import logits_of, tiny_llama

ROUNDINGS = {
    "fp8": ActivationQuant("fp8"),
    "fp8, fixed": ActivationQuant("fp8", 0.01),
    "int8": ActivationQuant("int8"),
    "int8 with a zero": ActivationQuant("int8", symmetric=False),
    "int8, fixed": ActivationQuant("int8", 0.03, 7),
}


@pytest.fixture
def ops(ops: TritonOps) -> TritonOps:
    if ops.device.type == "cuda" and ops.dtype is torch.float32:
        pytest.skip("the compiler fuses other squares with their sum: a norm may differ in its last bit")
    return ops


@pytest.mark.parametrize("how", ROUNDINGS.values(), ids=ROUNDINGS.keys())
@pytest.mark.parametrize("width", [20, 1025, 4096])
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("centred", [False, True])
def test_norm(ops: TritonOps, how: ActivationQuant, width: int, rows: int, residual: bool, centred: bool) -> None:
    x = given(ops, draw(ops, rows, width) * 3 + 0.5)
    before = given(ops, draw(ops, rows, width)) if residual else None
    weight, bias = (torch.randn(2, width) * 2).to(ops.device)
    weights = (weight, bias if centred else None)
    plain, want_sum = norm.norm(x, *weights, 1e-5, None if before is None else before.clone(), centred)
    got, got_sum = norm.norm(x, *weights, 1e-5, before, centred, how)
    assert isinstance(got, RoundedInput)
    assert got.source is ops.dtype
    same(got_sum, want_sum)
    for part, want in zip(got.rounded, rounded(plain, how), strict=True):
        same(part, want)


@pytest.mark.parametrize("how", ROUNDINGS.values(), ids=ROUNDINGS.keys())
@pytest.mark.parametrize(("rows", "width"), [(1, 20), (3, 300), (1, 4096), (33, 5000), (34, 5000), (1, 14336)])
def test_as_the_reference(ops: TritonOps, how: ActivationQuant, rows: int, width: int) -> None:
    """By one program for a row, or several."""
    x = given(ops, draw(ops, rows, width) * 10.0 ** torch.randint(-4, 5, (rows, 1)))
    q, scale, zero = (part.cpu() for part in rounded(x, how))
    want = reference_rounded(x.float().cpu(), how)  # on a GPU, torch divides by a number inexactly
    torch.testing.assert_close((q.float() - zero) * scale, want, rtol=1e-6, atol=0)


def same(got: torch.Tensor, want: torch.Tensor) -> None:
    assert (got.dtype, got.shape) == (want.dtype, want.shape)
    assert torch.equal(got.view(torch.uint8), want.view(torch.uint8))


def fp8(how: ActivationQuant | None) -> Fp8:
    return Fp8(torch.randn(96, 512).to(torch.float8_e4m3fn), torch.rand(96, 1) * 0.1, (1, 512), how)


def int8(how: ActivationQuant | None) -> Int8Channel:
    return Int8Channel(torch.randint(-127, 128, (96, 512)).to(torch.int8), torch.rand(96) * 1e-3, how)


@pytest.mark.parametrize("name", ROUNDINGS)
@pytest.mark.parametrize("rows", [0, 1, 40, 300])
def test_products(ops: TritonOps, name: str, rows: int) -> None:
    """Of what a norm leaves for them: those of its plain result."""
    packed = ops.pack((fp8 if name.startswith("fp8") else int8)(ROUNDINGS[name]))
    x, weight, bias = given(ops, draw(ops, rows, 512)), torch.randn(512).to(ops.device), given(ops, draw(ops, 96))
    plain, left = (ops.rms_norm(x, weight, 1e-5, reader=reader)[0] for reader in (None, packed))
    assert isinstance(left, RoundedInput)
    assert left.shape == plain.shape
    same(ops.linear(left, packed, bias), ops.linear(plain, packed, bias))
    same(ops.gated_linear(left, packed, bias, "silu"), ops.gated_linear(plain, packed, bias, "silu"))


@pytest.mark.parametrize("layout", [Dense(torch.ones(8, 512)), fp8(None), fp8(ActivationQuant("fp8", group=128))])
def test_plain_for_others(ops: TritonOps, layout: Layout) -> None:
    """Inputs stay plain that nothing rounds, or that have a scale for each group."""
    x, weight = given(ops, draw(ops, 2, 512)), torch.ones(512, device=ops.device)
    assert ops.rms_norm(x, weight, 1e-5, reader=ops.pack(layout))[0].dtype is ops.dtype


@pytest.fixture
def roundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The widths of all inputs that a kernel of its own rounds."""
    widths: list[int] = []

    def counted(x: torch.Tensor, how: ActivationQuant) -> rounding.Rounded:
        widths.append(x.shape[1])
        return rounded(x, how)

    monkeypatch.setattr(quantised, "rounded", counted)
    return widths


@pytest.mark.parametrize("last", [False, True])
def test_model(ops: TritonOps, roundings: list[int], monkeypatch: pytest.MonkeyPatch, last: bool) -> None:
    """A layer rounds for its output and down projections alone, and computes what it does with all roundings apart."""
    decoder = tiny_llama(ops, "fp8")
    wanted = torch.tensor([8, 9], device=ops.device) if last else None
    got = logits_of(decoder, ops, wanted)
    assert roundings == [64, 128] * 2
    roundings.clear()
    monkeypatch.setattr(quantised, "rounding_of", lambda weight: None)
    want = logits_of(decoder, ops, wanted)
    assert roundings == [64, 64, 64, 128] * 2
    same(got, want)
