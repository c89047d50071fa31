"""One model on one GPU: the state of requests stays there, and the host plans a step while the last one runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch

from quire.engine.messages import TokenLogprobs
from quire.engine.plan import Flight, KVGroup, Landed, SlotResult, SlotWork, StepPlan
from quire.model.decoder import Decoder, Model, Step
from quire.ops.backend import Ops, Pages
from quire.ops.triton import ahead
from quire.ops.triton.launch import compile_only
from quire.ops.triton.step import commit, prepare
from quire.runtime.device_graphs import (
    LONGER_ROWS,
    PADDED,
    DeviceGraphs,
    StepOutput,
    StepShape,
    at_least,
    decode_sizes,
    mixed_sizes,
    row_sizes,
)
from quire.runtime.device_state import DeviceState
from quire.runtime.memory import MemoryPlan
from quire.runtime.runner import NOT_A_NUMBER, new_pages
from quire.runtime.sampler import LogprobRows, Sampler, SlotLogprobs, prompt_logprobs

_MIN_SHARED_ROWS = 8  # of graphs that read common pages once


class DeviceRunner:
    """Implements ``engine.plan.Runner``."""

    ahead = 1

    def __init__(
        self, decoder: Model, ops: Ops, plan: MemoryPlan, slots: int, step_tokens: int, kv_dtype: torch.dtype
    ) -> None:
        self.max_model_len = plan.max_model_len
        self.vocab_size = decoder.spec.vocab_size
        self.page_size = plan.page_size
        self.groups: list[KVGroup] = list(plan.groups)
        self.slots = slots
        self.step_tokens = step_tokens
        self.kv_bytes = plan.kv
        self.model_bytes = plan.weights
        self.phases: dict[str, float] = {}
        self._decoder = decoder
        self._ops = ops
        self._device = ops.device
        self._state = DeviceState(slots, plan.max_model_len, step_tokens, plan.page_size, plan.groups, ops.device)
        self._sampler = Sampler(ops, decoder.spec.vocab_size, ops.device)
        self._pages = new_pages(decoder.spec, ops, plan, kv_dtype)
        self._graphs = DeviceGraphs(lambda shape: self._compute(shape, self._decoder, self._pages))
        self._decode_sizes: list[int] = []
        self._mixed_sizes: list[int] = []
        self._row_sizes: list[int] = []

    def compile(self) -> None:
        """Compile the kernels of all steps, or read them from the disk: nothing compiles after ``capture``."""
        decode, mixed = self._shapes()
        with torch.inference_mode(), compile_only():
            self._state.compile()
            # In turns, so that threads soon have all kernels to compile.
            shapes = [shape for turn in zip_longest(decode, mixed) for shape in turn if shape is not None]
            self._rehearse(shapes)

    def capture(self) -> None:
        """Capture graphs of the common sizes, once all is compiled. Until then steps run unpadded, by launches."""
        with torch.inference_mode():
            self._state.pad_all()
            for shapes in self._shapes():
                if not shapes[0].decode:
                    ahead.finish()
                self._rehearse(shapes)  # loads kernels and makes handles, which a capture must not
                if isinstance(self._decoder, Decoder):  # others compute with code that is not ours to capture
                    self._graphs.capture(shapes)
        if isinstance(self._decoder, Decoder):
            self._decode_sizes, self._mixed_sizes = decode_sizes(self.slots), mixed_sizes(self.step_tokens)
            self._row_sizes = row_sizes(self.slots)

    def _shapes(self) -> tuple[list[StepShape], list[StepShape]]:
        """Steps of single tokens, and others."""
        decode, mixed, rows = decode_sizes(self.slots), mixed_sizes(self.step_tokens), row_sizes(self.slots)
        shared = (False, True)
        return (
            [StepShape(n, n, True, s) for n in decode for s in shared if n >= _MIN_SHARED_ROWS or not s],
            [StepShape(n, r, False) for n in mixed for r in rows if r <= max(n, rows[0])],
        )

    def _rehearse(self, shapes: Sequence[StepShape]) -> None:
        """A step of each shape, through one layer of each kind."""
        decoder, pages = self._decoder, self._pages
        if isinstance(decoder, Decoder):
            decoder, layers = decoder.thin()
            pages = [pages[i] for i in layers]
        for i, shape in enumerate(shapes):
            output = self._compute(shape, decoder, pages)
            self._finish(output, shape.rows, None if shape.decode else [], {})
            if i == 0:
                self._ops.sample(output.logits.float(), output.sample)  # as logits come that a request edits

    def submit(self, plan: StepPlan) -> Flight:
        with torch.inference_mode():
            for slot in plan.release:
                self._sampler.release(slot)
            for admit in plan.admit:
                self._state.admit(admit)
                self._sampler.admit(admit)
            for grant in plan.pages:
                self._state.grant(grant)
            if not plan.work:
                self._state.flush()
                return Landed([])
            return self._step(plan.work)

    def _step(self, work: Sequence[SlotWork]) -> _DeviceFlight:
        state = self._state
        decode = all(w.count == 1 and w.sample for w in work)
        prompts = False
        if decode:
            work, shared = state.arrange(work)
            shape = self._decode_shape(len(work), shared)
        else:
            work, longer = state.singles_first(work)
            prompts = self._sampler.wants_prompts(work)
            shape = self._mixed_shape(len(work), sum(w.count for w in work), longer, prompts)
        rows = state.work(work, shape.rows, shape.decode)
        state.flush()
        output = self._graphs.run(shape)
        sampling = {row: w.slot for row, w in zip(rows, work, strict=True) if w.sample}
        prompt_logprobs = self._prompt_logprobs(work, output.hidden) if prompts else {}
        tokens, logprobs = self._finish(output, shape.rows, None if shape.decode else work, sampling)
        state.advance(work)
        return _DeviceFlight(
            tokens.to("cpu", non_blocking=True),
            sampling,
            SlotLogprobs(logprobs.slots, logprobs.rows.to_host()) if logprobs else None,
            prompt_logprobs,
            _event(self._device),
        )

    def _decode_shape(self, rows: int, shared: bool) -> StepShape:
        if not self._decode_sizes:
            return StepShape(rows, rows, True, shared)
        size = at_least(self._decode_sizes, rows)
        return StepShape(size, size, True, shared and size >= _MIN_SHARED_ROWS)

    def _mixed_shape(self, rows: int, tokens: int, longer: int, every: bool) -> StepShape:
        if self._row_sizes:
            rows = at_least(self._row_sizes, rows)
        if longer > LONGER_ROWS:
            return StepShape(tokens, rows, False, every=every, longer=rows)
        if not every and self._mixed_sizes and (tokens <= PADDED or tokens == self._mixed_sizes[-1]):
            tokens = at_least(self._mixed_sizes, tokens)
        return StepShape(tokens, rows, False, every=every)

    def _compute(self, shape: StepShape, decoder: Model, pages: Sequence[Pages]) -> StepOutput:
        """The rows named in the state, from token ids to logits."""
        state = self._state
        max_query = 1 if shape.decode else shape.tokens
        step = state.step_tensors(shape.tokens, shape.rows, max_query, shape.shared, min(shape.longer, shape.rows))
        start = state.query_start[: shape.rows + 1]
        prepare(state.rows[: shape.rows], state.slots, step, None if shape.decode else start)
        last = None if shape.decode else (start[1:] - 1).clamp(min=0)
        hidden = decoder.forward(Step(step.token_ids, step.attention, None if shape.every else last), pages)
        logits = decoder.logits(hidden[last] if shape.every else hidden)
        return StepOutput(hidden, logits, step.sample)

    def _finish(
        self, output: StepOutput, rows: int, work: Sequence[SlotWork] | None, sampling: dict[int, int]
    ) -> tuple[torch.Tensor, SlotLogprobs | None]:
        """Sample, and append the tokens to their slots. ``work``: ``None`` in a decode step."""
        state = self._state
        tokens, logprobs = self._sampler.sample(output.logits, sampling, output.sample, state)
        mixed = work is not None
        commit(
            state.rows[:rows],
            tokens,
            state.slots,
            state.counts[:rows] if mixed else None,
            state.token_row[:rows] if mixed else None,
        )
        return tokens, logprobs

    def _prompt_logprobs(self, work: Sequence[SlotWork], hidden: torch.Tensor) -> dict[int, list[LogprobRows]]:
        found: dict[int, list[LogprobRows]] = {}
        begin = 0
        for w in work:
            top = self._sampler.params(w.slot).prompt_logprobs
            first = int(self._state.computed[w.slot])
            count = min(w.count, int(self._state.prompt_len[w.slot]) - 1 - first)
            if top is not None and count > 0:
                targets = self._state.tokens[w.slot, first + 1 : first + 1 + count].to(torch.int64)
                parts = prompt_logprobs(self._decoder, hidden[begin : begin + count], targets, top)
                found[w.slot] = [part.to_host() for part in parts]
            begin += w.count
        return found


@dataclass(frozen=True)
class _DeviceFlight:
    """Results on their way to host memory, all there once ``done`` has happened."""

    tokens: torch.Tensor
    sampling: dict[int, int]  # row -> slot
    logprobs: SlotLogprobs | None
    prompts: dict[int, list[LogprobRows]]
    done: torch.cuda.Event | None

    def land(self) -> list[SlotResult]:
        if self.done is not None:
            self.done.synchronize()
        tokens = self.tokens.tolist()
        logprobs: dict[int, TokenLogprobs] = self.logprobs.by_slot() if self.logprobs else {}
        results = {
            slot: SlotResult(slot, tokens[row], logprobs.get(slot))
            if tokens[row] >= 0
            else SlotResult(slot, error=NOT_A_NUMBER)
            for row, slot in self.sampling.items()
        }
        for slot, parts in self.prompts.items():
            rows = [row for part in parts for row in part.lists()]
            results.setdefault(slot, SlotResult(slot)).prompt_logprobs = rows
        return list(results.values())


def _event(device: torch.device) -> torch.cuda.Event | None:
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()
    event.record()
    return event
