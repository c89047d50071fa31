"""The state of the slots on a GPU, in one block of memory; the host sends only what changes.

Everything is int32 words of one tensor (floats by their bits), so that all of a step's differences travel in one copy
and are put in place by one launch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from quire.engine.plan import KVGroup, PageGrant, SlotAdmit, SlotWork
from quire.ops.backend import SHARED_ROWS, AttentionStep, SampleStep, Singles
from quire.ops.triton.step import SlotTensors, StepTensors
from quire.ops.triton.upload import scatter

Words = npt.NDArray[np.int32]
_STAGES = 3  # uploads that may be on their way: two steps in flight and the one being filled
_ALIGNMENT = 4  # words
_MIN_SHARERS = 4
_SHARED_STEP = 128  # see AttentionStep.shared


class DeviceState:
    """Token ids, counters, page tables and parameters of ``slots`` requests of at most ``max_len`` tokens.

    ``max_tokens``: of one step. The row of a step is named by its slot; -1 is padding.
    """

    def __init__(
        self,
        slots: int,
        max_len: int,
        max_tokens: int,
        page_size: int,
        groups: Sequence[KVGroup],
        device: torch.device,
    ) -> None:
        self.known = np.zeros(slots, np.int64)
        self.prompt_len = np.zeros(slots, np.int64)
        self.computed = np.zeros(slots, np.int64)
        self._page_size = page_size
        self._device = device
        pages = -(-max_len // page_size)
        shapes: dict[str, tuple[int, ...]] = {
            "tokens": (slots, max_len + 1),
            "computed": (slots,),
            "temperature": (slots,),
            "top_k": (slots,),
            "top_p": (slots,),
            "min_p": (slots,),
            "seed": (slots, 2),
            "rows": (slots,),
            "query_start": (slots + 1,),
            "counts": (slots,),
            "token_row": (slots,),
            "longer_start": (slots + 1,),
            "shared": (-(-slots // SHARED_ROWS),),
            **{f"table{g}": (slots, pages) for g in range(len(groups))},
        }
        self._offset: dict[str, int] = {}
        size = 0
        for name, shape in shapes.items():
            self._offset[name] = size
            size += -(-math.prod(shape) // _ALIGNMENT) * _ALIGNMENT
        self._memory = torch.zeros(size, dtype=torch.int32, device=device)
        self._width = {name: math.prod(shape[1:]) for name, shape in shapes.items()}
        views = {n: self._memory[self._offset[n] :][: math.prod(s)].view(s) for n, s in shapes.items()}
        self.tokens = views["tokens"]
        self.slots = SlotTensors(
            tokens=self.tokens,
            computed=views["computed"],
            tables=[views[f"table{g}"] for g in range(len(groups))],
            temperature=views["temperature"].view(torch.float32),
            top_k=views["top_k"],
            top_p=views["top_p"].view(torch.float32),
            min_p=views["min_p"].view(torch.float32),
            seed=views["seed"].view(torch.int64).view(slots),
        )
        self.rows, self.query_start = views["rows"], views["query_start"]
        self._longer_start = views["longer_start"]
        self._single_len = torch.zeros(slots, dtype=torch.int32, device=device)
        self.counts, self.token_row, self._shared = views["counts"], views["token_row"], views["shared"]
        self._windows = [group.window for group in groups]
        self._pages = np.zeros((slots, pages), np.int32)  # the host's copy of the tables of full attention
        self._arranged: tuple[int, ...] = ()
        self._order: list[int] = []
        self._tokens_shared = np.zeros(-(-slots // SHARED_ROWS), np.int32)
        self._step = _step_tensors(slots, max_tokens, pages, page_size, len(groups), device)
        self._runs: list[tuple[int, Words]] = []
        self._sent: dict[str, Words] = {}
        self._stages = [_pinned(1 << 16, device) for _ in range(_STAGES)]
        self._stage = 0

    # Differences

    def admit(self, admit: SlotAdmit) -> None:
        slot, params = admit.slot, admit.params
        self._arranged = ()
        self.known[slot] = len(admit.token_ids)
        self.prompt_len[slot] = admit.prompt_len
        self.computed[slot] = admit.computed
        self._put("tokens", slot, np.asarray(admit.token_ids, np.int32))
        self._put("computed", slot, np.asarray([admit.computed], np.int32))
        self._put("temperature", slot, np.asarray([params.temperature], np.float32).view(np.int32))
        self._put("top_k", slot, np.asarray([params.top_k], np.int32))
        self._put("top_p", slot, np.asarray([params.top_p], np.float32).view(np.int32))
        self._put("min_p", slot, np.asarray([params.min_p], np.float32).view(np.int32))
        self._put("seed", slot, np.asarray([admit.seed], np.int64).view(np.int32))

    def grant(self, grant: PageGrant) -> None:
        pages = np.asarray(grant.pages, np.int32)
        self._put(f"table{grant.group}", grant.slot, pages, grant.start)
        if self._windows[grant.group] is None:
            self._pages[grant.slot, grant.start : grant.start + len(pages)] = pages

    def singles_first(self, work: Sequence[SlotWork]) -> tuple[list[SlotWork], int]:
        """The rows of a mixed step as ``ops.backend.Singles`` wants them, and how many have more than one token."""
        ordered = sorted(work, key=lambda w: (w.count > 1, -self.known[w.slot]))
        return ordered, sum(w.count > 1 for w in work)

    def arrange(self, work: Sequence[SlotWork]) -> tuple[list[SlotWork], bool]:
        """The rows of a decode step in an order that puts those with a common prefix side by side; whether any are.

        Otherwise the longest come first: what is begun last is short, and the device's programs end together.
        """
        slots = tuple(w.slot for w in work)
        if slots != self._arranged:
            self._arranged = slots
            index = np.asarray(slots)
            _, family, members = np.unique(self._pages[index, 0], return_inverse=True, return_counts=True)
            family[members[family] < _MIN_SHARERS] = -1
            order = np.lexsort((-self.known[index], family))
            self._order = order.tolist()
            self._tokens_shared[:] = 0
            for block, start in enumerate(range(0, len(slots), SHARED_ROWS)):
                self._tokens_shared[block] = self._common_tokens(index[order[start : start + SHARED_ROWS]])
        return [work[i] for i in self._order], bool(self._tokens_shared.any())

    def _common_tokens(self, slots: npt.NDArray[np.int64]) -> int:
        """Tokens that all of ``slots`` have computed and hold in the same pages, if it pays to read them together."""
        if len(slots) < _MIN_SHARERS:
            return 0
        full = int(self.computed[slots].min()) // self._page_size
        tables = self._pages[slots, :full]
        differ = np.flatnonzero((tables != tables[0]).any(axis=0))
        common = int(differ[0]) if len(differ) else full
        return common * self._page_size // _SHARED_STEP * _SHARED_STEP

    def work(self, work: Sequence[SlotWork], rows: int, decode: bool) -> list[int]:
        """Name the rows of the next step, ``rows`` in all with padding; returns the row of each.

        Padding comes last in a decode step, else before those with more than one token.
        """
        slots = np.full(rows, -1, np.int32)
        if decode:
            slots[: len(work)] = [w.slot for w in work]
            self._put_changed("rows", slots)
            self._put_changed("shared", self._tokens_shared.copy())
            return list(range(len(work)))
        singles = sum(w.count == 1 for w in work)
        places = [*range(singles), *range(rows - len(work) + singles, rows)]
        slots[places] = [w.slot for w in work]
        self._put_changed("rows", slots)
        counts = np.zeros(rows, np.int32)
        counts[places] = [w.count for w in work]
        start = np.zeros(rows + 1, np.int32)
        np.cumsum(counts, out=start[1:])
        token_row = np.full(rows, -1, np.int32)
        token_row[places] = [row if w.sample else -1 for row, w in zip(places, work, strict=True)]
        self._put_changed("longer_start", np.maximum(start, singles))
        self._put_changed("counts", counts)
        self._put_changed("query_start", start)
        self._put_changed("token_row", token_row)
        return places

    def pad_all(self) -> None:
        """Make every row padding, and every count zero, as before the first step."""
        slots = len(self.rows)
        self._put_changed("rows", np.full(slots, -1, np.int32))
        self._put_changed("token_row", np.full(slots, -1, np.int32))
        self.flush()

    def compile(self) -> None:
        """What ``flush`` launches, within ``compile_only``."""
        scatter(self._memory, 1, self._memory)

    def advance(self, work: Sequence[SlotWork]) -> None:
        """The step is on its way: the host counts along."""
        for w in work:
            self.computed[w.slot] += w.count
            self.known[w.slot] += w.sample

    def flush(self) -> None:
        """Send what was put since the last time."""
        if not self._runs:
            return
        heads = np.empty((len(self._runs), 3), np.int32)
        at = 0
        for i, (target, values) in enumerate(self._runs):
            heads[i] = at, target, len(values)
            at += len(values)
        size = heads.size + at
        stage = self._stages[self._stage]
        if len(stage) < size:
            stage = self._stages[self._stage] = _pinned(1 << (size - 1).bit_length(), self._device)
        self._stage = (self._stage + 1) % _STAGES
        np.concatenate([heads.ravel(), *(values for _, values in self._runs)], out=stage.numpy()[:size])
        scatter(stage[:size].to(self._device, non_blocking=True), len(self._runs), self._memory)
        self._runs.clear()

    def _put(self, name: str, row: int, values: Words, start: int = 0) -> None:
        self._runs.append((self._offset[name] + row * self._width[name] + start, values))

    def _put_changed(self, name: str, values: Words) -> None:
        if not np.array_equal(self._sent.get(name), values):  # type: ignore[arg-type]
            self._sent[name] = values
            self._runs.append((self._offset[name], values))

    # What the sampler asks

    def known_len(self, slot: int) -> int:
        return int(self.known[slot])

    def output_len(self, slot: int) -> int:
        return int(self.known[slot] - self.prompt_len[slot])

    # Steps

    def step_tensors(self, tokens: int, rows: int, max_query: int, shared: bool, longer: int) -> StepTensors:
        """The first ``tokens`` and ``rows`` of the tensors in which every step is described.

        ``longer``: those with several tokens are among so many last rows.
        """
        full = self._step
        blocks = self._shared[: -(-rows // SHARED_ROWS)] if shared else None
        singles = None
        if max_query > 1:
            singles = Singles(self._single_len[:rows], self._longer_start[: rows + 1], longer)
        attention = [
            AttentionStep(
                positions=a.positions[:tokens],
                slots=a.slots[:tokens],
                query_start=self.query_start[: rows + 1],
                context_len=a.context_len[:rows],
                block_table=a.block_table[:rows],
                page_size=self._page_size,
                max_query=max_query,
                shared=blocks if window is None else None,
                singles=singles,
            )
            for a, window in zip(full.attention, self._windows, strict=True)
        ]
        s = full.sample
        sample = SampleStep(
            s.temperature[:rows], s.top_k[:rows], s.top_p[:rows], s.min_p[:rows], s.seed[:rows], s.position[:rows]
        )
        return StepTensors(full.token_ids[:tokens], attention, sample)


def _step_tensors(rows: int, tokens: int, pages: int, page_size: int, groups: int, device: torch.device) -> StepTensors:
    def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    positions, context_len, start = zeros(tokens), zeros(rows), zeros(rows + 1)
    attention = [
        AttentionStep(
            positions, zeros(tokens, dtype=torch.int64), start, context_len, zeros(rows, pages), page_size, max_query=1
        )
        for _ in range(groups)
    ]
    sample = SampleStep(
        temperature=zeros(rows, dtype=torch.float32),
        top_k=zeros(rows),
        top_p=zeros(rows, dtype=torch.float32),
        min_p=zeros(rows, dtype=torch.float32),
        seed=zeros(rows, dtype=torch.int64),
        position=zeros(rows, dtype=torch.int64),
    )
    return StepTensors(zeros(tokens, dtype=torch.int64), attention, sample)


def _pinned(words: int, device: torch.device) -> torch.Tensor:
    return torch.empty(words, dtype=torch.int32, pin_memory=device.type == "cuda")
