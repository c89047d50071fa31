"""Sampling without a sort, by the definition of ``ops/reference/sampling.py``.

``_chunk_statistics`` reads the logits once, in parallel chunks: maximum, its id, and the sum of the weights. Then one
program a row draws: it finds the chunk in which ``u * total`` falls and reads only that again. A row with filters is
walked a few times more: a filter keeps the weights from some value on, and that value is found by bisection.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from quire.ops.backend import SampleStep
from quire.params import GREEDY_BELOW as _GREEDY_BELOW

GREEDY_BELOW = tl.constexpr(_GREEDY_BELOW)
_ONE = tl.constexpr(0x3F800000)  # the bits of 1.0, the greatest weight
_CHUNK = 4096
_ROW_CHUNK = 8192
_CANDIDATES = 4096


@triton.jit
def _mix(x):
    """The finaliser of splitmix64."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def _uniform(seed, position):
    """float64 in [0, 1) of (seed, position) alone, as ``reference.sampling.uniform``."""
    golden = tl.full([], 0x9E3779B97F4A7C15, tl.uint64)
    key = _mix(seed.to(tl.uint64) + golden)
    bits = _mix(key + (position.to(tl.uint64) + 1) * golden)
    return (bits >> 12).to(tl.int64).to(tl.float64) * 2.220446049250313e-16


@triton.jit(do_not_specialize=["vocab", "chunks"])
def _chunk_statistics(
    logits_ptr, temperature_ptr, maxima_ptr, ids_ptr, sums_ptr, row_stride, vocab, chunks, CHUNK: tl.constexpr
):
    row = tl.program_id(1).to(tl.int64)
    chunk = tl.program_id(0)
    at = chunk * CHUNK + tl.arange(0, CHUNK)
    x = tl.load(logits_ptr + row * row_stride + at, mask=at < vocab, other=float("-inf")).to(tl.float32)
    x = tl.where(x != x, float("inf"), x)  # an infinite maximum tells that a row has no distribution
    highest = tl.max(x, 0)
    place = row * chunks + chunk
    tl.store(maxima_ptr + place, highest)
    tl.store(ids_ptr + place, tl.min(tl.where(x == highest, at, vocab), 0))
    temperature = tl.load(temperature_ptr + row)
    if temperature >= GREEDY_BELOW:
        base = tl.where(highest == float("-inf"), 0.0, highest)
        tl.store(sums_ptr + place, tl.sum(tl.exp((x - base) / temperature).to(tl.float64), 0))


@triton.jit
def _weights(row_ptr, at, vocab, highest, temperature, floor):
    """Unnormalised probabilities of tokens ``at``, the greatest of the row 1; those below ``floor`` are 0."""
    x = tl.load(row_ptr + at, mask=at < vocab, other=float("-inf")).to(tl.float32)
    w = tl.exp((x - highest) / temperature)
    return tl.where(w < floor, 0.0, w)


@triton.jit
def _above(row_ptr, vocab, highest, temperature, floor, pivot, CHUNK: tl.constexpr):
    """How many weights, and how much in sum, lie at or above ``pivot`` (and ``floor``)."""
    count = tl.zeros([CHUNK], tl.int32)
    mass = tl.zeros([CHUNK], tl.float64)
    for start in tl.range(0, vocab, CHUNK):
        w = _weights(row_ptr, start + tl.arange(0, CHUNK), vocab, highest, temperature, floor)
        count += (w >= pivot).to(tl.int32)
        mass += tl.where(w >= pivot, w, 0.0).to(tl.float64)
    return tl.sum(count, 0), tl.sum(mass, 0)


@triton.jit
def _threshold(
    row_ptr,
    scratch_ptr,
    vocab,
    highest,
    temperature,
    floor,
    wanted,
    BY_SUM: tl.constexpr,
    CHUNK: tl.constexpr,
    CANDIDATES: tl.constexpr,
):
    """The greatest weight v such that the weights from v on number (or sum to) at least ``wanted``.

    Bisection over the bits of v. Once few weights lie in question they are set apart and held in registers.
    """
    low = tl.full([], 0, tl.int32)  # bits of floats that are not negative are in their order
    high = tl.full([], _ONE + 1, tl.int32)
    count_low = vocab
    count_high = vocab * 0
    mass_high = tl.full([], 0.0, tl.float64)
    while (high - low > 1) & (count_low - count_high > CANDIDATES):
        middle = (low + high) // 2
        count, mass = _above(row_ptr, vocab, highest, temperature, floor, middle.to(tl.float32, bitcast=True), CHUNK)
        if (mass if BY_SUM else count.to(tl.float64)) >= wanted:
            low = middle
            count_low = count
        else:
            high = middle
            count_high = count
            mass_high = mass
    if high - low > 1:
        taken = vocab * 0
        from_weight = low.to(tl.float32, bitcast=True)
        to_weight = high.to(tl.float32, bitcast=True)
        for start in tl.range(0, vocab, CHUNK):
            at = start + tl.arange(0, CHUNK)
            w = _weights(row_ptr, at, vocab, highest, temperature, floor)
            open = (w >= from_weight) & (w < to_weight) & (at < vocab)
            tl.store(scratch_ptr + taken + tl.cumsum(open.to(tl.int32), 0) - 1, w, mask=open)
            taken += tl.sum(open.to(tl.int32), 0)
        tl.debug_barrier()
        index = tl.arange(0, CANDIDATES)
        w = tl.load(scratch_ptr + index, mask=index < taken, other=-1.0)
        while high - low > 1:
            middle = (low + high) // 2
            kept = w >= middle.to(tl.float32, bitcast=True)
            if BY_SUM:
                reached = mass_high + tl.sum(tl.where(kept, w, 0.0).to(tl.float64), 0)
            else:
                reached = (count_high + tl.sum(kept.to(tl.int32), 0)).to(tl.float64)
            if reached >= wanted:
                low = middle
            else:
                high = middle
    return low.to(tl.float32, bitcast=True)


@triton.jit
def _pick(row_ptr, start, vocab, highest, temperature, floor, before, target, CHUNK: tl.constexpr):
    """The first token of a chunk whose cumulated weight exceeds ``target``."""
    at = start + tl.arange(0, CHUNK)
    w = _weights(row_ptr, at, vocab, highest, temperature, floor).to(tl.float64)
    beyond = (before + tl.cumsum(w, 0) > target) & (w > 0)
    found = tl.min(tl.where(beyond, at, vocab), 0)
    last = tl.max(tl.where(w > 0, at, 0), 0)  # rounding may leave the target just beyond the last one
    return tl.minimum(found, last)


@triton.jit(do_not_specialize=["vocab", "chunks"])
def _draw(
    logits_ptr,
    maxima_ptr,
    ids_ptr,
    sums_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    seed_ptr,
    position_ptr,
    scratch_ptr,
    out_ptr,
    row_stride,
    vocab,
    chunks,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    ROW_CHUNK: tl.constexpr,
    CANDIDATES: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    index = tl.arange(0, CHUNKS)
    here = index < chunks
    maxima = tl.load(maxima_ptr + row * chunks + index, mask=here, other=float("-inf"))
    highest = tl.max(maxima, 0)
    if (highest == float("inf")) | (highest == float("-inf")):
        tl.store(out_ptr + row, -1)
        return
    temperature = tl.load(temperature_ptr + row)
    if temperature < GREEDY_BELOW:
        ids = tl.load(ids_ptr + row * chunks + index, mask=here, other=vocab)
        tl.store(out_ptr + row, tl.min(tl.where(maxima == highest, ids, vocab), 0).to(tl.int64))
        return
    row_ptr = logits_ptr + row * row_stride
    u = _uniform(tl.load(seed_ptr + row), tl.load(position_ptr + row))
    top_k = tl.load(top_k_ptr + row)
    top_p = tl.load(top_p_ptr + row)
    floor = tl.load(min_p_ptr + row)
    sums = tl.load(sums_ptr + row * chunks + index, mask=here, other=0.0)
    if (floor > 0) | (top_k > 0) | (top_p < 1):
        scratch = scratch_ptr + row * CANDIDATES
        if top_k > 0:
            wanted = top_k.to(tl.float64)
            kth = _threshold(row_ptr, scratch, vocab, highest, temperature, floor, wanted, False, ROW_CHUNK, CANDIDATES)
            floor = tl.maximum(floor, kth)
        if top_p < 1:
            mass = _above(row_ptr, vocab, highest, temperature, floor, 0.0, ROW_CHUNK)[1] * top_p.to(tl.float64)
            least = _threshold(row_ptr, scratch, vocab, highest, temperature, floor, mass, True, ROW_CHUNK, CANDIDATES)
            floor = tl.maximum(floor, least)
        sums = tl.zeros([CHUNKS], tl.float64)
        for chunk in tl.range(0, chunks):
            w = _weights(row_ptr, chunk * CHUNK + tl.arange(0, CHUNK), vocab, highest, temperature, floor)
            sums = tl.where(index == chunk, tl.sum(w.to(tl.float64), 0), sums)
    else:
        sums *= tl.exp(((maxima - highest) / temperature).to(tl.float64))
    cumulated = tl.cumsum(sums, 0)
    total = tl.sum(tl.where(index == CHUNKS - 1, cumulated, 0.0), 0)
    target = u * total
    chunk = tl.min(tl.where((cumulated > target) & (sums > 0), index, CHUNKS), 0)
    before = tl.sum(tl.where(index == chunk, cumulated - sums, 0.0), 0)
    token = _pick(row_ptr, chunk * CHUNK, vocab, highest, temperature, floor, before, target, CHUNK)
    tl.store(out_ptr + row, token.to(tl.int64))


def sample(logits: torch.Tensor, step: SampleStep) -> torch.Tensor:
    """Token ids ``[R] int64`` of ``logits [R, V]`` in any float type; -1 for a row that is not all numbers."""
    rows, vocab = logits.shape
    out = torch.empty(rows, dtype=torch.int64, device=logits.device)
    if rows == 0:
        return out
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    chunks = triton.cdiv(vocab, _CHUNK)
    maxima = torch.empty(rows, chunks, dtype=torch.float32, device=logits.device)
    ids = torch.empty(rows, chunks, dtype=torch.int32, device=logits.device)
    sums = torch.empty(rows, chunks, dtype=torch.float64, device=logits.device)
    scratch = torch.empty(rows, _CANDIDATES, dtype=torch.float32, device=logits.device)
    _chunk_statistics[(chunks, rows)](
        logits, step.temperature, maxima, ids, sums, logits.stride(0), vocab, chunks, CHUNK=_CHUNK, num_warps=8
    )
    _draw[(rows,)](
        logits,
        maxima,
        ids,
        sums,
        step.temperature,
        step.top_k,
        step.top_p,
        step.min_p,
        step.seed,
        step.position,
        scratch,
        out,
        logits.stride(0),
        vocab,
        chunks,
        CHUNK=_CHUNK,
        CHUNKS=triton.next_power_of_2(chunks),
        ROW_CHUNK=_ROW_CHUNK,
        CANDIDATES=_CANDIDATES,
        num_warps=32,
    )
    return out
