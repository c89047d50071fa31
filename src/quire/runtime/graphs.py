"""Decode steps as single replays: one recording for each number of sequences, made when it is first needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from quire.model.decoder import Model, Step
from quire.ops.backend import AttentionStep, Ops, Pages


@dataclass(frozen=True)
class _Graph:
    step: Step
    replay: Callable[[], torch.Tensor]


class DecodeGraphs:
    """Logits of steps with one token a sequence. ``table_width``: pages of the longest sequence."""

    def __init__(self, decoder: Model, ops: Ops, pages: Sequence[Pages], table_width: int) -> None:
        self._decoder = decoder
        self._ops = ops
        self._pages = pages
        self._table_width = table_width
        self._graphs: dict[int, _Graph | None] = {}

    def logits(self, step: Step) -> torch.Tensor:
        """``[T, vocab]``, valid until the next call."""
        rows = len(step.token_ids)
        if rows not in self._graphs:
            self._graphs[rows] = self._record(step)
        graph = self._graphs[rows]
        if graph is None:
            return self._run(step)
        _copy(step, graph.step)
        return graph.replay()

    def _run(self, step: Step) -> torch.Tensor:
        return self._decoder.logits(self._decoder.forward(step, self._pages))

    def _record(self, step: Step) -> _Graph | None:
        fixed = Step(step.token_ids.clone(), [self._fixed(a) for a in step.attention])
        _copy(step, fixed)
        replay = self._ops.record(lambda: self._run(fixed))
        return None if replay is None else _Graph(fixed, replay)

    def _fixed(self, a: AttentionStep) -> AttentionStep:
        table = torch.zeros((len(a.context_len), self._table_width), dtype=torch.int32)
        return replace(
            a,
            positions=a.positions.clone(),
            slots=a.slots.clone(),
            query_start=a.query_start.clone(),
            context_len=a.context_len.clone(),
            block_table=table,
        )


def _copy(source: Step, target: Step) -> None:
    target.token_ids.copy_(source.token_ids)
    for a, b in zip(source.attention, target.attention, strict=True):
        b.positions.copy_(a.positions)
        b.slots.copy_(a.slots)
        b.context_len.copy_(a.context_len)
        b.block_table[:, : a.block_table.shape[1]].copy_(a.block_table)
