"""What the kernels of quantised products share: tiles, experts, weights that come ahead."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from quire.ops.triton.elementwise import gate_up
from quire.ops.triton.search import owner_of


@dataclass(frozen=True)
class Tiles:
    block_m: int
    block_n: int
    splits: int  # of the inputs
    warps: int
    stages: int
    block_k: int = 128  # of octets


@dataclass(frozen=True)
class Experts:
    """Rows ``offsets[e]`` to ``offsets[e + 1]`` go to matrix e of a stack; ``rows``: which tokens they are."""

    offsets: torch.Tensor
    rows: torch.Tensor | None


@triton.jit
def outputs_of(block, N, BLOCK_N: tl.constexpr, GATED: tl.constexpr):
    """The outputs of a block, and whether they exist. ``GATED``: half of them gates, the rest what these gate."""
    i = tl.arange(0, BLOCK_N)
    if GATED:
        first = block * (BLOCK_N // 2) + i % (BLOCK_N // 2)
        return first + i // (BLOCK_N // 2) * (N // 2), first < N // 2
    n = block * BLOCK_N + i
    return n, n < N


@triton.jit
def expert_rows(tile, offsets_ptr, experts, BLOCK_M: tl.constexpr):
    """The expert whose rows a tile has, the first of these and the end of the expert's: none where first >= end.

    Expert e owns the tiles from ``offsets[e] // BLOCK_M + e``: how many rows it has is known on the device alone.
    """
    expert = owner_of(tile, offsets_ptr, experts, BLOCK_M)
    first = tl.load(offsets_ptr + expert)
    end = tl.load(offsets_ptr + expert + 1)
    return expert, first + (tile - first // BLOCK_M - expert) * BLOCK_M, end


@triton.jit
def gate_block(acc, ACTIVATION: tl.constexpr):
    """The gated half [BLOCK_N // 2, BLOCK_M] of a block [BLOCK_N, BLOCK_M] of outputs."""
    halves = acc.reshape(2, acc.shape[0] // 2, acc.shape[1])
    gate, up = tl.split(tl.permute(halves, (1, 2, 0)))
    return gate_up(gate, up, ACTIVATION)


@triton.jit
def prefetch(pointers):
    """Brings the cache lines to the L2, without waiting for them."""
    code: tl.constexpr = "prefetch.global.L2 [$1]; mov.u32 $0, 0;"
    tl.inline_asm_elementwise(code, "=r,l", [pointers.to(tl.int64)], tl.int32, False, 1)


def splits_for(programs: int, blocks: int, most: int, most_splits: int = 8) -> int:
    """Parts of the inputs, by powers of two: so many that there are at most ``most`` programs."""
    splits = 1
    while splits * 2 * programs <= most and splits * 2 <= min(most_splits, blocks):
        splits *= 2
    return splits
