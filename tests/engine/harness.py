"""Requests for the fake model, and what each of them gives when it runs alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec
from fake_runner import EOS, FakeRunner

from quire.config.engine import EngineConfig
from quire.engine.core import EngineCore
from quire.engine.messages import EngineRequest, TokenDelta
from quire.engine.plan import KVGroup
from quire.params import SamplingParams

FULL = (KVGroup(None, 256),)


def config(**options: Any) -> EngineConfig:
    return EngineConfig(**{"max_num_seqs": 8, "max_num_batched_tokens": 64, **options})


def make_core(groups: Iterable[KVGroup] = FULL, context: int = 256, **options: Any) -> tuple[EngineCore, FakeRunner]:
    runner = FakeRunner(list(groups), max_model_len=context)
    return EngineCore(runner, config(**options)), runner


def request(request_id: str, prompt: Iterable[int], **params: Any) -> EngineRequest:
    fields = {
        name: params.pop(name) for name in ("priority", "cache_salt", "seed", "output_token_ids") if name in params
    }
    sampling = SamplingParams(**{"max_tokens": 8, "temperature": 0.0, **params})
    return EngineRequest(request_id, list(prompt), sampling, eos_token_ids=[EOS], **fields)


class Outcome:
    """All that a request's deltas said."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.reason: str | None = None
        self.deltas: list[TokenDelta] = []

    def take(self, delta: TokenDelta) -> None:
        assert self.reason is None, "a delta after the end"
        self.tokens += delta.token_ids
        self.reason = delta.finish_reason
        self.deltas.append(delta)

    @property
    def last(self) -> TokenDelta:
        return self.deltas[-1]


def collect(deltas: Iterable[TokenDelta], outcomes: dict[str, Outcome]) -> None:
    for delta in deltas:
        outcomes.setdefault(delta.request_id, Outcome()).take(delta)


def run(core: EngineCore, each_step: Callable[[], None] = lambda: None, steps: int = 20_000) -> dict[str, Outcome]:
    outcomes: dict[str, Outcome] = {}
    while core.has_work:
        collect(core.step(), outcomes)
        each_step()
        steps -= 1
        assert steps > 0, "the engine makes no progress"
    return outcomes


def check(core: EngineCore) -> None:
    """Everything that must hold between two steps."""
    scheduler = core.scheduler
    core.kv.check(r.pages for r in scheduler.running)
    slots = [r.slot for r in scheduler.running]
    assert len(set(slots)) == len(slots)
    assert scheduler.running == sorted(scheduler.running, key=lambda r: r.order)
    assert scheduler.waiting == sorted(scheduler.waiting, key=lambda r: r.order)
    assert scheduler.waiting_tokens == sum(r.prompt_len for r in scheduler.waiting)
    for r in scheduler.running:
        assert r.computed < r.known <= r.max_len


def check_empty(core: EngineCore) -> None:
    """Nothing is left of any request."""
    assert not core.has_work
    core.kv.check([])
    assert core.kv.free_pages == core.kv.total_pages
    stats = core.stats()
    assert (stats.running, stats.waiting, stats.kv_cache_usage) == (0, 0, 0.0)


_alone: dict[tuple[bytes, tuple[int | None, ...], int], tuple[list[int], str | None]] = {}


def alone(message: EngineRequest, groups: Iterable[KVGroup], context: int = 256) -> tuple[list[int], str | None]:
    """Tokens and finish reason of the request in an engine of its own, with pages to spare."""
    plain = msgspec.structs.replace(message, request_id="alone", priority=0, cache_salt="")
    windows = tuple(group.window for group in groups)
    key = (msgspec.msgpack.encode(plain), windows, context)
    if key not in _alone:
        core, _ = make_core([KVGroup(w, 256) for w in windows], context, max_num_batched_tokens=1024)
        core.add(plain)
        outcome = run(core)["alone"]
        _alone[key] = (outcome.tokens, outcome.reason)
    return _alone[key]
