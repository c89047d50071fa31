"""What a step needs to know of its tokens, worked out on the device from the state of the slots.

The host names the rows of a step by slot; everything else (tokens, positions, pages, lengths, sampling parameters) is
in tensors over slots that stay on the device. All outputs go to static tensors, so the launches can be captured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from quire.ops.backend import AttentionStep, SampleStep
from quire.ops.triton.launch import inputs_ready, launch


@dataclass(frozen=True)
class SlotTensors:
    """The state of all slots."""

    tokens: torch.Tensor  # [slots, max_len + 1] int32
    computed: torch.Tensor  # [slots] int32
    tables: Sequence[torch.Tensor]  # one a KV group: [slots, pages] int32
    temperature: torch.Tensor  # [slots] float32
    top_k: torch.Tensor  # [slots] int32
    top_p: torch.Tensor  # [slots] float32
    min_p: torch.Tensor  # [slots] float32
    seed: torch.Tensor  # [slots] int64


@dataclass(frozen=True)
class StepTensors:
    """Outputs for at most T tokens of S rows; padding tokens have token 0, position 0 and slot -1."""

    token_ids: torch.Tensor  # [T] int64
    attention: Sequence[AttentionStep]  # one a KV group; positions, query_start and context_len are shared
    sample: SampleStep  # [S]


@triton.jit(do_not_specialize=["rows", "count"])
def _tokens(
    row_slot_ptr,
    query_start_ptr,
    tokens_ptr,
    computed_ptr,
    table_ptr,
    token_ids_ptr,
    positions_ptr,
    slots_ptr,
    rows,
    count,
    tokens_stride,
    table_stride,
    PAGE: tl.constexpr,
    FIRST: tl.constexpr,
    DECODE: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Token, position and page slot of each token of the step; ``FIRST`` group writes what all groups share."""
    inputs_ready(PDL)
    t = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = t < count
    if DECODE:
        row = t
        offset = tl.zeros([BLOCK], tl.int32)
    else:
        row = tl.zeros([BLOCK], tl.int32)
        high = tl.zeros([BLOCK], tl.int32) + rows
        for _ in range(17):  # rows < 2 ** 17
            middle = (row + high) // 2
            right = tl.load(query_start_ptr + middle, mask=inside & (middle < rows), other=2147483647) <= t
            row = tl.where(right & (high - row > 1), middle, row)
            high = tl.where(right, high, tl.maximum(middle, row + 1))
        offset = t - tl.load(query_start_ptr + row, mask=inside, other=0)
        inside &= t < tl.load(query_start_ptr + rows)
    slot = tl.load(row_slot_ptr + row, mask=inside, other=-1).to(tl.int64)
    real = slot >= 0
    position = tl.load(computed_ptr + slot, mask=real, other=0) + offset
    position = tl.where(real, position, 0)
    written = t < count
    if FIRST:
        token = tl.load(tokens_ptr + slot * tokens_stride + position, mask=real, other=0)
        tl.store(token_ids_ptr + t, token.to(tl.int64), mask=written)
        tl.store(positions_ptr + t, position, mask=written)
    page = tl.load(table_ptr + slot * table_stride + position // PAGE, mask=real, other=0).to(tl.int64)
    tl.store(slots_ptr + t, tl.where(real, page * PAGE + position % PAGE, -1), mask=written)


@triton.jit
def _rows(
    row_slot_ptr,
    query_start_ptr,
    computed_ptr,
    table_ptr,
    context_len_ptr,
    single_len_ptr,
    block_table_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    seed_ptr,
    out_temperature_ptr,
    out_top_k_ptr,
    out_top_p_ptr,
    out_min_p_ptr,
    out_seed_ptr,
    out_position_ptr,
    table_stride,
    block_table_stride,
    PAGE: tl.constexpr,
    FIRST: tl.constexpr,
    DECODE: tl.constexpr,
    SINGLES: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Length, block table and sampling parameters of a row; a padding row has length 0 and is greedy."""
    inputs_ready(PDL)
    row = tl.program_id(0)
    slot = tl.load(row_slot_ptr + row).to(tl.int64)
    real = slot >= 0
    count = 1
    if not DECODE:
        count = tl.load(query_start_ptr + row + 1) - tl.load(query_start_ptr + row)
    known = tl.where(real, tl.load(computed_ptr + slot, mask=real, other=0) + count, 0)
    if FIRST:
        tl.store(context_len_ptr + row, known)
        if SINGLES:
            tl.store(single_len_ptr + row, tl.where(count == 1, known, 0))
        tl.store(out_temperature_ptr + row, tl.load(temperature_ptr + slot, mask=real, other=0.0))
        tl.store(out_top_k_ptr + row, tl.load(top_k_ptr + slot, mask=real, other=0))
        tl.store(out_top_p_ptr + row, tl.load(top_p_ptr + slot, mask=real, other=1.0))
        tl.store(out_min_p_ptr + row, tl.load(min_p_ptr + slot, mask=real, other=0.0))
        tl.store(out_seed_ptr + row, tl.load(seed_ptr + slot, mask=real, other=0))
        tl.store(out_position_ptr + row, known.to(tl.int64))
    pages = tl.cdiv(known, PAGE)
    for start in tl.range(0, pages, BLOCK):
        at = start + tl.arange(0, BLOCK)
        page = tl.load(table_ptr + slot * table_stride + at, mask=at < pages, other=0)
        tl.store(block_table_ptr + row.to(tl.int64) * block_table_stride + at, page, mask=at < pages)


@triton.jit(do_not_specialize=["rows"])
def _commit(
    row_slot_ptr,
    count_ptr,
    token_row_ptr,
    sampled_ptr,
    tokens_ptr,
    computed_ptr,
    rows,
    tokens_stride,
    DECODE: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    inputs_ready(PDL)
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    slot = tl.load(row_slot_ptr + row, mask=row < rows, other=-1).to(tl.int64)
    real = slot >= 0
    count = tl.full([BLOCK], 1, tl.int32)
    index = row
    if not DECODE:
        count = tl.load(count_ptr + row, mask=real, other=0)
        index = tl.load(token_row_ptr + row, mask=real, other=-1)
    known = tl.load(computed_ptr + slot, mask=real, other=0) + count
    tl.store(computed_ptr + slot, known, mask=real)
    sampled = real & (index >= 0)
    token = tl.load(sampled_ptr + index, mask=sampled, other=0)
    token = tl.maximum(token, 0)  # a row that was not a number: the host ends it, and no table holds row -1
    tl.store(tokens_ptr + slot * tokens_stride + known, token.to(tl.int32), mask=sampled)


def prepare(rows: torch.Tensor, state: SlotTensors, out: StepTensors, query_start: torch.Tensor | None = None) -> None:
    """Fill ``out`` for a step whose row i advances slot ``rows[i]`` (int32; -1: padding).

    Without ``query_start`` each row computes one token (a decode step, T = S). With it (int32 ``[S + 1]`` on the
    device) row i computes the tokens ``query_start[i]`` to ``query_start[i + 1]``; tokens beyond the last are padding.
    Of a block table only the columns in use are written.
    """
    count, tokens = len(rows), len(out.token_ids)
    decode = query_start is None
    start = rows if query_start is None else query_start
    sample = out.sample
    block = 128
    for group, step in enumerate(out.attention):
        table = state.tables[group]
        launch(
            _tokens,
            (triton.cdiv(tokens, block),),
            rows,
            start,
            state.tokens,
            state.computed,
            table,
            out.token_ids,
            step.positions,
            step.slots,
            count,
            tokens,
            state.tokens.stride(0),
            table.stride(0),
            PAGE=step.page_size,
            FIRST=group == 0,
            DECODE=decode,
            BLOCK=block,
        )
        launch(
            _rows,
            (count,),
            rows,
            start,
            state.computed,
            table,
            step.context_len,
            step.context_len if step.singles is None else step.singles.context_len,
            step.block_table,
            state.temperature,
            state.top_k,
            state.top_p,
            state.min_p,
            state.seed,
            sample.temperature,
            sample.top_k,
            sample.top_p,
            sample.min_p,
            sample.seed,
            sample.position,
            table.stride(0),
            step.block_table.stride(0),
            PAGE=step.page_size,
            FIRST=group == 0,
            DECODE=decode,
            SINGLES=step.singles is not None,
            BLOCK=64,
            num_warps=1,
        )


def commit(
    rows: torch.Tensor,
    sampled: torch.Tensor,
    state: SlotTensors,
    counts: torch.Tensor | None = None,
    token_row: torch.Tensor | None = None,
) -> None:
    """Advance the slots of a finished step and append what was sampled.

    A decode step: every row computed one token, and ``sampled[i]`` (int64) follows in row i. Otherwise ``counts [S]``
    int32 says how many tokens each row computed, and ``token_row [S]`` int32 which of ``sampled`` is its next token
    (-1: none, its prompt is not yet done).
    """
    decode = counts is None
    block = 128
    launch(
        _commit,
        (triton.cdiv(len(rows), block),),
        rows,
        rows if counts is None else counts,
        rows if token_row is None else token_row,
        sampled,
        state.tokens,
        state.computed,
        len(rows),
        state.tokens.stride(0),
        DECODE=decode,
        BLOCK=block,
    )
