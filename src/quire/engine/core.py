"""The engine's loop body: schedule a step, run it, hand out its tokens."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import msgspec

from quire.config.engine import EngineConfig
from quire.engine.admission import Limits, QueueBound, check_request
from quire.engine.errors import EngineFault
from quire.engine.messages import EngineRequest, EngineStats, FinishReason, TokenDelta
from quire.engine.plan import Flight, Landed, Runner, SlotResult, StepPlan
from quire.engine.request import Request
from quire.engine.scheduler import Item, Scheduler, Step
from quire.kv.groups import PageGroups
from quire.params import ParameterError

log = logging.getLogger("quire.engine")

_FAULTS_IN_A_ROW = 5  # steps in which nothing at all succeeded: the runner is past use
_FAILED = "The request failed inside the engine."


@dataclass(frozen=True)
class _Flight:
    """A step in flight."""

    step: Step
    flight: Flight
    started: float

    @property
    def over(self) -> bool:
        return isinstance(self.flight, Landed)


class EngineCore:
    """Requests in, token deltas out, one step at a time. Not thread-safe; ``step`` blocks for the step's time."""

    def __init__(
        self,
        runner: Runner,
        config: EngineConfig,
        *,
        bounded: bool = True,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """``bounded=False`` queues whatever comes, for callers that hold all their requests anyway."""
        self.runner = runner
        self.kv = PageGroups(runner.groups, runner.page_size)
        self.limits = Limits(
            max_model_len=min(runner.max_model_len, self.kv.capacity()),
            vocab_size=runner.vocab_size,
            max_logprobs=config.max_logprobs,
        )
        self.scheduler = Scheduler(
            self.kv,
            config,
            config.max_num_seqs or runner.slots,
            config.max_num_batched_tokens or runner.step_tokens,
            runner.vocab_size,
            self.limits.max_model_len,
        )
        self.queue = QueueBound(config.max_num_queued_reqs, config.max_num_queued_tokens)
        self._bounded = bounded
        self._clock = clock
        self._requests: dict[str, Request] = {}
        self._flights: deque[_Flight] = deque()
        self._landed = 0.0  # when the last one did, by the clock
        self._deltas: list[TokenDelta] = []  # endings since the last step
        self._faults = 0
        self._counts = EngineStats(total_pages=self.kv.total_pages)

    @property
    def has_work(self) -> bool:
        return bool(self._requests or self._deltas or self._flights)

    def add(self, message: EngineRequest) -> None:
        """Queue a request. Raises ``ParameterError`` when it can never run, ``QueueFull`` when too much waits."""
        check_request(message, self.limits)
        if message.request_id in self._requests:
            raise ParameterError("request_id", "A request with this id is running.")
        scheduler = self.scheduler
        if self._bounded:
            try:
                self.queue.check(
                    len(scheduler.waiting),
                    scheduler.waiting_tokens,
                    scheduler.free_slots,
                    len(message.prompt_token_ids),
                )
            except Exception:
                self._counts.rejected += 1
                raise
        request = scheduler.add(message)
        self._requests[request.id] = request
        if len(request.tokens) >= request.max_len:
            self._end(request, "length")

    def abort(self, request_ids: Iterable[str]) -> None:
        """Cancel requests; slots and pages are free at once. Unknown ids are ignored."""
        for request_id in request_ids:
            request = self._requests.get(request_id)
            if request is not None:
                self._end(request, "abort")

    def reset_prefix_cache(self) -> None:
        """Forget every cached page that no request uses."""
        self.kv.reset()

    def stats(self) -> EngineStats:
        """Counters and gauges of now."""
        counts, scheduler = msgspec.structs.replace(self._counts, finished=self._counts.finished.copy()), self.scheduler
        counts.running = len(scheduler.running)
        counts.waiting = len(scheduler.waiting)
        counts.kv_cache_usage = self.kv.usage
        counts.prompt_tokens = scheduler.prompt_tokens
        counts.cached_tokens = scheduler.cached_tokens
        counts.preemptions = scheduler.preemptions
        counts.free_pages = self.kv.free_pages
        return counts

    def step(self) -> list[TokenDelta]:
        """Begin a step, end those that are due, and return what that added, with the endings since the last call.

        Raises ``EngineFault`` when the runner fails whatever it is given.
        """
        plan, step = self.scheduler.schedule()
        if plan.work:
            self._launch(plan, step)
        while self._flights and (len(self._flights) > self.runner.ahead or not plan.work or self._flights[0].over):
            self._land(self._flights.popleft())
        deltas, self._deltas = self._deltas, []
        return deltas

    # Running a step

    def _launch(self, plan: StepPlan, step: Step) -> None:
        started, scheduled = self._clock(), time.time()
        try:
            flight = self._submit(plan)
        except BaseException:  # Ctrl-C too: what the step should have done is undone
            self._undo(step)
            raise
        for request, item in step.items.items():
            if request.scheduled_time is None and not item.void:
                request.scheduled_time = scheduled
        self.scheduler.launch(step)
        self._flights.append(_Flight(step, flight, started))

    def _land(self, flight: _Flight) -> None:
        try:
            results = {result.slot: result for result in flight.flight.land()}
        except BaseException as error:
            self._undo(flight.step)
            if isinstance(error, Exception):
                raise EngineFault("The device failed in the middle of a step.") from error
            raise
        now = self._clock()
        self.scheduler.pace.observe(
            flight.step.decodes, flight.step.prompt_tokens, now - max(flight.started, self._landed)
        )
        self._landed = now
        self.scheduler.land(flight.step)
        self._commit(flight.step, results)

    def _submit(self, plan: StepPlan) -> Flight:
        try:
            flight = self.runner.submit(plan)
        except Exception:
            log.exception("A step failed; its requests are run again one by one.")
            while self._flights:
                self._land(self._flights.popleft())
            return Landed(self._run_apart(plan))
        self._faults = 0
        return flight

    def _run_apart(self, plan: StepPlan) -> list[SlotResult]:
        """Run a step's items one a plan, so that only the guilty fail."""
        results: list[SlotResult] = []
        admitted = {admit.slot for admit in plan.admit}
        release = [slot for slot in plan.release if slot not in admitted]
        failures = 0
        for work in plan.work:
            apart = StepPlan(
                release=release,
                admit=[admit for admit in plan.admit if admit.slot == work.slot],
                pages=[grant for grant in plan.pages if grant.slot == work.slot],
                work=[work],
            )
            release = []
            try:
                results += self.runner.submit(apart).land()
            except Exception:
                log.exception("A request failed in the engine.")
                results.append(SlotResult(slot=work.slot, error=_FAILED))
                failures += 1
        self._faults = self._faults + 1 if failures == len(plan.work) else 0
        if self._faults >= _FAULTS_IN_A_ROW:
            raise EngineFault("The model runner fails on every request.")
        return results

    def _undo(self, step: Step) -> None:
        self.scheduler.land(step)
        for item in step.items.values():
            self._restart(item)

    def _restart(self, item: Item) -> None:
        if not item.void:
            self.scheduler.discard(item)
            self.scheduler.preempt(item.request)

    def _commit(self, step: Step, results: dict[int, SlotResult]) -> None:
        now = time.time()
        counts = self._counts
        counts.steps += 1
        failed: set[Request] = set()
        for request, item in step.items.items():
            if item.void:
                continue
            result = results.get(request.slot)
            if failed and not failed.isdisjoint(request.depends_on):
                failed.add(request)
                self._restart(item)
            elif error := _error_of(item, result):
                failed.add(request)
                self.scheduler.discard(item)
                self._end(request, "error", error)
            else:
                counts.computed_tokens += item.count
                if request.depends_on:
                    request.depends_on = []
                if result is not None:
                    self._take(request, result, now)
        if failed:
            self._restart_sharers(failed)

    def _restart_sharers(self, failed: set[Request]) -> None:
        """Requests in flight that share pages of those that failed start again without them."""
        for flight in self._flights:
            for request, item in flight.step.items.items():
                if not failed.isdisjoint(request.depends_on):
                    failed.add(request)
                    self._restart(item)

    def _take(self, request: Request, result: SlotResult, now: float) -> None:
        """What a step gave for one request."""
        if result.prompt_logprobs and request.prompt_logprobs is not None:
            request.prompt_logprobs += result.prompt_logprobs
        token = result.token_id
        if token is None:
            return
        request.tokens.append(token)
        request.pending -= 1
        self._counts.generation_tokens += 1
        delta = TokenDelta(request.id, [token])
        if result.logprobs is not None:
            delta.logprobs = [result.logprobs]
        if request.first_token_time is None:
            request.first_token_time = now
            _add_facts(delta, request)
        if request.prompt_logprobs is not None:
            delta.prompt_logprobs, request.prompt_logprobs = request.prompt_logprobs, None
        reason, delta.stop_reason = request.ending(token)
        if reason is not None:
            self._finish(request, delta, reason)
        self._deltas.append(delta)

    # Endings

    def _end(self, request: Request, reason: FinishReason, error: str | None = None) -> None:
        """End a request without a further token."""
        delta = TokenDelta(request.id, error=error)
        self._finish(request, delta, reason)
        self._deltas.append(delta)

    def _finish(self, request: Request, delta: TokenDelta, reason: FinishReason) -> None:
        delta.finish_reason = reason
        _add_facts(delta, request)
        self.scheduler.remove(request)
        del self._requests[request.id]
        self.queue.finished()
        finished = self._counts.finished
        finished[reason] = finished.get(reason, 0) + 1


def _error_of(item: Item, result: SlotResult | None) -> str | None:
    """Why the item failed, if it did. A runner that samples where it should not, or not where it should, failed."""
    if result is None:
        return _FAILED if item.sample else None
    if result.error is not None:
        return result.error or _FAILED
    return _FAILED if (result.token_id is None) == item.sample else None


def _add_facts(delta: TokenDelta, request: Request) -> None:
    delta.num_cached_tokens = request.cached
    delta.scheduled_time = request.scheduled_time
    delta.first_token_time = request.first_token_time
