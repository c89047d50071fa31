"""Tiles of ragged rows: which sequence, or expert, a tile of the grid belongs to."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def owner_of(tile, starts_ptr, count, BLOCK: tl.constexpr):
    """The last of ``count`` owners whose first tile, ``starts[i] // BLOCK + i``, is not beyond ``tile``."""
    low = 0
    high = count
    while high - low > 1:
        middle = (low + high) // 2
        if tl.load(starts_ptr + middle) // BLOCK + middle <= tile:
            low = middle
        else:
            high = middle
    return low
