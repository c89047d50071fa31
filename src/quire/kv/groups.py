"""Page tables of sequences over all groups of layers: full attention and sliding windows, each with its own pool."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from quire.kv.pages import PagePool, PoolError

NO_PAGE = -1
_UNBOUNDED = 1 << 62

Grant = tuple[int, int, list[int]]  # group, first table index, pages


class Group(Protocol):
    """Layers that share page tables; see ``quire.engine.plan.KVGroup``."""

    @property
    def window(self) -> int | None: ...
    @property
    def num_pages(self) -> int: ...
    @property
    def states(self) -> bool: ...
    @property
    def spare(self) -> int: ...


class SequencePages:
    """The tables of one sequence. ``tables[g][i]`` holds its tokens ``[i * page_size, (i + 1) * page_size)``.

    Entries below ``first[g]`` are ``NO_PAGE``: they left the window, or stood before it at a prefix hit.
    ``keyed`` counts the leading pages that were offered to the prefix cache.
    """

    __slots__ = ("first", "keyed", "tables")

    def __init__(self, groups: int) -> None:
        self.tables: list[list[int]] = [[] for _ in range(groups)]
        self.first = [0] * groups
        self.keyed = 0

    def live(self, group: int) -> list[int]:
        return self.tables[group][self.first[group] :]


class PageGroups:
    """All pools. A sequence has a table in each; a prefix counts as cached when every group holds what it needs."""

    def __init__(self, groups: Sequence[Group], page_size: int) -> None:
        self.page_size = page_size
        self.windows = [group.window for group in groups]
        self.pools = [PagePool(group.num_pages, group.spare) for group in groups]
        self.states = any(group.states for group in groups)
        self._full = [g for g, window in enumerate(self.windows) if window is None]
        self._sliding = [g for g, window in enumerate(self.windows) if window is not None]

    @property
    def total_pages(self) -> int:
        return sum(pool.num_pages for pool in self.pools)

    @property
    def free_pages(self) -> int:
        return sum(pool.free for pool in self.pools)

    @property
    def usage(self) -> float:
        """Share of the fullest pool that is in use, 0..1."""
        return max((1 - pool.free / pool.num_pages for pool in self.pools), default=0.0)

    def capacity(self) -> int:
        """Tokens that one sequence alone can hold."""
        return min(
            _UNBOUNDED
            if window is not None and pool.num_pages > self.pages_for(window)
            else pool.num_pages * self.page_size
            for window, pool in zip(self.windows, self.pools, strict=True)
        )

    def pages_for(self, tokens: int) -> int:
        return -(-tokens // self.page_size)

    def _window_start(self, group: int, computed: int) -> int:
        """Index of the first page that a query at position ``computed`` may read."""
        window = self.windows[group]
        return 0 if window is None else max(0, computed - window + 1) // self.page_size

    # Prefix hits

    def hit_pages(self, keys: Sequence[bytes], limit: int) -> int:
        """The most leading pages, up to ``limit``, after which every group can go on from its cache."""
        best = min(limit, len(keys))
        for g in self._full:
            find = self.pools[g].find
            best = next((i for i in range(best) if find(keys[i]) is None), best)
        while best:
            shorter = min((self._window_hit(g, keys, best) for g in self._sliding), default=best)
            if shorter == best:
                return best
            best = shorter
        return 0

    def _window_hit(self, group: int, keys: Sequence[bytes], pages: int) -> int:
        """``pages`` when the window before it is cached, else the largest smaller count worth trying."""
        find = self.pools[group].find
        for index in range(pages - 1, self._window_start(group, pages * self.page_size) - 1, -1):
            if find(keys[index]) is None:
                return index
        return pages

    def can_admit(self, keys: Sequence[bytes], hit: int, tokens: int, chunk: int, reserve: int) -> bool:
        """Whether a sequence of ``tokens``, ``hit`` pages of them cached, fits with ``reserve`` pages to spare."""
        for g, (window, pool) in enumerate(zip(self.windows, self.pools, strict=True)):
            first = self._window_start(g, hit * self.page_size)
            revived = sum(1 for key in keys[first:hit] if pool.is_free(_found(pool, key)))
            needed = self.pages_for(tokens) - hit
            if window is not None:
                needed = min(needed, self.pages_for(window + chunk) + 1 - (hit - first))
                needed = min(needed, pool.num_pages - (hit - first))
            if needed + reserve > pool.free - revived:
                return False
        return True

    def admit(self, seq: SequencePages, keys: Sequence[bytes], hit: int, tokens: int) -> list[Grant]:
        """Share the ``hit`` cached pages and take all pages of full groups up to ``tokens``; ``can_admit`` held."""
        for g, pool in enumerate(self.pools):
            first = self._window_start(g, hit * self.page_size)
            pages = [_found(pool, key) for key in keys[first:hit]]
            for page in pages:
                pool.share(page)
            seq.tables[g] = [NO_PAGE] * first + pages
            seq.first[g] = first
        for g in self._full:
            seq.tables[g] += self.pools[g].take(self.pages_for(tokens) - hit)
        seq.keyed = hit
        return [(g, seq.first[g], seq.live(g)) for g in range(len(self.pools)) if seq.live(g)]

    # Growth

    def capacity_of(self, seq: SequencePages) -> int:
        """Tokens that the pages held now can take."""
        return min(map(len, seq.tables)) * self.page_size

    def reachable(self, seq: SequencePages) -> int:
        """Tokens the sequence could hold with all pages that are free now."""
        return min(
            (len(table) + pool.free) * self.page_size for table, pool in zip(seq.tables, self.pools, strict=True)
        )

    def grow(self, seq: SequencePages, tokens: int) -> list[Grant] | None:
        """Take pages in every group until they hold ``tokens``; ``None``, and nothing done, when too few are free."""
        pages = self.pages_for(tokens)
        if any(pages - len(table) > pool.free for table, pool in zip(seq.tables, self.pools, strict=True)):
            return None
        grants: list[Grant] = []
        for g, (table, pool) in enumerate(zip(seq.tables, self.pools, strict=True)):
            if pages > len(table):
                taken = pool.take(pages - len(table))
                grants.append((g, len(table), taken))
                table += taken
        return grants

    def leave_window(self, seq: SequencePages, computed: int) -> None:
        """Give back the pages that a query at position ``computed`` or later never reads."""
        for g in self._sliding:
            first, table = seq.first[g], seq.tables[g]
            start = min(self._window_start(g, computed), len(table))
            if start > first:
                self.pools[g].release(reversed(table[first:start]))
                table[first:start] = [NO_PAGE] * (start - first)
                seq.first[g] = start

    def free(self, seq: SequencePages) -> None:
        """Give back all pages, the tail first, so that it is reused before the prefix."""
        for g, pool in enumerate(self.pools):
            pool.release(reversed(seq.live(g)))
        seq.tables = [[] for _ in self.pools]
        seq.first = [0] * len(self.pools)

    # The prefix cache

    def register(self, seq: SequencePages, keys: Sequence[bytes], pages: int) -> None:
        """Offer pages ``seq.keyed`` to ``pages`` to later prompts."""
        for g, pool in enumerate(self.pools):
            table = seq.tables[g]
            for index in range(max(seq.keyed, seq.first[g]), pages):
                pool.register(table[index], keys[index])
        seq.keyed = pages

    def unregister(self, seq: SequencePages, keys: Sequence[bytes], start: int) -> None:
        """Take back what ``register`` offered from page ``start`` on: their contents were never computed.

        Pages may have left the window since. Which they were is forgotten, so their keys go whatever they find.
        """
        for pool, table in zip(self.pools, seq.tables, strict=True):
            for index in range(start, seq.keyed):
                page = pool.find(keys[index])
                if page is not None and table[index] in (page, NO_PAGE):
                    pool.forget(page)
        seq.keyed = min(seq.keyed, start)

    def reset(self) -> None:
        """Forget every cached page that no sequence holds."""
        for pool in self.pools:
            pool.forget_free()

    def check(self, sequences: Iterable[SequencePages]) -> None:
        """Raise ``PoolError`` unless every pool agrees with the tables of these sequences."""
        seqs = list(sequences)
        for g, pool in enumerate(self.pools):
            pool.check(seq.live(g) for seq in seqs)
            if any(page != NO_PAGE for seq in seqs for page in seq.tables[g][: seq.first[g]]):
                raise PoolError(f"A page before the window of group {g} is still held.")


def _found(pool: PagePool, key: bytes) -> int:
    page = pool.find(key)
    if page is None:
        raise PoolError("A prefix hit vanished before its pages were shared.")
    return page
