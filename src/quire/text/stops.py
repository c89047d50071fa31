"""Stop strings, found in text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Finds the stop string that completes first, and holds back text that may be the start of one.

    The result depends on the text alone, not on how it is cut into pieces: every stop string has an automaton
    (Knuth-Morris-Pratt) that reads one character at a time, so the whole cost is linear in the text.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._patterns = [_Pattern(stop) for stop in stops]
        self._firsts = frozenset(stop[0] for stop in stops)
        self._held = ""

    def push(self, piece: str, *, armed: bool = True) -> tuple[str, str | None]:
        """Read ``piece``. Returns the text now known to lie before any stop string, and the stop string if one ended.

        With ``armed`` false a stop string that ends in this piece is plain text. Of several that end at the same
        character the longest wins. After a match the matcher is spent.
        """
        if not self._held and self._firsts.isdisjoint(piece):
            return piece, None
        text = self._held + piece
        base = len(self._held)
        for position, char in enumerate(piece, start=base + 1):
            ended = [p.text for p in self._patterns if p.advance(char)]
            if ended and armed:
                stop = max(ended, key=len)
                self._held = ""
                return text[: position - len(stop)], stop
        cut = len(text) - max(p.matched for p in self._patterns)
        self._held = text[cut:]
        return text[:cut], None

    def flush(self) -> str:
        """The text held back, at the end of the output."""
        held, self._held = self._held, ""
        return held


class _Pattern:
    __slots__ = ("_fallback", "matched", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.matched = 0
        self._fallback = _prefix_function(text)

    def advance(self, char: str) -> bool:
        """Read a character; true when the whole pattern has just been read."""
        matched = self.matched
        while matched and self.text[matched] != char:
            matched = self._fallback[matched - 1]
        if self.text[matched] == char:
            matched += 1
        whole = matched == len(self.text)
        self.matched = self._fallback[matched - 1] if whole else matched
        return whole


def _prefix_function(text: str) -> list[int]:
    """For each prefix of ``text``, the length of its longest proper prefix that is also its suffix."""
    lengths = [0] * len(text)
    matched = 0
    for i in range(1, len(text)):
        while matched and text[matched] != text[i]:
            matched = lengths[matched - 1]
        if text[matched] == text[i]:
            matched += 1
        lengths[i] = matched
    return lengths
