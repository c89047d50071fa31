"""Random inputs for a Triton backend and the same, exactly, for the reference."""

from __future__ import annotations

from dataclasses import replace

import torch

from quire.ops.backend import AttentionStep, Ops, Pages
from quire.ops.reference import ReferenceOps

REFERENCE = ReferenceOps()
TOLERANCE = {torch.float32: 2e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}


def close(got: torch.Tensor, want: torch.Tensor, scale: float = 1.0) -> None:
    tolerance = scale * TOLERANCE.get(got.dtype, 2e-5)
    torch.testing.assert_close(got.float().cpu(), want.float(), rtol=tolerance, atol=tolerance)


def draw(ops: Ops, *shape: int) -> torch.Tensor:
    """Normal numbers on the CPU that the backend's dtype holds exactly."""
    return torch.randn(*shape).to(ops.dtype).float()


def given(ops: Ops, x: torch.Tensor | None) -> torch.Tensor | None:
    """``x`` as activations of the backend."""
    return None if x is None else x.to(ops.device, ops.dtype)


def moved(step: AttentionStep, device: torch.device) -> AttentionStep:
    names = ("positions", "slots", "query_start", "context_len", "block_table")
    return replace(step, **{name: getattr(step, name).to(device) for name in names})


def make_step(sequences: list[tuple[int, int]], page_size: int) -> tuple[AttentionStep, int]:
    """A step of (context length, query count) sequences over scattered pages, and how many pages there are."""
    needed = [-(-length // page_size) for length, _ in sequences]
    total = sum(needed) + 2
    order = torch.randperm(total).int()
    table = torch.zeros(len(sequences), max(needed) + 1, dtype=torch.int32)
    positions, slots, at = [], [], 0
    for s, (length, count) in enumerate(sequences):
        table[s, : needed[s]] = order[at : at + needed[s]]
        at += needed[s]
        place = torch.arange(length - count, length)
        positions.append(place)
        slots.append(table[s, place // page_size].long() * page_size + place % page_size)
    counts = torch.tensor([count for _, count in sequences])
    return AttentionStep(
        positions=torch.cat(positions).int(),
        slots=torch.cat(slots),
        query_start=torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)]).int(),
        context_len=torch.tensor([length for length, _ in sequences], dtype=torch.int32),
        block_table=table,
        page_size=page_size,
        max_query=int(counts.max()),
    ), total


def make_pages(
    ops: Ops, step: AttentionStep, total: int, kv_heads: int, head_dim: int, dtype: torch.dtype
) -> tuple[Pages, Pages]:
    """Reference pages and the backend's with the same numbers.

    What no sequence owns is NaN, but finite in a page in use where FlashAttention-4 may read it.
    """
    rest = float("nan") if dtype is torch.float32 else 1000.0
    want = REFERENCE.new_pages(total, step.page_size, kv_heads, head_dim, torch.float32)
    got = ops.new_pages(total, step.page_size, kv_heads, head_dim, dtype)
    for mine, theirs in ((want.k, got.k), (want.v, got.v)):
        values = torch.randn(mine.shape).to(ops.dtype).float()
        owned = torch.zeros(mine.shape[:2], dtype=torch.bool)
        for s, length in enumerate(step.context_len.tolist()):
            place = torch.arange(length)
            owned[step.block_table[s, place // step.page_size].long(), place % step.page_size] = True
        values[~owned] = rest
        values[~owned.any(dim=1)] = float("nan")
        mine.copy_(values)
        theirs.copy_(values.to(dtype))
    return want, got
