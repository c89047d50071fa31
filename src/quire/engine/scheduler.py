"""What runs next. One rule: each request has computed tokens chasing its known tokens; a step hands out a budget.

A step is dealt out in this order:

1. one token to each request that generates;
2. half of what is left to the oldest prompt in work (all it needs, if that fits);
3. prompts that fit into the rest, those in work first, then waiting ones in the order of the policy;
4. leftovers to what is still in work or did not fit, the shortest first.

So short prompts overtake a long one, which still goes on in every step.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from heapq import heappop, heappush
from operator import attrgetter, itemgetter

from quire.config.engine import EngineConfig
from quire.engine.messages import EngineRequest
from quire.engine.pace import MIN_CHUNK, Pace
from quire.engine.plan import PageGrant, SlotAdmit, SlotWork, StepPlan
from quire.engine.request import NO_SLOT, Request
from quire.kv.groups import Grant, PageGroups, SequencePages

_LOOKAHEAD = 64  # waiting requests that a step looks at
_order = attrgetter("order")


class Item:
    """One request's part in a step."""

    __slots__ = ("count", "epoch", "keyed", "request", "sample")

    def __init__(self, request: Request) -> None:
        self.request = request
        self.epoch = request.epoch
        self.count = 0
        self.keyed = request.pages.keyed  # before the step: later keys fall if the step fails
        self.sample = False

    @property
    def void(self) -> bool:
        """The request has left its slot since."""
        return self.epoch != self.request.epoch


class Step:
    """A step as it is dealt out: items in the order they were first served."""

    def __init__(self) -> None:
        self.items: dict[Request, Item] = {}
        self.admit: list[SlotAdmit] = []
        self.pages: list[PageGrant] = []
        self.room = 0  # tokens still to deal
        self.fresh: list[bytes] = []  # keys of pages that this step fills, before any other in flight
        self.filled: set[bytes] = set()  # all keys of pages that it fills, kept for groups of states
        self.decodes = 0
        self.prompt_tokens = 0
        self.preempted = False

    def served(self, request: Request) -> int:
        item = self.items.get(request)
        return item.count if item else 0

    def grant(self, request: Request, grants: Iterable[Grant]) -> None:
        self.pages += [PageGrant(request.slot, group, start, pages) for group, start, pages in grants]

    def plan(self, release: list[int]) -> StepPlan:
        work = [SlotWork(i.request.slot, i.count, i.sample) for i in self.items.values()]
        return StepPlan(release=release, admit=self.admit, pages=self.pages, work=work)


class Scheduler:
    """Owns the requests, their slots and their pages."""

    def __init__(
        self, kv: PageGroups, config: EngineConfig, slots: int, step_tokens: int, vocab_size: int, max_model_len: int
    ) -> None:
        self.kv = kv
        self.running: list[Request] = []  # in order; the last is preempted first
        self.waiting: list[Request] = []  # in order
        self.waiting_tokens = 0
        self.pace = Pace(config.max_step_ms / 1000 if config.max_step_ms else None)
        self.preemptions = 0
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self._vocab_size = vocab_size
        self._max_model_len = max_model_len
        self._budget = step_tokens
        self._by_priority = config.scheduling_policy == "priority"
        self._caching = config.enable_prefix_caching
        self.slots = min(slots, step_tokens)
        self._free_slots = list(range(self.slots))
        self._released: list[int] = []
        self._promised: dict[bytes, Request] = {}  # keys of prompt pages that a running request will fill
        self._fresh: dict[bytes, Request] = {}  # keys of pages that steps in flight fill, and who fills them
        self._arrivals = 0

    # Requests come and go

    @property
    def free_slots(self) -> int:
        return len(self._free_slots)

    def add(self, message: EngineRequest) -> Request:
        order = (message.priority if self._by_priority else 0, self._arrivals)
        self._arrivals += 1
        request = Request(message, order, self._max_model_len, len(self.kv.pools))
        self._enqueue(request)
        return request

    def remove(self, request: Request) -> None:
        """The request is over: its slot and pages are free now."""
        if request.slot == NO_SLOT:
            del self.waiting[bisect_left(self.waiting, request.order, key=_order)]
            self.waiting_tokens -= request.prompt_len
        else:
            self._leave(request)

    def preempt(self, request: Request) -> None:
        """Back to the queue, before all that came later; what was computed stays only in the prefix cache."""
        self._leave(request)
        request.restart()
        self.preemptions += 1
        self._enqueue(request)

    def _enqueue(self, request: Request) -> None:
        insort(self.waiting, request, key=_order)
        self.waiting_tokens += request.prompt_len

    def _leave(self, request: Request) -> None:
        self.running.remove(request)
        request.epoch += 1
        self._unpromise(request)
        self.kv.free(request.pages)
        request.pages = SequencePages(len(self.kv.pools))
        heappush(self._free_slots, request.slot)
        self._released.append(request.slot)

    # A step

    def schedule(self) -> tuple[StepPlan, Step]:
        """Deal out one step. A plan without work: nothing can run, or all that could was preempted."""
        step = Step()
        step.room = self._budget
        prompts = self._decode(step)
        step.room = min(step.room, self.pace.chunk(step.decodes))
        self._prefill(step, prompts)
        while not step.items and not all(request.at_end for request in self.running):
            # Prompts in work hold each other's pages (sliding windows grow as they go): the last gives way.
            self._preempt_last(step)
            self._prefill(step, self.running.copy())
        plan = step.plan(self._released)
        self._released = []
        return plan, step

    def launch(self, step: Step) -> None:
        """The step is on its way: count it as done."""
        for request, item in step.items.items():
            if not item.void:
                request.computed += item.count
                request.pending += item.sample

    def land(self, step: Step) -> None:
        """The step is done, or will never be: nobody needs to wait for its pages any more."""
        for key in step.fresh:
            self._fresh.pop(key, None)

    def discard(self, item: Item) -> None:
        """The item was not computed: nobody may find the pages it should have filled."""
        request = item.request
        self.kv.unregister(request.pages, request.keys, item.keyed)

    def _decode(self, step: Step) -> list[Request]:
        """One token to each request that has just one to compute; returns the others."""
        prompts: list[Request] = []
        index = 0
        while index < len(self.running):
            request = self.running[index]
            index += 1
            if request.at_end:
                continue
            if request.remaining != 1:
                prompts.append(request)
            elif request.computed < request.capacity or self._make_room(step, request):
                self._serve(step, request, 1)
                step.decodes += 1
        return prompts

    def _make_room(self, step: Step, request: Request) -> bool:
        """Get the page for the request's next token, from those who came last if none is free."""
        self.kv.leave_window(request.pages, request.computed)
        while (grants := self.kv.grow(request.pages, request.computed + 1)) is None:
            if self._preempt_last(step) is request:
                return False
        step.grant(request, grants)
        request.capacity = self.kv.capacity_of(request.pages)
        return True

    def _preempt_last(self, step: Step) -> Request:
        victim = self.running[-1]
        self.preempt(victim)
        step.preempted = True
        return victim

    def _prefill(self, step: Step, prompts: list[Request]) -> None:
        """Deal ``step.room`` tokens to ``prompts``, which are in work, and to waiting requests."""
        admitting = bool(self._free_slots) and not step.preempted
        if admitting and self.waiting and not (prompts and prompts[0].order < self.waiting[0].order):
            oldest = self.waiting[0]
            hit = self._hit(step, oldest)
            if hit is not None:
                admitting = self._admit(step, oldest, hit)
                if admitting:
                    prompts.insert(0, oldest)
        if prompts:
            self._advance(step, prompts[0], _share(prompts[0].remaining, step.room))
            for request in sorted(prompts[1:], key=attrgetter("remaining")):
                if request.remaining <= step.room:
                    self._advance(step, request, request.remaining)
        too_long = self._admit_fitting(step, prompts) if admitting else []
        self._deal_leftovers(step, prompts, too_long)

    def _admit_fitting(self, step: Step, prompts: list[Request]) -> list[Request]:
        """Admit waiting requests whose prompt fits into this step, and return those too long for that."""
        too_long: list[Request] = []
        for request in self.waiting[:_LOOKAHEAD]:
            if step.room <= 0 or not self._free_slots:
                break
            hit = self._hit(step, request)
            if hit is None:
                continue
            if request.remaining - hit * self.kv.page_size > step.room:
                too_long.append(request)
                continue
            if not self._admit(step, request, hit):
                break  # pages are short: smaller requests must not keep this one out for ever
            prompts.append(request)
            self._advance(step, request, request.remaining)
        return too_long

    def _deal_leftovers(self, step: Step, prompts: list[Request], too_long: list[Request]) -> None:
        unserved = [(r.order[0], r.remaining - step.served(r), r.order, r) for r in prompts + too_long]
        for _, left, _, request in sorted(unserved, key=itemgetter(0, 1, 2)):
            if step.room <= 0:
                return
            if request.slot == NO_SLOT:
                hit = self._hit(step, request) if self._free_slots and step.room >= MIN_CHUNK else None
                if hit is None or not self._admit(step, request, hit):
                    continue
                left = request.remaining
            if left:
                self._advance(step, request, min(left, step.room))

    def _hit(self, step: Step, request: Request) -> int | None:
        """Pages of its prefix that are cached; ``None``: the next one, or a state, is about to be had from another."""
        if not (self._caching and request.reads_cache):
            return 0
        limit = (len(request.tokens) - 1) // self.kv.page_size  # the last token is always computed
        request.extend_keys(self.kv.page_size, limit)
        hit = self.kv.hit_pages(request.keys, limit)
        if hit and self.kv.states and request.keys[hit - 1] in step.filled:
            return None
        return None if hit < limit and request.keys[hit] in self._promised else hit

    def _admit(self, step: Step, request: Request, hit: int) -> bool:
        """Give a waiting request a slot and pages for all its tokens, if they can be had."""
        known = len(request.tokens)
        # Spare a page for each running request: it will soon need one.
        if not self._free_slots or not self.kv.can_admit(request.keys, hit, known, self._budget, len(self.running)):
            return False
        self.remove(request)
        request.slot = heappop(self._free_slots)
        grants = self.kv.admit(request.pages, request.keys, hit, known)
        request.computed = hit * self.kv.page_size
        request.capacity = self.kv.capacity_of(request.pages)
        request.depends_on = [self._fresh[key] for key in request.keys[:hit] if key in self._fresh]
        insort(self.running, request, key=_order)
        step.admit.append(request.slot_admit(self._vocab_size))
        step.grant(request, grants)
        if not request.admitted:
            request.admitted = True
            request.cached = min(request.computed, request.prompt_len)
            self.prompt_tokens += request.prompt_len
            self.cached_tokens += request.cached
        return True

    def _advance(self, step: Step, request: Request, count: int) -> None:
        """Serve a prompt ``count`` tokens, or as many as its windows' pages allow."""
        start = request.computed + step.served(request)
        if start + count > request.capacity:
            self.kv.leave_window(request.pages, request.computed)
            count = min(count, self.kv.reachable(request.pages) - start)
            if count <= 0:
                return
            step.grant(request, self.kv.grow(request.pages, start + count) or ())
            request.capacity = self.kv.capacity_of(request.pages)
        self._serve(step, request, count)
        step.prompt_tokens += count
        if self._caching and request.remaining > step.served(request):
            self._promise(request)

    def _serve(self, step: Step, request: Request, count: int) -> None:
        item = step.items.get(request)
        if item is None:
            item = step.items[request] = Item(request)
        item.count += count
        step.room -= count
        end = request.computed + item.count
        item.sample = end == request.known
        full = min(end, len(request.tokens)) // self.kv.page_size  # keys are made of tokens that are known
        if self._caching and full > request.pages.keyed:
            self._register(step, request, full)

    # Keys of pages

    def _register(self, step: Step, request: Request, pages: int) -> None:
        """These pages are full after this step; requests of this step and later ones may share them already."""
        request.extend_keys(self.kv.page_size, pages)
        for key in request.keys[request.pages.keyed : pages]:
            if self._fresh.setdefault(key, request) is request:
                step.fresh.append(key)
            if self._promised.get(key) is request:
                del self._promised[key]
        if self.kv.states:
            step.filled.update(request.keys[request.pages.keyed : pages])
        self.kv.register(request.pages, request.keys, pages)

    def _promise(self, request: Request) -> None:
        """Requests with the same prefix wait for it instead of computing it too."""
        pages = request.prompt_len // self.kv.page_size
        request.extend_keys(self.kv.page_size, pages)
        for key in request.keys[request.pages.keyed : pages]:
            self._promised.setdefault(key, request)

    def _unpromise(self, request: Request) -> None:
        if self._promised:
            for key in request.keys[request.pages.keyed :]:
                if self._promised.get(key) is request:
                    del self._promised[key]


def _share(remaining: int, room: int) -> int:
    """The oldest prompt's part of ``room``."""
    return remaining if remaining <= room else min(max(room // 2, MIN_CHUNK), room)
