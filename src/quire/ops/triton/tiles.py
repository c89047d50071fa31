"""What the kernels of products share: tiles, experts, weights that come ahead, sums over shares of the inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from quire.ops.triton.elementwise import gate_up
from quire.ops.triton.launch import dependent_launch
from quire.ops.triton.search import owner_of

_DESCRIBED_ROWS = 64  # of a tile, from which on inputs come faster by a tensor descriptor than by threads' copies


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


def inputs_of(
    x: torch.Tensor, block_m: int, block_k: int, gather: bool
) -> tuple[torch.Tensor | TensorDescriptor, bool]:
    """What a kernel loads blocks of ``x [T, K]`` from, ``x`` or a descriptor of it, and whether that is one."""
    copied = block_m >= _DESCRIBED_ROWS and not gather and x.shape[1] * x.itemsize % 16 == 0
    if copied and (not x.is_cuda or dependent_launch()):  # GPUs before Hopper have no such copies
        return TensorDescriptor.from_tensor(x, [block_m, block_k]), True
    return x, False


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
def first_row(tile, rows, BLOCK_M: tl.constexpr, DESCRIBED: tl.constexpr):
    """Of a tile. By a descriptor the last of several tiles begins early enough to be full, and does rows of the one
    before again: rows beyond a tensor take long to come (H100, 8-bit floats: 8.0 ms a step of 160 rows, 6.4 of 256)."""
    return tl.minimum(tile * BLOCK_M, tl.maximum(rows - BLOCK_M, 0)) if DESCRIBED else tile * BLOCK_M


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
def sources_of(row, here, rows_ptr, GATHER: tl.constexpr):
    """Which row of the inputs each ``row`` is: that of its token, where tokens are gathered."""
    return tl.load(rows_ptr + row, mask=here, other=0) if GATHER else row


@triton.jit
def spread(groups, WIDTH: tl.constexpr):
    """``groups [N, G]``, each as many times in a row as makes ``[N, WIDTH]``."""
    shape: tl.constexpr = (groups.shape[0], groups.shape[1], WIDTH // groups.shape[1])
    return tl.broadcast_to(groups[:, :, None], shape).reshape(groups.shape[0], WIDTH)


@triton.jit
def gate_block(acc, ACTIVATION: tl.constexpr):
    """The gated half [BLOCK_N // 2, BLOCK_M] of a block [BLOCK_N, BLOCK_M] of outputs."""
    halves = acc.reshape(2, acc.shape[0] // 2, acc.shape[1])
    gate, up = tl.split(tl.permute(halves, (1, 2, 0)))
    return gate_up(gate, up, ACTIVATION)


@triton.jit
def settled(acc):
    """The sums, when the product is done. Triton 3.6 lets it run on while registers of its left operand are written
    anew (H100: tiles of 64 x 128 and 8 warps gave garbage); a use of the sums makes it wait."""
    return tl.inline_asm_elementwise("", "=r,0", [acc], tl.float32, False, 1)


@triton.jit
def leave_part(part, partial_ptr, cell, mask, size, split, sign_ptr):
    """Stores a tile's sums over a share of the inputs; returns how many of the tile's shares were there before it.

    ``size``: numbers of a share, those of all tiles; ``cell``: where the tile's lie among them. ``sign_ptr``: the
    tile's counter.
    """
    tl.store(partial_ptr + split * size + cell, part.to(tl.float32), mask=mask)
    tl.debug_barrier()  # all of the program's stores come before its sign
    return tl.atomic_add(sign_ptr, 1, sem="acq_rel")


@triton.jit
def sum_parts(partial_ptr, cell, mask, size, splits, sign_ptr):
    """The sums over all inputs, for the program that came last; its counter is zero again."""
    tl.store(sign_ptr, 0)
    total = tl.zeros(mask.shape, tl.float32)
    for split in tl.range(splits):  # in order: the sum does not depend on which program came last
        total += tl.load(partial_ptr + split * size + cell, mask=mask, other=0.0)
    return total


@triton.jit
def store_outputs(total, out_ptr, block, row, here, N, BLOCK_N: tl.constexpr, ACTIVATION: tl.constexpr):
    """Stores a block's outputs ``[BLOCK_N, BLOCK_M]`` for each ``row``, gated where there is an activation."""
    if ACTIVATION != "":
        total = gate_block(total, ACTIVATION)
        N = N // 2
        n, real = outputs_of(block, N, BLOCK_N // 2, False)
    else:
        n, real = outputs_of(block, N, BLOCK_N, False)
    out = out_ptr + row.to(tl.int64)[None, :] * N + n[:, None]
    tl.store(out, total.to(out_ptr.dtype.element_ty), mask=here[None, :] & real[:, None])


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
