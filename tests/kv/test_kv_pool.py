"""The page pool against a model of it, and the prefix keys."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from quire.kv.pages import PagePool, PoolError
from quire.kv.prefix import extend_chain, page_key, root_key

PAGES, SPARE = 7, 2


class PoolMachine(RuleBasedStateMachine):
    """Model: the tables that hold pages, free and spare pages in order of reuse, and which page each key finds."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(PAGES, SPARE)
        self.tables: list[list[int]] = []
        self.free = list(range(PAGES - SPARE))
        self.spare = list(range(PAGES - SPARE, PAGES))
        self.keys: dict[int, bytes] = {}
        self.made = 0

    def held(self, page: int) -> int:
        return sum(table.count(page) for table in self.tables)

    @rule(count=st.integers(1, PAGES + 1))
    def take(self, count: int) -> None:
        if count > len(self.free) + len(self.spare):
            with pytest.raises(PoolError):
                self.pool.take(count)
            return
        expected = (self.free + self.spare)[:count]
        self.free, self.spare = self.free[count:], self.spare[max(0, count - len(self.free)) :]
        for page in expected:
            self.keys.pop(page, None)
        assert self.pool.take(count) == expected
        self.tables.append(expected)

    @precondition(lambda self: self.keys)
    @rule(data=st.data())
    def share_by_key(self, data: st.DataObject) -> None:
        page = data.draw(st.sampled_from(sorted(self.keys)))
        assert self.pool.find(self.keys[page]) == page
        self.pool.share(page)
        if page in self.free:
            self.free.remove(page)
        self.tables.append([page])

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        table = self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1)))
        self.pool.release(reversed(table))
        for page in reversed(table):
            if self.held(page) == 0:
                if page >= PAGES - SPARE:
                    self.keys.pop(page, None)
                    self.spare.insert(0, page)
                elif page in self.keys:
                    self.free.append(page)
                else:
                    self.free.insert(0, page)

    @precondition(lambda self: self.tables)
    @rule(data=st.data(), fresh=st.booleans())
    def register(self, data: st.DataObject, fresh: bool) -> None:
        page = data.draw(st.sampled_from(sorted({p for table in self.tables for p in table})))
        key = b"%d" % self.made if fresh or not self.keys else min(self.keys.values())
        self.made += fresh
        expected = page not in self.keys and key not in self.keys.values()
        assert self.pool.register(page, key) is expected
        if expected:
            self.keys[page] = key

    @precondition(lambda self: self.keys)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        page = data.draw(st.sampled_from(sorted(self.keys)))
        self.pool.forget(page)
        del self.keys[page]

    @rule()
    def forget_free(self) -> None:
        self.pool.forget_free()
        for page in self.free:
            self.keys.pop(page, None)

    @invariant()
    def agrees(self) -> None:
        self.pool.check(self.tables)
        assert self.pool.free == len(self.free) + len(self.spare)
        assert self.pool.cached == len(self.keys)
        for page, key in self.keys.items():
            assert self.pool.find(key) == page


PoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestPool = PoolMachine.TestCase


def test_check_finds_each_kind_of_damage() -> None:
    pool = PagePool(3)
    held = pool.take(2)
    pool.check([held])
    for tables in ([], [held, held], [[held[0]]], [[*held, 2]]):
        with pytest.raises(PoolError):
            pool.check(tables)
    pool.release(held)
    with pytest.raises(PoolError):
        pool.release([held[0]])


def test_prefix_outlives_its_tail() -> None:
    pool = PagePool(4)
    pages = pool.take(4)
    for page in pages:
        pool.register(page, b"key%d" % page)
    pool.release(reversed(pages))
    pool.take(2)
    assert [pool.find(b"key%d" % page) for page in pages] == [pages[0], pages[1], None, None]


tokens = st.lists(st.integers(0, 2**32 - 1), max_size=6)


@given(st.tuples(st.integers(1, 64), st.text(max_size=4)), st.tuples(st.integers(1, 64), st.text(max_size=4)))
def test_roots_differ_with_any_field(a: tuple[int, str], b: tuple[int, str]) -> None:
    assert (root_key(*a) == root_key(*b)) is (a == b)


@given(tokens, tokens, st.booleans())
def test_page_keys_differ_with_tokens_and_parent(a: list[int], b: list[int], same_parent: bool) -> None:
    parent = root_key(4, "")
    other = parent if same_parent else root_key(4, "x")
    assert (page_key(parent, a) == page_key(other, b)) is (same_parent and a == b)


def test_tokens_cannot_move_between_pages() -> None:
    root = root_key(2, "")
    assert page_key(page_key(root, [1, 2]), [3]) != page_key(page_key(root, [1]), [2, 3])
    assert page_key(root, [1, 256]) != page_key(root, [1 + 256 * 2**8, 0])


@given(st.lists(st.integers(0, 99), min_size=8, max_size=40), st.integers(0, 4), st.integers(0, 4))
def test_chain_can_be_extended_in_any_steps(ids: list[int], first: int, second: int) -> None:
    whole: list[bytes] = []
    extend_chain(whole, root_key(2, "s"), ids, 2, 4)
    parts: list[bytes] = []
    for pages in [*sorted((first, second)), 4]:
        extend_chain(parts, root_key(2, "s"), ids, 2, pages)
    assert parts == whole
    assert len(set(whole)) == 4
