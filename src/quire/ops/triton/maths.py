"""Functions of numbers that Triton's language lacks."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tanh(x):
    """Without overflow at either end; the quotient is at most 2e-7 off."""
    e = tl.exp(-2.0 * tl.abs(x))
    y = (1.0 - e) / (1.0 + e)
    return tl.where(x < 0, -y, y)
