"""What the runner knows of each slot, as arrays over slots: tokens, page tables, counters, sampling parameters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from quire.engine.plan import KVGroup, PageGrant, SlotAdmit, SlotWork
from quire.model.decoder import Step
from quire.ops.backend import AttentionStep, SampleStep


class SlotState:
    """State of ``slots`` requests of at most ``max_len`` tokens. Memory that is never used is never touched."""

    def __init__(self, slots: int, max_len: int, page_size: int, groups: Sequence[KVGroup]) -> None:
        self._page_size = page_size
        pages = -(-max_len // page_size)
        self._tokens = np.zeros((slots, max_len + 1), np.int64)
        self.tokens = torch.from_numpy(self._tokens)
        self.known = np.zeros(slots, np.int64)
        self.computed = np.zeros(slots, np.int64)
        self.prompt_len = np.zeros(slots, np.int64)
        self._tables = [np.zeros((slots, pages), np.int32) for _ in groups]
        self._temperature = np.zeros(slots, np.float32)
        self._top_p = np.ones(slots, np.float32)
        self._min_p = np.zeros(slots, np.float32)
        self._top_k = np.zeros(slots, np.int32)
        self._seed = np.zeros(slots, np.int64)

    def admit(self, admit: SlotAdmit) -> None:
        slot, params = admit.slot, admit.params
        self._tokens[slot, : len(admit.token_ids)] = admit.token_ids
        self.known[slot] = len(admit.token_ids)
        self.computed[slot] = admit.computed
        self.prompt_len[slot] = admit.prompt_len
        self._temperature[slot] = params.temperature
        self._top_p[slot] = params.top_p
        self._min_p[slot] = params.min_p
        self._top_k[slot] = params.top_k
        self._seed[slot] = admit.seed

    def grant(self, grant: PageGrant) -> None:
        self._tables[grant.group][grant.slot, grant.start : grant.start + len(grant.pages)] = grant.pages

    def known_len(self, slot: int) -> int:
        return int(self.known[slot])

    def output_len(self, slot: int) -> int:
        return int(self.known[slot] - self.prompt_len[slot])

    def step(self, work: Sequence[SlotWork]) -> Step:
        """The tensors of a step that computes ``work``."""
        slots = np.fromiter((w.slot for w in work), np.int64, len(work))
        counts = np.fromiter((w.count for w in work), np.int64, len(work))
        start = np.zeros(len(work) + 1, np.int64)
        np.cumsum(counts, out=start[1:])
        row_slot = np.repeat(slots, counts)
        positions = np.arange(start[-1]) - np.repeat(start[:-1] - self.computed[slots], counts)
        context = self.computed[slots] + counts
        used = -(-int(context.max()) // self._page_size)
        page, offset = positions // self._page_size, positions % self._page_size
        positions32 = torch.from_numpy(positions.astype(np.int32))
        query_start = torch.from_numpy(start.astype(np.int32))
        context_len = torch.from_numpy(context.astype(np.int32))
        attention = [
            AttentionStep(
                positions=positions32,
                slots=torch.from_numpy(table[row_slot, page].astype(np.int64) * self._page_size + offset),
                query_start=query_start,
                context_len=context_len,
                block_table=torch.from_numpy(table[slots, :used]),
                page_size=self._page_size,
                max_query=int(counts.max()),
            )
            for table in self._tables
        ]
        return Step(torch.from_numpy(self._tokens[row_slot, positions]), attention)

    def sample_step(self, slots: Sequence[int]) -> SampleStep:
        """Sampling parameters of ``slots``, one row each."""
        index = np.asarray(slots)
        return SampleStep(
            temperature=torch.from_numpy(self._temperature[index]),
            top_k=torch.from_numpy(self._top_k[index]),
            top_p=torch.from_numpy(self._top_p[index]),
            min_p=torch.from_numpy(self._min_p[index]),
            seed=torch.from_numpy(self._seed[index]),
            position=torch.from_numpy(self.known[index]),
        )

    def advance(self, work: Sequence[SlotWork]) -> None:
        for w in work:
            self.computed[w.slot] += w.count

    def append(self, slot: int, token_id: int) -> None:
        self._tokens[slot, self.known[slot]] = token_id
        self.known[slot] += 1
