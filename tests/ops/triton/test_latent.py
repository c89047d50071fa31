"""Latent attention: one key for all heads, of which the value is a part, kept once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from quire.ops.backend import Singles
from quire.ops.triton import TritonOps
from quire.ops.triton.pages import TritonPages

from .harness import REFERENCE, close, draw, given, make_step, moved

PREFILL = [(20, 20), (9, 2), (40, 7)]
DECODE = [(150, 1), (1, 1), (17, 1)]
MIXED = [(140, 1), (3, 1), (20, 5), (18, 18)]


@pytest.mark.parametrize("sequences", [PREFILL, DECODE, MIXED], ids=["prefill", "decode", "mixed"])
@pytest.mark.parametrize(("heads", "rotary", "rank", "fp8"), [(3, 8, 24, False), (20, 16, 32, False), (3, 8, 24, True)])
def test_latent_attention(
    ops: TritonOps, sequences: list[tuple[int, int]], heads: int, rotary: int, rank: int, fp8: bool
) -> None:
    """Stored and attended to as the reference does with keys and values apart; single queries may come first."""
    step, total = make_step(sequences, 16)
    width, dtype = rotary + rank, torch.float8_e4m3fn if fp8 else ops.dtype
    want_pages = REFERENCE.new_pages(total, 16, 1, width, torch.float32, rotary)
    got_pages = ops.new_pages(total, 16, 1, width, dtype, rotary)
    assert got_pages.v.data_ptr() == got_pages.k.data_ptr()
    shape = (heads, 1, width)
    angles = torch.rand(400, rotary // 2)
    cos_sin = torch.cat([angles.cos(), angles.sin()], dim=1)
    here = moved(step, ops.device)
    for s, (length, count) in enumerate(sequences):
        _fill(ops, want_pages, got_pages, step, s, length - count, width, cos_sin, shape)
    latent = draw(ops, len(step.positions), width)
    qkv = torch.cat([draw(ops, len(step.positions), heads * width), latent, latent], dim=1)
    if sequences is MIXED:
        context_len, query_start = torch.tensor([140, 3, 0, 0]), torch.tensor([2, 2, 2, 7, 25])
        singles = Singles(context_len.int().to(ops.device), query_start.int().to(ops.device), others=2)
        here = replace(here, singles=singles)
    norms = (None, None, 0.0)
    q = REFERENCE.qk_norm_rope_store(qkv, *shape, *norms, cos_sin, True, want_pages, step)
    mine = ops.qk_norm_rope_store(given(ops, qkv), *shape, *norms, cos_sin.to(ops.device), True, got_pages, here)
    if isinstance(got_pages, TritonPages) and fp8:  # how exact the store is, test_attention says
        stored = got_pages.k.float() * got_pages.k_scale.transpose(1, 2)[..., None]
        want_pages.k.copy_(stored)
        want_pages.v.copy_(stored)
    want = REFERENCE.attention(q, want_pages, step, *shape, width**-0.5, None, None)
    got = ops.attention(mine, got_pages, here, *shape, width**-0.5, None, None)
    got, want = (y.view(-1, heads, width)[..., rotary:] for y in (got, want))
    close(got, want, 200.0 if fp8 and ops.dtype is torch.float32 else 2.0)  # fp8 is multiplied in float16


def _fill(ops, want_pages, got_pages, step, s, length, width, cos_sin, shape) -> None:  # type: ignore[no-untyped-def]
    """Earlier tokens of sequence ``s``, stored by each backend."""
    if not length:
        return
    place = torch.arange(length)
    slots = step.block_table[s, place // 16].long() * 16 + place % 16
    earlier = replace(step, positions=place.int(), slots=slots)
    latent = draw(ops, length, width)
    qkv = torch.cat([torch.zeros(length, shape[0] * width), latent, latent], dim=1)
    norms = (None, None, 0.0)
    REFERENCE.qk_norm_rope_store(qkv, *shape, *norms, cos_sin, True, want_pages, earlier)
    ops.qk_norm_rope_store(
        given(ops, qkv), *shape, *norms, cos_sin.to(ops.device), True, got_pages, moved(earlier, ops.device)
    )
