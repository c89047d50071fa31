"""Sampling by inverse CDF from a counter-based generator: the definition that every backend follows.

Per row: divide by temperature; keep tokens with ``p >= min_p * max(p)``; of these the ``top_k`` likeliest; of these the
fewest likeliest whose share reaches ``top_p``. A filter keeps all tokens that tie with its last one. Then, with
``u = uniform(seed, position)``, take the first kept token (by id) whose cumulated probability exceeds ``u * total``.
"""

from __future__ import annotations

import torch

from quire.ops.backend import SampleStep
from quire.params import GREEDY_BELOW

_MASK64 = (1 << 64) - 1


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def _shift_right(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical shift of int64 (torch's is arithmetic)."""
    return (x >> bits) & (_MASK64 >> bits)


def _mix(x: torch.Tensor) -> torch.Tensor:
    """The finaliser of splitmix64, on int64 that wraps."""
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def uniform(seed: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """float64 in [0, 1), 52 bits (so that ``u * total < total`` after rounding), of (seed, position) alone."""
    key = _mix(seed + _GOLDEN)
    bits = _mix(key + (position + 1) * _GOLDEN)
    return _shift_right(bits, 12).double() * 2.0**-52


def sample(logits: torch.Tensor, step: SampleStep) -> torch.Tensor:
    """Token ids ``[R] int64``; -1 for a row that holds NaN or whose maximum is not finite."""
    rows, vocab = logits.shape
    if rows == 0:
        return torch.empty(0, dtype=torch.int64, device=logits.device)
    logits = logits.float()
    highest, greedy = logits.max(dim=-1, keepdim=True)  # max propagates NaN, and takes the lowest id of a tie
    broken = ~highest.isfinite()
    greedy = (logits == highest).to(torch.uint8).argmax(dim=-1, keepdim=True)
    drawn = greedy
    random = step.temperature >= GREEDY_BELOW
    if bool(random.any()):
        scaled = (logits - highest) / step.temperature.clamp(min=GREEDY_BELOW)[:, None]
        weights = _filtered(scaled, step, vocab)
        cumulated = weights.cumsum(dim=-1)
        target = uniform(step.seed, step.position)[:, None] * cumulated[:, -1:]
        drawn = (cumulated <= target).sum(dim=-1, keepdim=True).clamp(max=vocab - 1)
    ids = torch.where(random[:, None], drawn, greedy)
    return torch.where(broken, -1, ids)[:, 0]


def _filtered(scaled: torch.Tensor, step: SampleStep, vocab: int) -> torch.Tensor:
    """Unnormalised probabilities ``[R, V]`` float64 with filtered tokens at 0; ``scaled`` has its maximum at 0."""
    weights = scaled.exp().double()
    weights = torch.where(weights < step.min_p[:, None].double(), 0.0, weights)
    if not bool(((step.top_k > 0) | (step.top_p < 1)).any()):
        return weights
    ordered = weights.sort(dim=-1, descending=True).values
    last = torch.where(step.top_k > 0, step.top_k, vocab).clamp(max=vocab).long()[:, None] - 1
    floor = ordered.gather(-1, last)
    ordered = torch.where(ordered < floor, 0.0, ordered)
    before = ordered.cumsum(dim=-1) - ordered
    kept = before < step.top_p[:, None].double() * ordered.sum(dim=-1, keepdim=True)
    fewest = ordered.gather(-1, kept.sum(dim=-1, keepdim=True).clamp(min=1) - 1)
    floor = torch.where(step.top_p[:, None] < 1, torch.maximum(floor, fewest), floor)
    return torch.where(weights < floor, 0.0, weights)
