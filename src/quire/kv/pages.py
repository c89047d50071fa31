"""The pages of one group: who uses them, which are free, and which prefix each one holds."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable


class PoolError(RuntimeError):
    """An invariant of the pool is broken: a bug in the engine, never a client's fault."""


class PagePool:
    """Page ids 0..num_pages - 1 with reference counts, an LRU list of free pages, and keys of full pages.

    A free page keeps its key until it is taken for something else, so a prefix can be found after its request is
    gone. Pages without a key are taken first, then the longest unused.

    The last ``spare`` pages keep nothing and are taken when no other is free, so that their memory is not touched
    before requests at work need it.
    """

    def __init__(self, num_pages: int, spare: int = 0) -> None:
        self.num_pages = num_pages
        self._first_spare = num_pages - spare
        self._refs = [0] * num_pages
        self._keys: list[bytes | None] = [None] * num_pages
        self._page_of: dict[bytes, int] = {}
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(self._first_spare))
        self._spare = list(reversed(range(self._first_spare, num_pages)))

    @property
    def free(self) -> int:
        """Pages that no table lists, cached ones included."""
        return len(self._free) + len(self._spare)

    @property
    def cached(self) -> int:
        """Pages that can be found by a key."""
        return len(self._page_of)

    def find(self, key: bytes) -> int | None:
        return self._page_of.get(key)

    def is_free(self, page: int) -> bool:
        return self._refs[page] == 0

    def take(self, count: int) -> list[int]:
        """``count`` pages with one reference each and no key. Raises ``PoolError`` when fewer are free."""
        if count > self.free:
            raise PoolError(f"{count} pages asked for, {self.free} are free.")
        pages: list[int] = []
        for _ in range(count):
            page = self._free.popitem(last=False)[0] if self._free else self._spare.pop()
            self.forget(page)
            self._refs[page] = 1
            pages.append(page)
        return pages

    def share(self, page: int) -> None:
        """One more reference to a page; a free one is revived."""
        if self._refs[page] == 0:
            del self._free[page]
        self._refs[page] += 1

    def release(self, pages: Iterable[int]) -> None:
        """One reference less for each page; those first in ``pages`` are reused first."""
        for page in pages:
            refs = self._refs[page] - 1
            if refs < 0:
                raise PoolError(f"Page {page} is released but nobody holds it.")
            self._refs[page] = refs
            if refs == 0 and page >= self._first_spare:
                self.forget(page)
                self._spare.append(page)
            elif refs == 0:
                self._free[page] = None
                if self._keys[page] is None:
                    self._free.move_to_end(page, last=False)

    def register(self, page: int, key: bytes) -> bool:
        """Let ``key`` find this page; ``False`` when another page has that key already or the page has one."""
        if key in self._page_of or self._keys[page] is not None:
            return False
        self._page_of[key] = page
        self._keys[page] = key
        return True

    def forget(self, page: int) -> None:
        """Drop the page's key, if it has one."""
        key = self._keys[page]
        if key is not None:
            del self._page_of[key]
            self._keys[page] = None

    def forget_free(self) -> None:
        """Drop the keys of all free pages."""
        for page in self._free:
            self.forget(page)

    def check(self, tables: Iterable[Iterable[int]]) -> None:
        """Raise ``PoolError`` unless counts, free list and keys agree with the tables that hold pages."""
        held = Counter(page for table in tables for page in table)
        free = {*self._free, *self._spare}
        for page in range(self.num_pages):
            if self._refs[page] != held[page]:
                raise PoolError(f"Page {page} has {self._refs[page]} references; {held[page]} tables list it.")
            if (page in free) != (held[page] == 0):
                raise PoolError(f"Page {page} is in use and on the free list, or in neither.")
            key = self._keys[page]
            if key is not None and self._page_of.get(key) != page:
                raise PoolError(f"Page {page} has a key that does not find it.")
        if self.free + sum(1 for count in held.values() if count) != self.num_pages:
            raise PoolError("Free and held pages do not add up to the pool.")
        if len(self._page_of) != sum(key is not None for key in self._keys):
            raise PoolError("A key finds a page that does not have it.")
