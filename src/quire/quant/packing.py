"""Integers out of 32-bit words."""

from __future__ import annotations

import torch

_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # where each of 8 neighbours lies in a word, as a multiple of 4 bits


def unpack_bits(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """The first ``count`` integers of ``bits`` bits in each row of ``words [R, W] int32``: ``[R, count] uint8``.

    A row is one stream of bits, lowest first: integer i begins at bit ``i * bits`` and may cross words.
    """
    if 8 % bits == 0:
        octets = words.contiguous().view(torch.uint8)
        shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
        return (octets[..., None] >> shifts).bitwise_and_((1 << bits) - 1).flatten(1)[:, :count]
    rows, periods = words.shape[0], -(-words.shape[1] // bits)  # 32 integers fill ``bits`` words
    padded = torch.zeros(rows, periods * bits + 1, dtype=torch.int64)
    padded[:, :-1][:, : words.shape[1]] = words.long() & 0xFFFFFFFF
    out = torch.empty(rows, periods, 32, dtype=torch.uint8)
    for i in range(32):
        word, shift = divmod(i * bits, 32)
        low = padded[:, word : word + periods * bits : bits]
        high = padded[:, word + 1 : word + 1 + periods * bits : bits]
        out[:, :, i] = ((low | high << 32) >> shift) & ((1 << bits) - 1)
    return out.flatten(1)[:, :count]


def unpack_awq(words: torch.Tensor) -> torch.Tensor:
    """AWQ's 4-bit integers: ``[R, W] int32`` -> ``[R, 8 * W] uint8``."""
    nibbles = unpack_bits(words, 4, words.shape[1] * 8).view(*words.shape, 8)
    return nibbles[:, :, list(_AWQ_ORDER)].flatten(1)
