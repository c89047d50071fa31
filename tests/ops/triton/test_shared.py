"""Decode attention over pages that sequences share gives what it gives when each reads them for itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from quire.ops.backend import SHARED_ROWS
from quire.ops.triton import TritonOps
from tests.ops.triton.harness import REFERENCE, close, draw, given, make_pages, make_step, moved

CONTEXTS = [129 + 7 * i for i in range(SHARED_ROWS)] + [300, 257, 290, 700]
SHARED = [128, 256]


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim", "softcap"), [(4, 2, 16, None), (3, 1, 24, 5.0)])
@pytest.mark.parametrize("page_size", [16, 128])
def test_shared_pages(
    ops: TritonOps, heads: int, kv_heads: int, head_dim: int, softcap: float | None, page_size: int
) -> None:
    step, total = make_step([(length, 1) for length in CONTEXTS], page_size)
    for block, tokens in enumerate(SHARED):
        rows = slice(block * SHARED_ROWS, (block + 1) * SHARED_ROWS)
        step.block_table[rows, : tokens // page_size] = step.block_table[rows.start, : tokens // page_size]
    want_pages, got_pages = make_pages(ops, step, total, kv_heads, head_dim, ops.dtype)
    q, sinks = draw(ops, len(CONTEXTS), heads * head_dim), torch.randn(heads)
    shape = (heads, kv_heads, head_dim, head_dim**-0.5, None, softcap)
    want = REFERENCE.attention(q, want_pages, step, *shape, sinks)
    shared = replace(moved(step, ops.device), shared=torch.tensor(SHARED, dtype=torch.int32, device=ops.device))
    for given_step in (shared, replace(shared, shared=torch.zeros_like(shared.shared))):
        got = ops.attention(given(ops, q), got_pages, given_step, *shape, sinks.to(ops.device))
        close(got, want)


def test_padding_shares_nothing(float_ops: TritonOps) -> None:
    step, total = make_step([(200, 1), (210, 1)], 16)
    step.block_table[1, :8] = step.block_table[0, :8]
    want_pages, got_pages = make_pages(float_ops, step, total, 1, 16, torch.float32)
    q = draw(float_ops, 4, 32)
    want = REFERENCE.attention(q[:2], want_pages, step, 2, 1, 16, 0.25, None, None)
    padded = replace(
        step,
        context_len=torch.cat([step.context_len, torch.zeros(2, dtype=torch.int32)]),
        block_table=torch.cat([step.block_table, torch.zeros_like(step.block_table)]),
        shared=torch.tensor([128], dtype=torch.int32),
    )
    moved_step = replace(moved(padded, float_ops.device), shared=padded.shared.to(float_ops.device))
    got = float_ops.attention(given(float_ops, q), got_pages, moved_step, 2, 1, 16, 0.25, None, None)
    close(got[:2], want)
