"""Sampling without a sort, by the definition of ``ops/reference/sampling.py``.

Logits are read once, in parallel chunks: maximum, its id, and the sum of the weights. Then one program a row draws: it
finds the chunk in which ``u * total`` falls and reads only that again. Rows with filters take a detour: a filter keeps
the weights from some value on, which is found by bisection (``_filter``), and the chunks are summed again above it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from quire.ops.backend import SampleStep
from quire.ops.triton.launch import inputs_ready, launch
from quire.params import GREEDY_BELOW as _GREEDY_BELOW

GREEDY_BELOW = tl.constexpr(_GREEDY_BELOW)
LOG2E = tl.constexpr(1.4426950408889634)
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


@triton.jit
def _weights(row_ptr, at, vocab, highest, rate, floor):
    """Unnormalised probabilities of tokens ``at``, the greatest of the row 1; those below ``floor`` are 0."""
    x = tl.load(row_ptr + at, mask=at < vocab, other=float("-inf")).to(tl.float32)
    w = tl.exp2((x - highest) * rate)
    return tl.where(w < floor, 0.0, w)


@triton.jit
def _row_max(maxima_ptr, row, chunks, CHUNKS: tl.constexpr):
    index = tl.arange(0, CHUNKS)
    return tl.max(tl.load(maxima_ptr + row * chunks + index, mask=index < chunks, other=float("-inf")), 0)


@triton.jit(do_not_specialize=["chunks"])
def _chunk_statistics(
    logits_ptr,
    temperature_ptr,
    maxima_ptr,
    ids_ptr,
    sums_ptr,
    row_stride,
    vocab,
    chunks,
    CHUNK: tl.constexpr,
    PDL: tl.constexpr,
):
    inputs_ready(PDL)
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
        tl.store(sums_ptr + place, tl.sum(tl.exp2((x - base) * (LOG2E / temperature)).to(tl.float64), 0))


@triton.jit
def _above(row_ptr, vocab, highest, rate, floor, a, b, c, BY_SUM: tl.constexpr, CHUNK: tl.constexpr):
    """How many weights lie at or above each of three pivots, and how much in sum if ``BY_SUM``."""
    counts = tl.zeros([CHUNK], tl.int32)  # ten bits for each pivot: the loop is shorter than that
    mass_a = tl.zeros([CHUNK], tl.float32)
    mass_b = tl.zeros([CHUNK], tl.float32)
    mass_c = tl.zeros([CHUNK], tl.float32)
    for start in tl.range(0, vocab, CHUNK, num_stages=3):
        w = _weights(row_ptr, start + tl.arange(0, CHUNK), vocab, highest, rate, floor)
        counts += tl.where(w >= a, 1, 0) + tl.where(w >= b, 1 << 10, 0) + tl.where(w >= c, 1 << 20, 0)
        if BY_SUM:
            mass_a += tl.where(w >= a, w, 0.0)
            mass_b += tl.where(w >= b, w, 0.0)
            mass_c += tl.where(w >= c, w, 0.0)
    count_a = tl.sum(counts & 1023, 0)
    count_b = tl.sum((counts >> 10) & 1023, 0)
    count_c = tl.sum(counts >> 20, 0)
    if BY_SUM:
        sum_a = tl.sum(mass_a.to(tl.float64), 0)
        sum_b = tl.sum(mass_b.to(tl.float64), 0)
        sum_c = tl.sum(mass_c.to(tl.float64), 0)
    else:
        sum_a = count_a.to(tl.float64)
        sum_b = count_b.to(tl.float64)
        sum_c = count_c.to(tl.float64)
    return count_a, count_b, count_c, sum_a, sum_b, sum_c


@triton.jit
def _as_weight(bits):
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _threshold(
    row_ptr,
    scratch_ptr,
    vocab,
    highest,
    rate,
    floor,
    wanted,
    BY_SUM: tl.constexpr,
    CHUNK: tl.constexpr,
    CANDIDATES: tl.constexpr,
):
    """The greatest weight v such that the weights from v on number (or sum to) at least ``wanted``.

    Bisection over the bits of v, three pivots at a time. Once few weights lie in question they are set apart and held
    in registers.
    """
    low = tl.full([], 0, tl.int32)  # bits of floats that are not negative are in their order
    high = tl.full([], _ONE + 1, tl.int32)
    count_low = vocab
    count_high = vocab * 0
    above_high = tl.full([], 0.0, tl.float64)
    while (high - low > 1) & (count_low - count_high > CANDIDATES):
        step = tl.maximum((high - low) // 4, 1)
        a = low + step
        b = tl.minimum(a + step, high)
        c = tl.minimum(b + step, high)
        count_a, count_b, count_c, sum_a, sum_b, sum_c = _above(
            row_ptr, vocab, highest, rate, floor, _as_weight(a), _as_weight(b), _as_weight(c), BY_SUM, CHUNK
        )
        if sum_c >= wanted:
            low = c
            count_low = count_c
        elif sum_b >= wanted:
            low = b
            count_low = count_b
            high = c
            count_high = count_c
            above_high = sum_c
        elif sum_a >= wanted:
            low = a
            count_low = count_a
            high = b
            count_high = count_b
            above_high = sum_b
        else:
            high = a
            count_high = count_a
            above_high = sum_a
    if high - low > 1:
        taken = vocab * 0
        from_weight = _as_weight(low)
        to_weight = _as_weight(high)
        for start in tl.range(0, vocab, CHUNK, num_stages=3):
            at = start + tl.arange(0, CHUNK)
            w = _weights(row_ptr, at, vocab, highest, rate, floor)
            open = ((w >= from_weight) & (w < to_weight) & (at < vocab)).to(tl.int32)
            found = tl.sum(open, 0)
            if found > 0:
                tl.store(scratch_ptr + taken + tl.cumsum(open, 0) - 1, w, mask=open > 0)
                taken += found
        tl.debug_barrier()
        index = tl.arange(0, CANDIDATES)
        w = tl.load(scratch_ptr + index, mask=index < taken, other=-1.0)
        value = tl.where(w >= 0, w, 0.0).to(tl.float64) if BY_SUM else (w >= 0).to(tl.float64)
        while high - low > 1:
            middle = (low + high) // 2
            if above_high + tl.sum(tl.where(w >= _as_weight(middle), value, 0.0), 0) >= wanted:
                low = middle
            else:
                high = middle
    return _as_weight(low)


@triton.jit(do_not_specialize=["chunks"])
def _filter(
    logits_ptr,
    maxima_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    scratch_ptr,
    floor_ptr,
    row_stride,
    vocab,
    chunks,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    CANDIDATES: tl.constexpr,
    PDL: tl.constexpr,
):
    """The least weight that a row's filters keep: 0 where it has none, or is greedy, or has no distribution."""
    inputs_ready(PDL)
    row = tl.program_id(0).to(tl.int64)
    temperature = tl.load(temperature_ptr + row)
    top_k = tl.load(top_k_ptr + row)
    top_p = tl.load(top_p_ptr + row)
    floor = tl.load(min_p_ptr + row)
    if (temperature < GREEDY_BELOW) | ((floor <= 0) & (top_k <= 0) & (top_p >= 1)):
        tl.store(floor_ptr + row, 0.0)
        return
    highest = _row_max(maxima_ptr, row, chunks, CHUNKS)
    if (highest == float("inf")) | (highest == float("-inf")):
        tl.store(floor_ptr + row, 0.0)
        return
    rate = LOG2E / temperature
    row_ptr = logits_ptr + row * row_stride
    scratch = scratch_ptr + row * CANDIDATES
    if (top_k > 0) & (top_k < vocab):
        kth = _threshold(row_ptr, scratch, vocab, highest, rate, floor, top_k.to(tl.float64), False, CHUNK, CANDIDATES)
        floor = tl.maximum(floor, kth)
    if top_p < 1:
        total = _above(row_ptr, vocab, highest, rate, floor, 0.0, 2.0, 2.0, True, CHUNK)[3]
        least = _threshold(
            row_ptr, scratch, vocab, highest, rate, floor, total * top_p.to(tl.float64), True, CHUNK, CANDIDATES
        )
        floor = tl.maximum(floor, least)
    tl.store(floor_ptr + row, floor)


@triton.jit(do_not_specialize=["chunks"])
def _filtered_sums(
    logits_ptr,
    maxima_ptr,
    sums_ptr,
    temperature_ptr,
    floor_ptr,
    row_stride,
    vocab,
    chunks,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    PDL: tl.constexpr,
):
    inputs_ready(PDL)
    row = tl.program_id(1).to(tl.int64)
    floor = tl.load(floor_ptr + row)
    if floor == 0:
        return
    chunk = tl.program_id(0)
    highest = _row_max(maxima_ptr, row, chunks, CHUNKS)
    at = chunk * CHUNK + tl.arange(0, CHUNK)
    rate = LOG2E / tl.load(temperature_ptr + row)
    w = _weights(logits_ptr + row * row_stride, at, vocab, highest, rate, floor)
    tl.store(sums_ptr + row * chunks + chunk, tl.sum(w.to(tl.float64), 0))


@triton.jit(do_not_specialize=["chunks"])
def _draw(
    logits_ptr,
    maxima_ptr,
    ids_ptr,
    sums_ptr,
    temperature_ptr,
    floor_ptr,
    seed_ptr,
    position_ptr,
    out_ptr,
    row_stride,
    vocab,
    chunks,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    PDL: tl.constexpr,
):
    inputs_ready(PDL)
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
    rate = LOG2E / temperature
    floor = tl.load(floor_ptr + row)
    sums = tl.load(sums_ptr + row * chunks + index, mask=here, other=0.0)
    if floor == 0:
        sums *= tl.exp2(((maxima - highest) * rate).to(tl.float64))
    cumulated = tl.cumsum(sums, 0)
    total = tl.sum(tl.where(index == CHUNKS - 1, cumulated, 0.0), 0)
    target = _uniform(tl.load(seed_ptr + row), tl.load(position_ptr + row)) * total
    chunk = tl.min(tl.where((cumulated > target) & (sums > 0), index, CHUNKS), 0)
    before = tl.sum(tl.where(index == chunk, cumulated - sums, 0.0), 0)
    at = chunk * CHUNK + tl.arange(0, CHUNK)
    w = _weights(logits_ptr + row * row_stride, at, vocab, highest, rate, floor).to(tl.float64)
    beyond = (before + tl.cumsum(w, 0) > target) & (w > 0)
    found = tl.min(tl.where(beyond, at, vocab), 0)
    last = tl.max(tl.where(w > 0, at, 0), 0)  # rounding may leave the target just beyond the last one
    tl.store(out_ptr + row, tl.minimum(found, last).to(tl.int64))


def sample(logits: torch.Tensor, step: SampleStep) -> torch.Tensor:
    """Token ids ``[R] int64`` of ``logits [R, V]`` in any float type; -1 for a row that is not all numbers."""
    rows, vocab = logits.shape
    device = logits.device
    out = torch.empty(rows, dtype=torch.int64, device=device)
    if rows == 0:
        return out
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    chunks = triton.cdiv(vocab, _CHUNK)
    maxima = torch.empty(rows, chunks, dtype=torch.float32, device=device)
    ids = torch.empty(rows, chunks, dtype=torch.int32, device=device)
    sums = torch.empty(rows, chunks, dtype=torch.float64, device=device)
    scratch = torch.empty(rows, _CANDIDATES, dtype=torch.float32, device=device)
    floor = torch.empty(rows, dtype=torch.float32, device=device)
    sizes = (logits.stride(0), vocab, chunks)
    tiles = {"CHUNK": _CHUNK, "CHUNKS": triton.next_power_of_2(chunks), "num_warps": 8}
    parts = (maxima, ids, sums)
    launch(_chunk_statistics, (chunks, rows), logits, step.temperature, *parts, *sizes, CHUNK=_CHUNK, num_warps=8)
    launch(
        _filter,
        (rows,),
        logits,
        maxima,
        step.temperature,
        step.top_k,
        step.top_p,
        step.min_p,
        scratch,
        floor,
        *sizes,
        CHUNK=_ROW_CHUNK,
        CHUNKS=tiles["CHUNKS"],
        CANDIDATES=_CANDIDATES,
        num_warps=32,
    )
    launch(_filtered_sums, (chunks, rows), logits, maxima, sums, step.temperature, floor, *sizes, **tiles)
    drawing = (step.temperature, floor, step.seed, step.position)
    launch(_draw, (rows,), logits, *parts, *drawing, out, *sizes, **tiles)
    return out
