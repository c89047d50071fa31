"""The merges of a SentencePiece BPE vocabulary, which stores only scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]


def merges_from_scores(
    tokens: list[str], scores: npt.NDArray[np.float32], mergeable: npt.NDArray[np.bool_]
) -> list[tuple[str, str]]:
    """Every way to make a ``mergeable`` token out of two others, best score first.

    Ties go to the longer left part, then the longer right part: the order of Transformers' converter, so that the
    tokenizer equals the one that it publishes.
    """
    lengths = np.fromiter(map(len, tokens), np.int64, len(tokens))
    cuts = np.where(mergeable, np.maximum(lengths - 1, 0), 0)
    whole = np.repeat(np.arange(len(tokens)), cuts)  # the token that each cut is in
    cut = np.arange(len(whole)) - np.repeat(np.cumsum(cuts) - cuts, cuts) + 1  # characters left of it
    left, right = _halves(tokens, lengths, whole, cut)
    made = np.flatnonzero((left >= 0) & (right >= 0))
    whole, cut, left, right = whole[made], cut[made], left[made], right[made]
    order = np.lexsort((cut - lengths[whole], -cut, -scores[whole]))
    text = tokens.__getitem__
    return list(zip(map(text, left[order].tolist()), map(text, right[order].tolist()), strict=True))


def _halves(tokens: list[str], lengths: Ints, whole: Ints, cut: Ints) -> tuple[Ints, Ints]:
    """Tokens that are the parts left and right of each cut, -1 where there is none.

    Parts are found by a hash: slicing and looking up 1.7 million Python strings takes seconds. A collision would be
    noticed, for the BPE model refuses a merge whose result is no token.
    """
    starts = np.concatenate([[0], np.cumsum(lengths)])
    hashes = _SubstringHashes("".join(tokens))
    token_hashes = hashes.of(starts[:-1], starts[1:])
    order = np.argsort(token_hashes, kind="stable")
    ranked = token_hashes[order]

    def find(start: Ints, end: Ints) -> Ints:
        wanted = hashes.of(start, end)
        by_hash = np.argsort(wanted)  # sorted, the searches walk through memory instead of jumping about
        at = np.empty_like(by_hash)
        at[by_hash] = np.minimum(np.searchsorted(ranked, wanted[by_hash]), len(ranked) - 1)
        return np.where(ranked[at] == wanted, order[at], -1)

    left = find(starts[whole], starts[whole] + cut)
    right = np.full_like(left, -1)
    hit = np.flatnonzero(left >= 0)
    right[hit] = find(starts[whole[hit]] + cut[hit], starts[whole[hit] + 1])
    return left, right


class _SubstringHashes:
    """A 64-bit polynomial hash of any substring of a text, in constant time each."""

    BASE = 0x9E3779B97F4A7C15 | 5  # odd, so that it has an inverse modulo 2**64

    def __init__(self, text: str) -> None:
        codes = _mixed(np.frombuffer(text.encode("utf-32-le"), "<u4").astype(np.uint64))
        powers = self._powers(self.BASE, len(codes))
        self._sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(codes * powers, dtype=np.uint64)])
        self._inverse_powers = self._powers(pow(self.BASE, -1, 2**64), len(codes) + 1)

    @staticmethod
    def _powers(base: int, count: int) -> Hashes:
        factors = np.full(count, base, np.uint64)
        factors[:1] = 1
        powers: Hashes = np.cumprod(factors, dtype=np.uint64)
        return powers

    def of(self, start: npt.NDArray[Any], end: npt.NDArray[Any]) -> Hashes:
        """Hashes of the substrings from ``start`` up to ``end``."""
        hashes: Hashes = (self._sums[end] - self._sums[start]) * self._inverse_powers[start]
        return hashes


def _mixed(codes: Hashes) -> Hashes:
    """Spread neighbouring code points over all 64 bits (the finaliser of SplitMix64)."""
    codes = codes + np.uint64(0x9E3779B97F4A7C15)
    codes = (codes ^ (codes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    codes = (codes ^ (codes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return codes ^ (codes >> np.uint64(31))
