"""The engine's behaviour, case by case, with a fake model."""

from __future__ import annotations

import pytest
from fake_runner import EOS, ERRS, RAISES, VOCAB, FakeFault, FakeRunner
from harness import FULL, alone, check, check_empty, config, make_core, request, run

from quire.engine.core import EngineCore
from quire.engine.errors import EngineFault, QueueFull
from quire.engine.plan import KVGroup, SlotResult, StepPlan
from quire.params import ParameterError

WINDOWED = (KVGroup(None, 256), KVGroup(8, 256))


@pytest.mark.parametrize("groups", [FULL, WINDOWED, (KVGroup(6, 64),)])
@pytest.mark.parametrize("budget", [8, 64])
def test_batch_gives_what_each_gives_alone(groups: tuple[KVGroup, ...], budget: int) -> None:
    core, _ = make_core(groups, max_num_batched_tokens=budget)
    requests = [request(str(i), [1 + i % 3] * (7 * i + 1), max_tokens=12) for i in range(12)]
    for r in requests:
        core.add(r)
    outcomes = run(core, lambda: check(core))
    for r in requests:
        assert (outcomes[r.request_id].tokens, outcomes[r.request_id].reason) == alone(r, groups)
    check_empty(core)


def test_shared_prefix_of_requests_admitted_together_is_computed_once() -> None:
    core, runner = make_core([KVGroup(None, 400)], context=600, max_num_seqs=32, max_num_batched_tokens=1024)
    prefix = [i % 89 + 1 for i in range(512)]
    tails = [[i + 1, i + 2, i + 3] for i in range(32)]
    requests = [request(str(i), prefix + tail, max_tokens=1) for i, tail in enumerate(tails)]
    for r in requests:
        core.add(r)
    outcomes = run(core)
    assert runner.computed == core.stats().computed_tokens == 512 + 32 * 3
    assert core.stats().cached_tokens == 31 * 512
    assert [o.last.num_cached_tokens for o in outcomes.values()].count(512) == 31
    assert all(outcomes[r.request_id].tokens == alone(r, FULL, 600)[0] for r in requests)


def test_shared_prefix_longer_than_a_step_is_computed_once() -> None:
    core, runner = make_core(max_num_batched_tokens=40)
    prefix = [i % 89 + 1 for i in range(128)]
    for i in range(6):
        core.add(request(str(i), [*prefix, i], max_tokens=1))
    run(core, lambda: check(core))
    assert runner.computed == 128 + 6


def test_shorter_requests_wait_for_a_prefix_that_a_longer_one_computes() -> None:
    core, runner = make_core(max_num_batched_tokens=40)
    prefix = [i % 89 + 1 for i in range(128)]
    core.add(request("long", prefix + [3] * 90, max_tokens=1))
    for i in range(5):
        core.add(request(str(i), [*prefix, i], max_tokens=1))
    run(core, lambda: check(core))
    assert runner.computed == 128 + 90 + 5


@pytest.mark.parametrize("how", ["abort", "preempt"])
def test_nobody_waits_for_a_prefix_whose_request_is_gone(how: str) -> None:
    core, _ = make_core(max_num_batched_tokens=16)
    prefix = [i % 89 + 1 for i in range(64)]
    core.add(request("first", prefix + [3] * 30))
    waits = request("waits", [*prefix, 7])
    core.add(waits)
    core.step()
    first = core.scheduler.running[0]
    assert [r.id for r in core.scheduler.waiting] == ["waits"]
    if how == "abort":
        core.abort(["first"])
    else:
        core.scheduler.preempt(first)
    assert run(core, lambda: check(core))["waits"].tokens == alone(waits, FULL)[0]


def test_full_hit_computes_the_last_page_only() -> None:
    core, runner = make_core()
    for request_id in ("a", "b"):
        core.add(request(request_id, [1, 2, 3, 4, 5, 6, 7, 8], max_tokens=1))
        run(core)
    assert runner.computed == 8 + 4


def test_tenants_do_not_share() -> None:
    core, runner = make_core()
    for salt in ("a", "b"):
        core.add(request(salt, range(1, 30), cache_salt=salt, max_tokens=1))
    assert {o.last.num_cached_tokens for o in run(core).values()} == {0}
    assert runner.computed == 2 * 29


def test_no_prefix_caching() -> None:
    core, runner = make_core(enable_prefix_caching=False)
    for i in range(3):
        core.add(request(str(i), range(1, 30), max_tokens=1))
    run(core)
    assert runner.computed == 3 * 29


def test_reset_forgets_cached_pages() -> None:
    core, runner = make_core()
    core.add(request("a", range(1, 30), max_tokens=1))
    run(core)
    core.reset_prefix_cache()
    core.add(request("b", range(1, 30), max_tokens=1))
    run(core)
    assert runner.computed == 2 * 29


def test_generated_tokens_are_cached_for_the_next_turn() -> None:
    core, runner = make_core()
    core.add(request("a", range(1, 10), max_tokens=20, ignore_eos=True))
    answer = run(core)["a"].tokens
    before = runner.computed
    core.add(request("b", [*range(1, 10), *answer, 3], max_tokens=1))
    assert run(core)["b"].last.num_cached_tokens == 28
    assert runner.computed - before == 30 - 28


# Endings


def outcome_of(core, message):
    core.add(message)
    return run(core, lambda: check(core))[message.request_id]


def long_output(prompt: list[int]) -> list[int]:
    return alone(request("x", prompt, max_tokens=40, ignore_eos=True), FULL)[0]


def prompt_that_gives(token: int) -> tuple[list[int], int]:
    """A prompt whose output has ``token`` for the first time at index >= 2, and that index."""
    for first in range(1, 80):
        output = long_output([first, 7])
        if token in output[2:] and token not in output[:2]:
            return [first, 7], output.index(token)
    raise AssertionError("no such prompt")


def test_stops_at_eos_unless_told_not_to() -> None:
    prompt, index = prompt_that_gives(EOS)
    core, _ = make_core()
    outcome = outcome_of(core, request("a", prompt, max_tokens=40))
    assert (len(outcome.tokens), outcome.reason, outcome.last.stop_reason) == (index + 1, "stop", None)
    outcome = outcome_of(core, request("b", prompt, max_tokens=40, ignore_eos=True))
    assert (len(outcome.tokens), outcome.reason) == (40, "length")
    outcome = outcome_of(core, request("c", prompt, max_tokens=40, ignore_eos=True, stop_token_ids=[EOS]))
    assert (len(outcome.tokens), outcome.last.stop_reason) == (index + 1, EOS)


def test_stop_token_ids() -> None:
    output = long_output([3, 4])
    core, _ = make_core()
    outcome = outcome_of(core, request("a", [3, 4], max_tokens=40, ignore_eos=True, stop_token_ids=[output[5], 89]))
    index = output.index(output[5])
    assert (outcome.tokens, outcome.reason, outcome.last.stop_reason) == (output[: index + 1], "stop", output[5])


def test_min_tokens_blocks_every_end() -> None:
    prompt, index = prompt_that_gives(EOS)
    core, runner = make_core()
    outcome = outcome_of(core, request("a", prompt, max_tokens=40, min_tokens=index + 3, stop_token_ids=[5]))
    assert len(outcome.tokens) >= index + 3
    assert not {EOS, 5} & set(outcome.tokens[: index + 3])
    assert runner.steps[0].admit[0].stop_token_ids == [EOS, 5]
    core.add(request("b", prompt, stop_token_ids=[5]))
    core.step()
    assert runner.steps[-1].admit[0].stop_token_ids == []


def test_context_ends_a_request_without_limit() -> None:
    core, _ = make_core(context=32)
    outcome = outcome_of(core, request("a", [1, 2, 3], max_tokens=None, ignore_eos=True))
    assert (len(outcome.tokens), outcome.reason) == (29, "length")


def test_context_is_what_the_pool_can_hold() -> None:
    core, _ = make_core([KVGroup(None, 5)])
    assert core.limits.max_model_len == 20
    outcome = outcome_of(core, request("a", [1, 2, 3], max_tokens=100, ignore_eos=True))
    assert (len(outcome.tokens), outcome.reason) == (17, "length")


def test_going_on_after_tokens_generated_before() -> None:
    whole = outcome_of(make_core()[0], request("a", [9, 8, 7], max_tokens=20, temperature=1.0, seed=5, ignore_eos=True))
    core, runner = make_core()
    rest = outcome_of(
        core,
        request(
            "a", [9, 8, 7], max_tokens=20, temperature=1.0, seed=5, ignore_eos=True, output_token_ids=whole.tokens[:6]
        ),
    )
    assert rest.tokens == whole.tokens[6:]
    assert runner.steps[0].admit[0].prompt_len == 3
    done = outcome_of(core, request("b", [9, 8, 7], max_tokens=6, output_token_ids=whole.tokens[:6]))
    assert (done.tokens, done.reason) == ([], "length")


def test_abort_frees_everything_at_once() -> None:
    core, _ = make_core(max_num_seqs=2, max_num_batched_tokens=16)
    for i in range(4):
        core.add(request(str(i), [i + 1] * 40, max_tokens=50))
    core.step()
    assert core.scheduler.running
    assert core.scheduler.waiting
    core.abort(["0", "1", "2", "3", "never seen"])
    check(core)
    assert core.kv.free_pages == core.kv.total_pages
    assert {d.request_id: d.finish_reason for d in core.step()} == dict.fromkeys("0123", "abort")
    check_empty(core)
    core.abort(["0"])
    assert core.step() == []


def test_facts_come_with_the_first_and_the_last_delta() -> None:
    core, _ = make_core()
    outcome = outcome_of(core, request("a", range(1, 10), max_tokens=3, ignore_eos=True, logprobs=2))
    first, middle, last = outcome.deltas
    assert first.scheduled_time is not None
    assert first.first_token_time is not None
    assert first.scheduled_time <= first.first_token_time
    assert (middle.scheduled_time, last.scheduled_time) == (None, first.scheduled_time)
    assert all(d.logprobs is not None and d.logprobs[0].token_ids == d.token_ids for d in outcome.deltas)


# Prompt logprobs


@pytest.mark.parametrize("budget", [8, 64])
def test_prompt_logprobs_are_gathered_over_chunks_and_skip_the_cache(budget: int) -> None:
    core, runner = make_core(max_num_batched_tokens=budget)
    prompt = list(range(1, 31))
    outcome_of(core, request("a", prompt, max_tokens=1))
    before = runner.computed
    outcome = outcome_of(core, request("b", prompt, max_tokens=2, prompt_logprobs=0, ignore_eos=True))
    first = outcome.deltas[0].prompt_logprobs
    assert first is not None
    assert first[0] is None
    assert [entry.token_ids[0] for entry in first[1:] if entry] == prompt[1:]
    assert outcome.deltas[1].prompt_logprobs is None
    assert runner.computed - before == 31


def test_prompt_logprobs_survive_preemption() -> None:
    core, _ = make_core(max_num_batched_tokens=8)
    prompt = list(range(1, 31))
    core.add(request("a", prompt, max_tokens=6, prompt_logprobs=0, ignore_eos=True))
    core.step()
    core.scheduler.preempt(core.scheduler.running[0])
    deltas = [d for _ in range(6) for d in core.step()]
    core.scheduler.preempt(core.scheduler.running[0])
    deltas += run(core)["a"].deltas
    logprobs = [d.prompt_logprobs for d in deltas if d.prompt_logprobs is not None]
    assert [[e and e.token_ids[0] for e in entries] for entries in logprobs] == [[None, *prompt[1:]]]
    assert [t for d in deltas for t in d.token_ids] == alone(request("a", prompt, max_tokens=6, ignore_eos=True), FULL)[
        0
    ]


# Faults


@pytest.mark.parametrize("poison", [RAISES, ERRS])
@pytest.mark.parametrize("place", [0, 2, 4])
def test_only_the_guilty_fail(poison: int, place: int) -> None:
    core, _ = make_core()
    prompts = [[i + 1] * 10 for i in range(5)]
    prompts[place][5] = poison
    for i, prompt in enumerate(prompts):
        core.add(request(str(i), prompt))
    outcomes = run(core, lambda: check(core))
    for i, prompt in enumerate(prompts):
        if i == place:
            assert (outcomes[str(i)].tokens, outcomes[str(i)].reason) == ([], "error")
            assert outcomes[str(i)].last.error
        else:
            assert outcomes[str(i)].tokens == alone(request("x", prompt), FULL)[0]
    check_empty(core)


@pytest.mark.parametrize("poison", [RAISES, ERRS])
@pytest.mark.parametrize("groups", [FULL, WINDOWED])
def test_sharers_of_a_failed_request_are_run_again(poison: int, groups: tuple[KVGroup, ...]) -> None:
    core, _ = make_core(groups)
    prefix = list(range(1, 13))
    core.add(request("bad", [*prefix, poison]))
    sharers = [request(str(i), [*prefix, i]) for i in range(3)]
    for r in sharers:
        core.add(r)
    outcomes = run(core, lambda: check(core))
    assert outcomes["bad"].reason == "error"
    for r in sharers:
        assert outcomes[r.request_id].tokens == alone(r, groups)[0]
    again = request("again", [*prefix, 1])
    core.add(again)
    assert run(core)["again"].tokens == alone(again, groups)[0]


def test_running_requests_survive_a_newcomer_that_raises() -> None:
    core, _ = make_core()
    good = [request(str(i), [i + 1] * 6, max_tokens=12, ignore_eos=True) for i in range(3)]
    for r in good:
        core.add(r)
    first = core.step() + core.step()
    core.abort(["1"])
    core.add(request("bad", [RAISES, 1]))
    outcomes = run(core, lambda: check(core))
    for name in "02":
        tokens = [t for d in first if d.request_id == name for t in d.token_ids] + outcomes[name].tokens
        assert tokens == alone(good[int(name)], FULL)[0]
    assert (outcomes["1"].reason, outcomes["bad"].reason) == ("abort", "error")


def test_a_runner_past_use_ends_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    core, runner = make_core()

    def execute(plan: StepPlan) -> list[SlotResult]:
        raise FakeFault("device lost")

    monkeypatch.setattr(runner, "_execute", execute)
    for i in range(50):
        core.add(request(str(i), [1, 2]))
    with pytest.raises(EngineFault):
        run(core)


def test_a_step_is_planned_while_the_last_one_runs() -> None:
    runner = FakeRunner(list(FULL), ahead=1)
    core = EngineCore(runner, config())
    messages = [request(str(i), [i + 1] * 5, max_tokens=6, ignore_eos=True) for i in range(3)]
    for message in messages:
        core.add(message)
    assert core.step() == []  # the first step is on its way
    assert (len(runner.steps), runner.in_flight) == (1, 1)
    deltas = core.step()
    assert (len(runner.steps), runner.in_flight, len(deltas)) == (2, 1, 3)
    outcomes = run(core, lambda: check(core))
    for message in messages:
        first = [t for d in deltas if d.request_id == message.request_id for t in d.token_ids]
        assert first + outcomes[message.request_id].tokens == alone(message, FULL)[0]
    assert len(runner.steps) == 6  # no request was computed beyond its end
    check_empty(core)


def test_what_shares_pages_of_a_failure_in_flight_starts_again() -> None:
    runner = FakeRunner(list(FULL), ahead=1)
    core = EngineCore(runner, config(max_num_batched_tokens=64))
    core.add(request("bad", [5] * 16 + [ERRS]))
    core.step()
    good = request("good", [5] * 16 + [7])
    core.add(good)
    outcomes = run(core, lambda: check(core))
    assert outcomes["bad"].reason == "error"
    assert outcomes["good"].tokens == alone(good, FULL)[0]
    check_empty(core)


def test_a_result_that_is_missing_fails_its_request(monkeypatch: pytest.MonkeyPatch) -> None:
    core, runner = make_core()
    monkeypatch.setattr(runner, "_execute", lambda plan: [])
    assert outcome_of(core, request("a", [1, 2])).reason == "error"


@pytest.mark.parametrize("late", [False, True])
def test_an_interrupted_step_can_be_gone_on_from(monkeypatch: pytest.MonkeyPatch, late: bool) -> None:
    core, runner = make_core(max_num_batched_tokens=16)
    requests = [request(str(i), [5] * 20 + [i + 1] * 4, max_tokens=6, ignore_eos=True) for i in range(4)]
    for r in requests:
        core.add(r)
    deltas = core.step() + core.step()
    execute = runner._execute

    def interrupted(plan: StepPlan) -> list[SlotResult]:
        if late:
            execute(plan)
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "_execute", interrupted)
    with pytest.raises(KeyboardInterrupt):
        core.step()
    monkeypatch.setattr(runner, "_execute", execute)
    check(core)
    outcomes = run(core, lambda: check(core))
    for r in requests:
        tokens = [t for d in deltas if d.request_id == r.request_id for t in d.token_ids]
        assert tokens + outcomes[r.request_id].tokens == alone(r, FULL)[0]
    check_empty(core)


# Admission


def test_bad_requests_never_reach_the_runner() -> None:
    core, runner = make_core(context=64)
    bad = [
        (request("a", []), "prompt"),
        (request("a", [VOCAB]), "prompt"),
        (request("a", [-1]), "prompt"),
        (request("a", [True]), "prompt"),
        (request("a", [1] * 64), "prompt"),
        (request("a", [1], stop_token_ids=[VOCAB]), "stop_token_ids"),
        (request("a", [1], logit_bias={VOCAB: 1.0}), "logit_bias"),
        (request("a", [1], logprobs=21), "logprobs"),
        (request("a", [1], output_token_ids=[VOCAB]), "output_token_ids"),
        (request("a", [1] * 60, output_token_ids=[1] * 5), "output_token_ids"),
    ]
    words = request("a", [1])
    words.bad_words_token_ids = [[1], [VOCAB]]
    for message, param in [*bad, (words, "bad_words")]:
        with pytest.raises(ParameterError) as error:
            core.add(message)
        assert error.value.param == param
    assert not core.has_work
    assert not runner.steps
    with pytest.raises(ParameterError, match=r"has 64 tokens; the model's context is 64 tokens"):
        core.add(request("a", [1] * 64))


def test_ends_of_sequence_beyond_the_logits_do_not_reach_the_runner() -> None:
    core, runner = make_core()
    message = request("a", [1, 2], min_tokens=2)
    message.eos_token_ids = [EOS, VOCAB, 10**6]
    core.add(message)
    core.step()
    assert runner.steps[0].admit[0].stop_token_ids == [EOS]


def test_ids_in_use_are_refused() -> None:
    core, _ = make_core()
    core.add(request("a", [1]))
    with pytest.raises(ParameterError):
        core.add(request("a", [1]))


def test_queue_is_bounded_in_requests_and_tokens() -> None:
    core, _ = make_core(max_num_seqs=2, max_num_queued_reqs=3)
    for i in range(5):
        core.add(request(str(i), [1, 2]))
    with pytest.raises(QueueFull) as full:
        core.add(request("5", [1, 2]))
    assert 1 <= full.value.retry_after <= 120
    assert core.stats().rejected == 1
    run(core)
    core.add(request("5", [1, 2]))

    core, _ = make_core(max_num_seqs=2, max_num_queued_tokens=50)
    core.add(request("a", [1] * 100))
    with pytest.raises(QueueFull):
        core.add(request("b", [1] * 10))
