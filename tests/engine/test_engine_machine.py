"""Any order of arrivals, aborts and steps, on pools too small, gives each request what it gets alone; and a soak."""

from __future__ import annotations

import random
from typing import Any

import pytest
from fake_runner import ERRS, RAISES, FakeRunner
from harness import alone, check, check_empty, collect, config, request
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from quire.engine.core import EngineCore
from quire.engine.messages import EngineRequest
from quire.engine.plan import KVGroup

SHAPES = [
    (KVGroup(None, 12),),
    (KVGroup(None, 16), KVGroup(8, 9)),
    (KVGroup(6, 5), KVGroup(None, 14)),
    (KVGroup(5, 4),),
]
PREFIXES = [[1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14], [30] * 20, []]
CONTEXT = 40


def expected_ends(message: EngineRequest) -> set[str]:
    return {"error"} if {RAISES, ERRS} & set(message.prompt_token_ids) else {"stop", "length"}


class EngineMachine(RuleBasedStateMachine):
    @initialize(
        groups=st.sampled_from(SHAPES),
        slots=st.integers(1, 5),
        budget=st.sampled_from([3, 8, 17, 64]),
        policy=st.sampled_from(["fcfs", "priority"]),
        caching=st.booleans(),
        ahead=st.integers(0, 1),
    )
    def start(
        self, groups: tuple[KVGroup, ...], slots: int, budget: int, policy: str, caching: bool, ahead: int
    ) -> None:
        self.groups = groups
        self.runner = FakeRunner(list(groups), max_model_len=CONTEXT, ahead=ahead)
        options: dict[str, Any] = {"max_num_seqs": slots, "max_num_batched_tokens": budget}
        self.core = EngineCore(
            self.runner, config(scheduling_policy=policy, enable_prefix_caching=caching, **options), bounded=False
        )
        self.requests: dict[str, EngineRequest] = {}
        self.aborted: set[str] = set()
        self.outcomes: dict[str, Any] = {}

    @rule(
        prefix=st.sampled_from(PREFIXES),
        tail=st.lists(st.integers(1, 4), min_size=1, max_size=9),
        max_tokens=st.integers(1, 24),
        min_tokens=st.integers(0, 4),
        priority=st.integers(0, 2),
        sampled=st.booleans(),
        prompt_logprobs=st.sampled_from([None, None, 0]),
        poison=st.sampled_from([None] * 8 + [RAISES, ERRS]),
        salt=st.sampled_from(["", "", "tenant"]),
    )
    def add(
        self, prefix: list[int], tail: list[int], poison: int | None, sampled: bool, salt: str, **params: Any
    ) -> None:
        params["min_tokens"] = min(params["min_tokens"], params["max_tokens"])
        priority = params.pop("priority")
        prompt = prefix + tail + ([poison] if poison else [])
        if len(prompt) >= self.core.limits.max_model_len:
            return
        message = request(
            str(len(self.requests)),
            prompt,
            temperature=1.0 if sampled else 0.0,
            seed=len(self.requests) if sampled else 0,
            cache_salt=salt,
            priority=priority,
            **params,
        )
        self.requests[message.request_id] = message
        self.core.add(message)

    @precondition(lambda self: self.core.has_work)
    @rule(steps=st.integers(1, 6))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            collect(self.core.step(), self.outcomes)
            check(self.core)

    @precondition(lambda self: self.core.has_work)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        alive = [name for name in self.requests if name in self.core._requests]
        if alive:
            name = data.draw(st.sampled_from(alive))
            self.core.abort([name])
            self.aborted.add(name)

    @rule()
    def reset_cache(self) -> None:
        self.core.reset_prefix_cache()

    @invariant()
    def sound(self) -> None:
        if hasattr(self, "core"):
            check(self.core)

    def teardown(self) -> None:
        if not hasattr(self, "core"):
            return
        steps = 0
        while self.core.has_work:
            collect(self.core.step(), self.outcomes)
            check(self.core)
            steps += 1
            assert steps < 5000, "the engine makes no progress"
        check_empty(self.core)
        assert set(self.outcomes) == set(self.requests)
        context = self.core.limits.max_model_len
        for name, message in self.requests.items():
            outcome = self.outcomes[name]
            if name in self.aborted:
                assert outcome.reason == "abort"
            else:
                assert outcome.reason in expected_ends(message)
            if outcome.reason == "error":
                assert outcome.tokens == []
                continue
            tokens, reason = alone(message, self.groups, context)
            if name in self.aborted:
                assert outcome.tokens == tokens[: len(outcome.tokens)]
            else:
                assert (outcome.tokens, outcome.reason) == (tokens, reason)


EngineMachine.TestCase.settings = settings(max_examples=120, stateful_step_count=30, deadline=None)
TestEngine = EngineMachine.TestCase


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize("groups", [(KVGroup(None, 40),), (KVGroup(None, 42), KVGroup(16, 24))])
def test_soak(groups: tuple[KVGroup, ...], ahead: int) -> None:
    """500 requests of random lengths, aborts and shared prefixes on a pool far too small."""
    rng = random.Random(7)
    runner = FakeRunner(list(groups), max_model_len=150, ahead=ahead)
    core = EngineCore(runner, config(max_num_seqs=16, max_num_batched_tokens=48), bounded=False)
    prefixes = [[rng.randrange(1, 90) for _ in range(rng.randrange(0, 60))] for _ in range(6)]
    requests: dict[str, EngineRequest] = {}
    aborted: set[str] = set()
    outcomes: dict[str, Any] = {}
    while len(requests) < 500 or core.has_work:
        for _ in range(rng.randrange(4) if len(requests) < 500 else 0):
            tail = [rng.randrange(1, 90) for _ in range(rng.randrange(1, 40))]
            name = str(len(requests))
            message = request(
                name,
                rng.choice(prefixes) + tail,
                max_tokens=rng.randrange(1, 40),
                temperature=rng.choice([0.0, 1.0]),
                seed=len(requests),
                ignore_eos=rng.random() < 0.5,
            )
            requests[name] = message
            core.add(message)
        collect(core.step(), outcomes)
        check(core)
        if rng.random() < 0.06 and core._requests:
            name = rng.choice(list(core._requests))
            core.abort([name])
            aborted.add(name)
    check_empty(core)
    assert len(outcomes) == len(requests) >= 500
    assert core.stats().preemptions > 20
    assert len(aborted) > 20
    for name, message in requests.items():
        tokens, reason = alone(message, groups, 150)
        if name in aborted:
            assert outcomes[name].reason == "abort"
            assert outcomes[name].tokens == tokens[: len(outcomes[name].tokens)]
        else:
            assert (outcomes[name].tokens, outcomes[name].reason) == (tokens, reason)
