"""Who is served when: fairness, priority, preemption, the length of steps."""

from __future__ import annotations

import pytest
from harness import FULL, alone, check, check_empty, collect, make_core, request, run

from quire.engine.admission import QueueBound
from quire.engine.pace import FIRST_CHUNK, MAX_STEP_S, MIN_CHUNK, TARGET_S, Pace
from quire.engine.plan import KVGroup


def test_a_step_keeps_to_its_budget_and_decodes_come_first() -> None:
    core, runner = make_core(max_num_batched_tokens=16, max_num_seqs=4)
    for i in range(3):
        core.add(request(str(i), [i + 1] * 3, max_tokens=30, ignore_eos=True))
    core.step()
    core.add(request("long", [9] * 100, max_tokens=2, ignore_eos=True))
    while core.step():
        work = runner.steps[-1].work
        assert sum(w.count for w in work) <= 16
        if "0" in core._requests:
            assert sum(w.sample and w.count == 1 for w in work) >= 3


def test_short_prompts_overtake_a_long_one_which_goes_on() -> None:
    core, _ = make_core([KVGroup(None, 400)], context=1600, max_num_batched_tokens=64)
    core.add(request("long", [1] * 1500, max_tokens=1))
    core.step()
    outcomes = {}
    for i in range(20):
        core.add(request(f"short{i}", [i + 2] * 20, max_tokens=1))
        before = next(r.computed for r in core.scheduler.running if r.id == "long")
        collect(core.step(), outcomes)
        assert outcomes[f"short{i}"].reason, "a short prompt waits for a long one"
        long = next(r for r in core.scheduler.running if r.id == "long")
        assert long.computed - before == 44
    run(core)


def test_a_stream_of_shorter_prompts_does_not_starve_a_longer_one() -> None:
    core, _ = make_core([KVGroup(None, 400)], context=1600, max_num_batched_tokens=32, max_num_seqs=3)
    core.add(request("long", [1] * 600, max_tokens=1))
    for i in range(3):
        core.add(request(f"first{i}", [i + 50] * 40, max_tokens=3))
    outcomes = {}
    for i in range(60):
        core.add(request(str(i), [i % 40 + 2] * 40, max_tokens=3))
        collect(core.step(), outcomes)
    assert outcomes["long"].reason == "length"


def test_a_middling_prompt_is_not_stuck_behind_long_ones() -> None:
    core, _ = make_core([KVGroup(None, 1200)], context=1600, max_num_batched_tokens=64)
    for i in range(3):
        core.add(request(f"long{i}", [i + 1] * 1500, max_tokens=1))
    core.step()
    core.step()
    core.add(request("middling", [9] * 200, max_tokens=1))
    outcomes = {}
    for _ in range(8):
        collect(core.step(), outcomes)
    assert outcomes["middling"].reason == "length"


def test_equal_prompts_are_served_in_order_of_arrival() -> None:
    core, _ = make_core(max_num_seqs=2)
    for i in range(8):
        core.add(request(str(i), [i + 1] * 10, max_tokens=2, ignore_eos=True))
    assert list(run(core)) == [str(i) for i in range(8)]


def test_priority_orders_admission_and_is_ignored_under_fcfs() -> None:
    for policy, expected in (("priority", ["c", "b", "a", "d"]), ("fcfs", ["a", "b", "c", "d"])):
        core, _ = make_core(max_num_seqs=1, scheduling_policy=policy)
        for name, priority in (("a", 1), ("b", 0), ("c", -5), ("d", 1)):
            core.add(request(name, [1, 2, 3], priority=priority, max_tokens=2, ignore_eos=True))
        assert list(run(core)) == expected


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_the_last_is_preempted_and_comes_back_first(policy: str) -> None:
    core, _ = make_core([KVGroup(None, 8)], scheduling_policy=policy)
    requests = [request(n, [i + 1] * 4, priority=-i, max_tokens=20, ignore_eos=True) for i, n in enumerate("abc")]
    for r in requests:
        core.add(r)
    order = []

    def watch() -> None:
        check(core)
        order.append(["".join(r.id for r in core.scheduler.running), "".join(r.id for r in core.scheduler.waiting)])

    outcomes = run(core, watch)
    assert core.stats().preemptions > 0
    survivor = "a" if policy == "fcfs" else "c"
    assert all(survivor in running for running, _ in order[: len(order) // 3])
    for r in requests:
        assert outcomes[r.request_id].tokens == alone(r, FULL)[0]
    check_empty(core)


def test_no_admission_in_a_step_that_preempted() -> None:
    core, runner = make_core([KVGroup(None, 9)])
    for i in range(4):
        core.add(request(str(i), [i + 1] * 6, max_tokens=14, ignore_eos=True))
    preemptions = 0
    while core.has_work:
        core.step()
        if core.scheduler.preemptions > preemptions:
            preemptions = core.scheduler.preemptions
            assert not runner.steps[-1].admit
    assert preemptions


def test_a_prompt_that_does_not_fit_now_waits_and_keeps_its_place() -> None:
    core, _ = make_core([KVGroup(None, 12)])
    core.add(request("a", [1] * 30, max_tokens=10, ignore_eos=True))
    core.step()
    core.add(request("big", [2] * 30, max_tokens=1))
    core.add(request("small", [3] * 2, max_tokens=1))
    outcomes = run(core)
    assert list(outcomes) == ["a", "big", "small"]
    assert core.stats().preemptions == 0


def test_admission_spares_a_page_for_each_running_request() -> None:
    core, _ = make_core([KVGroup(None, 9)])
    for i in range(2):
        core.add(request(str(i), [i + 1] * 8, max_tokens=8, ignore_eos=True))
    core.step()
    core.add(request("next", [9] * 9, max_tokens=6, ignore_eos=True))
    run(core)
    assert core.stats().preemptions == 0


def test_windows_bound_the_pages_of_a_long_request() -> None:
    groups = (KVGroup(None, 80), KVGroup(8, 8))
    core, _ = make_core(groups, max_num_batched_tokens=16)
    requests = [request(str(i), [i + 1] * (30 + 40 * i), max_tokens=30, ignore_eos=True) for i in range(4)]
    for r in requests:
        core.add(r)
    outcomes = run(core, lambda: check(core))
    for r in requests:
        assert outcomes[r.request_id].tokens == alone(r, groups)[0]
    check_empty(core)


# The length of steps


class Machine:
    """Steps take ``decode_s`` and ``token_s`` for each prompt token."""

    def __init__(self, decode_s: float, token_s: float, target_s: float | None) -> None:
        self.decode_s, self.token_s = decode_s, token_s
        self.pace = Pace(target_s)

    def step(self, decodes: int, wanted: int) -> float:
        tokens = min(wanted, self.pace.chunk(decodes))
        seconds = (self.decode_s if decodes else 0) + self.token_s * tokens
        self.pace.observe(decodes, tokens, seconds)
        return seconds


def test_chunks_keep_steps_to_the_target_while_others_decode() -> None:
    machine = Machine(0.01, 0.001, target_s=0.1)
    for _ in range(5):
        machine.step(8, 0)
    machine.step(8, 10_000)
    assert machine.step(8, 10_000) == pytest.approx(0.1, rel=0.15)
    assert machine.step(0, 10_000) == pytest.approx(MAX_STEP_S, rel=0.15)


@pytest.mark.parametrize(("decode_s", "expected"), [(0.01, TARGET_S), (0.3, 1.2), (0.9, MAX_STEP_S)])
def test_without_a_target_others_still_go_on(decode_s: float, expected: float) -> None:
    machine = Machine(decode_s, 0.001, target_s=None)
    for _ in range(3):
        machine.step(8, 0)
    machine.step(8, 10_000)
    assert machine.step(8, 10_000) == pytest.approx(expected, rel=0.1)


def test_no_step_is_so_long_that_it_looks_like_a_stall() -> None:
    machine = Machine(0.1, 0.05, target_s=None)
    assert machine.pace.chunk(0) == FIRST_CHUNK
    machine.step(0, 10_000)
    for _ in range(10):
        assert machine.step(4, 10_000) <= MAX_STEP_S * 1.1


def test_a_slow_first_step_is_soon_forgotten() -> None:
    machine = Machine(0.0, 0.001, target_s=None)
    machine.pace.observe(0, FIRST_CHUNK, 60.0)
    assert machine.pace.chunk(0) == MIN_CHUNK
    machine.step(0, 10_000)
    assert machine.step(0, 10_000) == pytest.approx(MAX_STEP_S, rel=0.15)


def test_retry_after_follows_the_drain_rate() -> None:
    now = [0.0]
    bound = QueueBound(10, 1000, lambda: now[0])
    assert bound.retry_after(50) == 5
    for _ in range(20):
        now[0] += 0.5
        bound.finished()
    assert bound.retry_after(20) == pytest.approx(10, rel=0.1)
    assert bound.retry_after(1) == 1
    assert bound.retry_after(10**6) == 120
