"""Step metadata against plain indexing of the slots' state."""

from __future__ import annotations

import pytest
import torch

from quire.ops.backend import AttentionStep, SampleStep
from quire.ops.triton import TritonOps
from quire.ops.triton.step import SlotTensors, StepTensors, commit, prepare

SLOTS, MAX_LEN, PAGE = 7, 600, 16
PAGES = MAX_LEN // PAGE + 1


@pytest.fixture
def state(float_ops: TritonOps) -> SlotTensors:
    device = float_ops.device
    return SlotTensors(
        tokens=torch.randint(0, 1000, (SLOTS, MAX_LEN + 1), dtype=torch.int32, device=device),
        computed=torch.randint(1, 500, (SLOTS,), dtype=torch.int32, device=device),
        tables=[torch.randint(0, 10**6, (SLOTS, PAGES), dtype=torch.int32, device=device) for _ in range(2)],
        temperature=torch.rand(SLOTS, device=device) + 0.1,
        top_k=torch.randint(1, 50, (SLOTS,), dtype=torch.int32, device=device),
        top_p=torch.rand(SLOTS, device=device),
        min_p=torch.rand(SLOTS, device=device),
        seed=torch.randint(-(2**62), 2**62, (SLOTS,), device=device),
    )


def outputs(device: torch.device, tokens: int, rows: int, query_start: torch.Tensor) -> StepTensors:
    """Static tensors full of what must be overwritten."""

    def full(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        return torch.full(shape, 77, dtype=dtype, device=device)

    positions, context = full(tokens), full(rows)
    return StepTensors(
        token_ids=full(tokens, dtype=torch.int64),
        attention=[
            AttentionStep(positions, full(tokens, dtype=torch.int64), query_start, context, full(rows, PAGES), PAGE, 1)
            for _ in range(2)
        ],
        sample=SampleStep(
            temperature=full(rows, dtype=torch.float32),
            top_k=full(rows),
            top_p=full(rows, dtype=torch.float32),
            min_p=full(rows, dtype=torch.float32),
            seed=full(rows, dtype=torch.int64),
            position=full(rows, dtype=torch.int64),
        ),
    )


def check(state: SlotTensors, out: StepTensors, rows: list[int], counts: list[int]) -> None:
    at = 0
    for row, (slot, count) in enumerate(zip(rows, counts, strict=True)):
        if slot < 0:
            assert out.attention[0].context_len[row] == 0
            assert out.sample.temperature[row] == 0
            if count:
                assert out.token_ids[at] == 0
                assert all(step.slots[at] == -1 for step in out.attention)
            at += count
            continue
        first = int(state.computed[slot])
        place = torch.arange(first, first + count, device=state.tokens.device)
        here = slice(at, at + count)
        at += count
        assert torch.equal(out.token_ids[here], state.tokens[slot, place].long())
        assert torch.equal(out.attention[0].positions[here].long(), place)
        assert out.attention[0].context_len[row] == first + count
        used = -(-(first + count) // PAGE)
        for step, table in zip(out.attention, state.tables, strict=True):
            assert torch.equal(step.slots[here], table[slot, place // PAGE].long() * PAGE + place % PAGE)
            assert torch.equal(step.block_table[row, :used], table[slot, :used])
            assert (step.block_table[row, used:] == 77).all()
        for name in ("temperature", "top_k", "top_p", "min_p", "seed"):
            assert getattr(out.sample, name)[row] == getattr(state, name)[slot]
        assert out.sample.position[row] == first + count


def test_decode_step(float_ops: TritonOps, state: SlotTensors) -> None:
    rows = [4, 0, -1, 6, -1]
    device = float_ops.device
    out = outputs(device, 5, 5, torch.arange(6, dtype=torch.int32, device=device))
    index = torch.tensor(rows, dtype=torch.int32, device=device)
    prepare(index, state, out)
    check(state, out, rows, [1] * 5)
    before, tokens = state.computed.clone(), state.tokens.clone()
    commit(index, torch.tensor([11, 12, 13, -1, 15], device=device), state)
    for slot in range(SLOTS):
        step = int(slot in rows)
        assert state.computed[slot] == before[slot] + step
        if slot in rows:
            tokens[slot, before[slot] + 1] = {4: 11, 0: 12, 6: 0}[slot]
    assert torch.equal(state.tokens, tokens)


@pytest.mark.parametrize("counts", [[3], [1, 200, 17, 1], [5, 1, 1, 1, 1, 90, 2]])
def test_mixed_step(float_ops: TritonOps, state: SlotTensors, counts: list[int]) -> None:
    device = float_ops.device
    state.computed.clamp_(max=300)
    rows = [5, 1, 3, 0, 2, 6, 4][: len(counts)]
    start = torch.tensor([0, *torch.tensor(counts).cumsum(0).tolist()], dtype=torch.int32, device=device)
    total = sum(counts)
    out = outputs(device, total + 9, len(rows), start)
    index = torch.tensor(rows, dtype=torch.int32, device=device)
    prepare(index, state, out, start)
    check(state, out, rows, counts)
    assert not out.token_ids[total:].any()
    assert not out.attention[0].positions[total:].any()
    assert all((step.slots[total:] == -1).all() for step in out.attention)
    before, tokens = state.computed.clone(), state.tokens.clone()
    samples = [row % 2 == 0 for row in range(len(rows))]
    token_row = torch.tensor([sum(samples[:row]) if s else -1 for row, s in enumerate(samples)], dtype=torch.int32)
    sampled = torch.arange(500, 500 + sum(samples), device=device)
    commit(index, sampled, state, torch.tensor(counts, dtype=torch.int32, device=device), token_row.to(device))
    for row, (slot, count) in enumerate(zip(rows, counts, strict=True)):
        before[slot] += count
        if samples[row]:
            tokens[slot, before[slot]] = 500 + token_row[row]
    assert torch.equal(state.computed, before)
    assert torch.equal(state.tokens, tokens)
