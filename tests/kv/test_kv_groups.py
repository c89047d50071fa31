"""Page tables over several groups: hits, windows, growth, against a model that keeps what each page should hold."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from quire.engine.plan import KVGroup
from quire.kv.groups import NO_PAGE, PageGroups, SequencePages
from quire.kv.prefix import extend_chain, root_key

PAGE = 2


def chain(tokens: list[int]) -> list[bytes]:
    keys: list[bytes] = []
    extend_chain(keys, root_key(PAGE, ""), tokens, PAGE, len(tokens) // PAGE)
    return keys


class Sequence:
    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens
        self.pages = SequencePages(0)
        self.computed = 0


class GroupsMachine(RuleBasedStateMachine):
    """Pages hold the prefix of tokens that was written to them; a hit must find exactly its own prefix."""

    @initialize(shape=st.sampled_from([[(None, 20)], [(3, 12)], [(None, 20), (4, 8)], [(5, 9), (None, 16), (1, 6)]]))
    def start(self, shape: list[tuple[int | None, int]]) -> None:
        self.groups = PageGroups([KVGroup(window, pages) for window, pages in shape], PAGE)
        self.memory: list[dict[int, tuple[int, ...]]] = [{} for _ in shape]
        self.live: list[Sequence] = []

    def visible_from(self, group: int, position: int) -> int:
        window = self.groups.windows[group]
        return 0 if window is None else max(0, position - window + 1)

    def brute_force_hit(self, tokens: list[int], limit: int) -> int:
        """The most pages such that each group can find every page that the next query sees."""
        keys = chain(tokens)
        for hit in range(min(limit, len(keys)), 0, -1):
            if all(
                pool.find(keys[position // PAGE]) is not None
                for g, pool in enumerate(self.groups.pools)
                for position in range(self.visible_from(g, hit * PAGE), hit * PAGE)
            ):
                return hit
        return 0

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=14))
    def admit(self, tokens: list[int]) -> None:
        keys, limit = chain(tokens), (len(tokens) - 1) // PAGE
        hit = self.groups.hit_pages(keys, limit)
        assert hit == self.brute_force_hit(tokens, limit)
        if not self.groups.can_admit(keys, hit, len(tokens), PAGE, 0):
            return
        seq = Sequence(tokens)
        seq.pages = SequencePages(len(self.groups.pools))
        self.groups.admit(seq.pages, keys, hit, len(tokens))
        seq.computed = hit * PAGE
        self.live.append(seq)
        self.read(seq, seq.computed - 1)

    def read(self, seq: Sequence, last: int) -> None:
        """Every position before the next query that it sees is in its page."""
        for g in range(len(self.groups.pools)):
            for position in range(self.visible_from(g, last + 1), last + 1):
                page = seq.pages.tables[g][position // PAGE]
                assert page != NO_PAGE
                assert self.memory[g][page][: position + 1] == tuple(seq.tokens[: position + 1])

    @precondition(lambda self: any(s.computed < len(s.tokens) for s in self.live))
    @rule(data=st.data(), count=st.integers(1, 5))
    def compute(self, data: st.DataObject, count: int) -> None:
        seq = data.draw(st.sampled_from([s for s in self.live if s.computed < len(s.tokens)]))
        self.groups.leave_window(seq.pages, seq.computed)
        end = min(len(seq.tokens), seq.computed + count, self.groups.reachable(seq.pages))
        if end <= seq.computed:
            return
        assert self.groups.grow(seq.pages, end) is not None
        assert self.groups.capacity_of(seq.pages) >= end
        keys = chain(seq.tokens)
        self.groups.register(seq.pages, keys, end // PAGE)
        for g in range(len(self.groups.pools)):
            for position in range(seq.computed, end):
                self.memory[g][seq.pages.tables[g][position // PAGE]] = tuple(seq.tokens[: position + 1])
        self.read(seq, seq.computed - 1)
        seq.computed = end
        self.read(seq, end - 1)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), token=st.integers(0, 1))
    def generate(self, data: st.DataObject, token: int) -> None:
        data.draw(st.sampled_from(self.live)).tokens.append(token)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        seq = data.draw(st.sampled_from(self.live))
        self.live.remove(seq)
        self.groups.free(seq.pages)

    @rule()
    def reset(self) -> None:
        self.groups.reset()

    @invariant()
    def sound(self) -> None:
        self.groups.check(seq.pages for seq in self.live)
        for seq in self.live:
            for g, window in enumerate(self.groups.windows):
                if window is not None and seq.computed == len(seq.tokens):
                    held = sum(page != NO_PAGE for page in seq.pages.tables[g])
                    assert held <= len(seq.tokens) // PAGE + 1


GroupsMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestGroups = GroupsMachine.TestCase


def run_through(groups: PageGroups, tokens: list[int], chunk: int) -> SequencePages:
    seq, keys = SequencePages(len(groups.pools)), chain(tokens)
    groups.admit(seq, keys, 0, len(tokens))
    for start in range(0, len(tokens), chunk):
        end = min(start + chunk, len(tokens))
        groups.leave_window(seq, start)
        assert groups.grow(seq, end) is not None
        groups.register(seq, keys, end // PAGE)
    return seq


def test_window_pages_are_freed_while_the_request_runs() -> None:
    groups = PageGroups([KVGroup(None, 60), KVGroup(4, 8)], PAGE)
    seq = run_through(groups, list(range(100)), 4)
    assert len(seq.live(0)) == 50
    assert len(seq.live(1)) <= 5
    groups.free(seq)
    groups.check([])
    assert groups.free_pages == groups.total_pages


def test_hit_needs_the_window_before_it() -> None:
    groups = PageGroups([KVGroup(None, 60), KVGroup(4, 60)], PAGE)
    tokens = list(range(40))
    keys = chain(tokens)
    groups.free(run_through(groups, tokens, 4))
    assert groups.hit_pages(keys, 20) == 20
    for index in (16, 17):
        page = groups.pools[1].find(keys[index])
        assert page is not None
        groups.pools[1].forget(page)
    assert groups.hit_pages(keys, 20) == 20  # a query at position 40 sees 37..39: pages 18 and 19
    assert groups.hit_pages(keys, 19) == 16
    assert groups.hit_pages(keys, 17) == 16


def test_the_tail_of_a_freed_sequence_is_reused_first() -> None:
    groups = PageGroups([KVGroup(None, 6)], PAGE)
    tokens = list(range(12))
    groups.free(run_through(groups, tokens, 4))
    groups.pools[0].take(4)
    assert groups.hit_pages(chain(tokens), 6) == 2


def four_pages() -> tuple[PageGroups, list[bytes], SequencePages]:
    """All offered, in a full group and a window of two pages."""
    groups, keys, seq = PageGroups([KVGroup(None, 6), KVGroup(4, 6)], PAGE), chain(list(range(8))), SequencePages(2)
    groups.admit(seq, keys, 0, 8)
    groups.grow(seq, 8)
    groups.register(seq, keys, 4)
    return groups, keys, seq


def test_pages_whose_step_failed_are_not_found_but_can_be_offered_again() -> None:
    groups, keys, seq = four_pages()
    groups.unregister(seq, keys, 1)
    assert groups.hit_pages(keys, 4) == 1
    groups.register(seq, keys, 4)
    assert groups.hit_pages(keys, 4) == 4


def test_pages_that_left_the_window_before_their_step_failed_are_not_found() -> None:
    groups, keys, seq = four_pages()
    groups.leave_window(seq, 8)  # for the next step, planned before the failing one has ended
    assert seq.first[1] == 2
    groups.unregister(seq, keys, 1)
    assert [groups.pools[1].find(key) is not None for key in keys] == [True, False, False, False]
    groups.check([seq])


@pytest.mark.parametrize(("window", "pages", "capacity"), [(None, 5, 10), (4, 3, 1 << 62), (4, 2, 4)])
def test_capacity(window: int | None, pages: int, capacity: int) -> None:
    assert PageGroups([KVGroup(window, pages)], PAGE).capacity() == capacity
