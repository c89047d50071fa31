"""A deterministic model without tensors. It keeps a digest of the prefix for each token in fake pages and reads them
back through the block tables, so that a wrong page, table, count or order changes its tokens or trips a check."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b

from quire.config.engine import EngineConfig
from quire.engine.messages import TokenLogprobs
from quire.engine.plan import KVGroup, SlotAdmit, SlotResult, SlotWork, StepPlan

VOCAB = 97
EOS = 0
RAISES = 90  # a prompt that holds this token makes the whole step raise
ERRS = 91  # ... makes its own slot fail
KILLS = 92  # ... ends the process


class FakeFault(Exception):
    pass


@dataclass
class Slot:
    admit: SlotAdmit
    tokens: list[int]
    computed: int
    tables: list[dict[int, int]] = field(default_factory=list)

    @property
    def poison(self) -> set[int]:
        return {RAISES, ERRS, KILLS} & set(self.tokens[: self.admit.prompt_len])


def mix(*parts: object) -> int:
    return int.from_bytes(blake2b(repr(parts).encode(), digest_size=6).digest(), "big")


@dataclass(frozen=True)
class FakeFlight:
    results: list[SlotResult]
    runner: FakeRunner

    def land(self) -> list[SlotResult]:
        self.runner.in_flight -= 1
        return self.results


class FakeRunner:
    def __init__(
        self,
        groups: list[KVGroup],
        page_size: int = 4,
        max_model_len: int = 256,
        step_s: float = 0.0,
        token_s: float = 0.0,
        ahead: int = 0,
    ) -> None:
        self.ahead = ahead
        self.in_flight = 0
        self.groups = groups
        self.slots, self.step_tokens = 8, 64
        self.page_size = page_size
        self.max_model_len = max_model_len
        self.vocab_size = VOCAB
        self.step_s, self.token_s = step_s, token_s
        self.memory: list[dict[tuple[int, int], tuple[int, int]]] = [{} for _ in groups]
        self.held: dict[int, Slot] = {}
        self.steps: list[StepPlan] = []
        self.computed = 0
        self.phases = {"load": 0.1}
        self.model_bytes = 1000
        self.kv_bytes = 2000

    def submit(self, plan: StepPlan) -> FakeFlight:
        self.in_flight += 1
        assert self.in_flight <= self.ahead + 1
        try:
            return FakeFlight(self._execute(plan), self)
        except BaseException:
            self.in_flight -= 1
            raise

    def _execute(self, plan: StepPlan) -> list[SlotResult]:
        self.steps.append(plan)
        self._apply(plan)
        total = sum(w.count for w in plan.work)
        if self.step_s or self.token_s:
            time.sleep(self.step_s + self.token_s * total)
        # As layers do: all writes, then all reads.
        for work in plan.work:
            self._write(self.held[work.slot], work)
        results = [self._read(work.slot, self.held[work.slot], work) for work in plan.work]
        for work, result in zip(plan.work, results, strict=True):
            slot = self.held[work.slot]
            if result.error is None or self.ahead:
                slot.computed += work.count
                if work.sample:
                    slot.tokens.append(result.token_id or 0)
        self.computed += total
        return [r for r in results if r.token_id is not None or r.prompt_logprobs or r.error]

    def _apply(self, plan: StepPlan) -> None:
        for index in plan.release:
            self.held.pop(index, None)
        for admit in plan.admit:
            tables: list[dict[int, int]] = [{} for _ in self.groups]
            self.held[admit.slot] = Slot(admit, list(admit.token_ids), admit.computed, tables)
        for grant in plan.pages:
            table = self.held[grant.slot].tables[grant.group]
            for i, page in enumerate(grant.pages):
                assert 0 <= page < self.groups[grant.group].num_pages
                table[grant.start + i] = page

    def _place(self, slot: Slot, group: int, position: int) -> tuple[int, int]:
        return slot.tables[group][position // self.page_size], position % self.page_size

    def _write(self, slot: Slot, work: SlotWork) -> None:
        assert 0 < work.count <= len(slot.tokens) - slot.computed
        assert work.sample == (slot.computed + work.count == len(slot.tokens))
        for position in range(slot.computed, slot.computed + work.count):
            before = self.memory[0][self._place(slot, 0, position - 1)][1] if position else 0
            value = (position, mix(before, slot.tokens[position]))
            if slot.poison:
                value = (position, -1)
            for group in range(len(self.groups)):
                self.memory[group][self._place(slot, group, position)] = value
        if RAISES in slot.poison:
            raise FakeFault("poisoned")

    def _read(self, index: int, slot: Slot, work: SlotWork) -> SlotResult:
        if ERRS in slot.poison:
            return SlotResult(slot=index, error="This request went wrong.")
        if KILLS in slot.poison:
            import os

            os._exit(9)
        end = slot.computed + work.count
        seen = []
        for group, spec in enumerate(self.groups):
            first = 0 if spec.window is None else max(0, slot.computed - spec.window + 1)
            last_first = 0 if spec.window is None else max(0, end - spec.window)
            for position in range(first, end):
                held, value = self.memory[group][self._place(slot, group, position)]
                assert held == position, f"group {group}: position {held} stands where {position} should"
                if position >= last_first:
                    seen.append(value)
        result = SlotResult(slot=index)
        params = slot.admit.params
        if params.prompt_logprobs is not None:
            predicted = range(slot.computed + 1, min(end + 1, slot.admit.prompt_len))
            result.prompt_logprobs = [TokenLogprobs([slot.tokens[p]], [-float(p)], [1]) for p in predicted]
        if work.sample:
            seed = 0 if params.greedy else slot.admit.seed
            token = mix(seen, seed, end) % RAISES
            if end - slot.admit.prompt_len < params.min_tokens:
                while token in slot.admit.stop_token_ids:
                    token = (token + 1) % RAISES
            result.token_id = token
            if params.logprobs is not None:
                result.logprobs = TokenLogprobs([token], [-0.5], [1])
        return result


def build(config: EngineConfig, progress: Callable[[str], None]) -> FakeRunner:
    """The factory that the engine's process calls; ``config.model`` is ``fake[:name=value,...]``."""
    options = dict(pair.split("=") for pair in config.model.partition(":")[2].split(",") if pair)
    progress("load")
    if "broken" in options:
        raise ValueError("The model file is broken: use another one.")
    return FakeRunner(
        [KVGroup(None, int(options.get("pages", 256)))],
        max_model_len=int(options.get("context", 512)),
        step_s=float(options.get("step", 0)),
        token_s=float(options.get("token", 0)),
        ahead=int(options.get("ahead", 0)),
    )
