"""One model on one device: applies step plans, runs the decoder, samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from quire.engine.messages import TokenLogprobs
from quire.engine.plan import KVGroup, Landed, SlotResult, SlotWork, StepPlan
from quire.model.decoder import Model, kv_windows
from quire.model.pages import new_pages as layer_pages
from quire.model.spec import DecoderSpec
from quire.ops.backend import Ops, Pages
from quire.runtime.graphs import DecodeGraphs
from quire.runtime.memory import MemoryPlan
from quire.runtime.sampler import Sampler, prompt_logprobs
from quire.runtime.state import SlotState

NOT_A_NUMBER = "The model computed values that are not numbers for this request."


class ModelRunner:
    """Implements ``engine.plan.Runner``. ``submit`` may be called again with the same work if it raised."""

    ahead = 0

    def __init__(
        self, decoder: Model, ops: Ops, plan: MemoryPlan, slots: int, step_tokens: int, kv_dtype: torch.dtype
    ) -> None:
        spec = decoder.spec
        self.max_model_len = plan.max_model_len
        self.vocab_size = spec.vocab_size
        self.page_size = plan.page_size
        self.slots = slots
        self.step_tokens = step_tokens
        self.groups: list[KVGroup] = list(plan.groups)
        self.kv_bytes = plan.kv
        self.model_bytes = plan.weights
        self.phases: dict[str, float] = {}
        self._decoder = decoder
        self._state = SlotState(slots, plan.max_model_len, plan.page_size, plan.groups)
        self._sampler = Sampler(ops, spec.vocab_size, torch.device("cpu"))
        self._pages = new_pages(spec, ops, plan, kv_dtype)
        self._graphs = DecodeGraphs(decoder, ops, self._pages, -(-plan.max_model_len // plan.page_size))

    def submit(self, plan: StepPlan) -> Landed:
        for slot in plan.release:
            self._sampler.release(slot)
        for admit in plan.admit:
            self._state.admit(admit)
            self._sampler.admit(admit)
        for grant in plan.pages:
            self._state.grant(grant)
        if not plan.work:
            return Landed([])
        with torch.inference_mode():
            return Landed(self._run(plan.work))

    def _run(self, work: Sequence[SlotWork]) -> list[SlotResult]:
        step = self._state.step(work)
        if all(w.count == 1 and w.sample for w in work):
            results = self._sample(self._graphs.logits(step), [w.slot for w in work])
            self._state.advance(work)
            return list(results.values())
        ends = step.attention[0].query_start[1:].to(torch.int64)
        sampling = [i for i, w in enumerate(work) if w.sample]
        wanted = ends[sampling] - 1
        prompt_logprobs = {}
        if self._sampler.wants_prompts(work):
            hidden = self._decoder.forward(step, self._pages)
            prompt_logprobs = self._prompt_logprobs(work, hidden, ends)
            hidden = hidden[wanted]
        else:
            hidden = self._decoder.forward(replace(step, wanted=wanted), self._pages)
        results = {}
        if sampling:
            results = self._sample(self._decoder.logits(hidden), [work[i].slot for i in sampling])
        self._state.advance(work)
        for slot, values in prompt_logprobs.items():
            results.setdefault(slot, SlotResult(slot)).prompt_logprobs = values
        return list(results.values())

    def _sample(self, logits: torch.Tensor, slots: list[int]) -> dict[int, SlotResult]:
        tokens, logprobs = self._sampler.sample(
            logits, dict(enumerate(slots)), self._state.sample_step(slots), self._state
        )
        by_slot = logprobs.by_slot() if logprobs else {}
        results: dict[int, SlotResult] = {}
        for slot, token in zip(slots, tokens.tolist(), strict=True):
            if token < 0:
                results[slot] = SlotResult(slot, error=NOT_A_NUMBER)
                continue
            self._state.append(slot, token)
            results[slot] = SlotResult(slot, token, by_slot.get(slot))
        return results

    def _prompt_logprobs(
        self, work: Sequence[SlotWork], hidden: torch.Tensor, ends: torch.Tensor
    ) -> dict[int, list[TokenLogprobs]]:
        """For slots that ask: log probabilities of the prompt tokens that follow this step's positions."""
        found: dict[int, list[TokenLogprobs]] = {}
        for w, end in zip(work, ends.tolist(), strict=True):
            top = self._sampler.params(w.slot).prompt_logprobs
            first = int(self._state.computed[w.slot])
            count = min(w.count, int(self._state.prompt_len[w.slot]) - 1 - first)
            if top is None or count <= 0:
                continue
            rows = hidden[end - w.count : end - w.count + count]
            targets = self._state.tokens[w.slot, first + 1 : first + 1 + count].to(torch.int64)
            found[w.slot] = [row for part in prompt_logprobs(self._decoder, rows, targets, top) for row in part.lists()]
        return found


def new_pages(spec: DecoderSpec, ops: Ops, plan: MemoryPlan, dtype: torch.dtype) -> list[Pages]:
    num_pages = dict(zip(kv_windows(spec), (g.num_pages for g in plan.groups), strict=True))
    return [
        layer_pages(a, ops, num_pages[a.window], plan.page_size, dtype)
        for a in (layer.attention for layer in spec.layers)
    ]
