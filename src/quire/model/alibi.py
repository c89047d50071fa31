"""Attention with linear biases (Press et al., 2022, arXiv:2108.12409): the slope of each head."""

from __future__ import annotations

import math


def alibi_slopes(heads: int, max_bias: float = 8.0) -> tuple[float, ...]:
    """``2 ** (-max_bias * i / n)`` for i from 1 on, where n is a power of two.

    Between powers of two, as the paper's code has it, the slopes of the lower one are followed by every second one of
    the higher.
    """
    lower = 1 << (heads.bit_length() - 1)
    slopes = _geometric(lower, max_bias)
    return slopes + _geometric(2 * lower, max_bias)[::2][: heads - lower]


def mpt_slopes(heads: int, max_bias: float) -> tuple[float, ...]:
    """MPT's order for other numbers than powers of two: every second slope of the higher one, then the others."""
    higher = 1 << math.ceil(math.log2(heads))
    slopes = _geometric(higher, max_bias)
    return slopes if higher == heads else (slopes[1::2] + slopes[::2])[:heads]


def _geometric(count: int, max_bias: float) -> tuple[float, ...]:
    return tuple(2.0 ** (-max_bias * i / count) for i in range(1, count + 1))
