"""How many words and groups the integers of a layer take."""

from __future__ import annotations


def packed_words(count: int, bits: int) -> int:
    """32-bit words that hold ``count`` integers."""
    return -(-count * bits // 32)


def group_count(inputs: int, size: int) -> int:
    """Groups of ``size`` inputs; -1: one for all."""
    return 1 if size == -1 else -(-inputs // size)
