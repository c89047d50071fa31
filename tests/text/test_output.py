"""Assembling completions: the result depends on the tokens alone, not on how they come in."""

from __future__ import annotations

import codecs
import itertools
import sys
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.engine.messages import TokenDelta, TokenLogprobs
from quire.outputs import Logprob
from quire.params import SamplingParams
from quire.text.output import CompletionAssembler, CompletionCollector, TokenNames, token_offsets
from quire.text.stops import StopMatcher

# Tokens of one to four bytes, among them halves of characters.
VOCAB = [b"a", b"b", b"ab", b"ba", b"aab", b" ", "é".encode()[:1], "é".encode()[1:], "é".encode(), "😀".encode()[:2],
         "😀".encode()[2:], b"abc", b"c", b""]  # fmt: skip
EOS = len(VOCAB)


class Utf8Stream:
    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        return self._decoder.decode(VOCAB[token_id]) if token_id < EOS else ""

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class Names:
    def token_bytes(self, token_id: int) -> bytes:
        return VOCAB[token_id] if token_id < EOS else b"</s>"


ids = st.lists(st.integers(0, EOS - 1), max_size=40)
stops = st.lists(st.text("abc é", min_size=1, max_size=4), max_size=3)
endings = st.sampled_from(["length", "stop", "abort"])


def first_end(text: str, stop_strings: Sequence[str], start: int = 0) -> tuple[int, str] | None:
    """Where, from ``start`` on, the first stop string is complete, and which (the longest of several)."""
    ends = [(end, -len(s), s) for s in stop_strings for end in range(max(len(s), start), len(text) + 1)
            if text[end - len(s) : end] == s]  # fmt: skip
    return (min(ends)[0], min(ends)[2]) if ends else None


def deltas(token_ids: list[int], cuts: list[int], finish: str) -> list[TokenDelta]:
    """The tokens cut at ``cuts`` into deltas, the last of which has the finish reason."""
    bounds = sorted({0, len(token_ids), *(c for c in cuts if c <= len(token_ids))})
    out = [
        TokenDelta("r", token_ids[a:b], logprobs=[TokenLogprobs([i], [-i - 0.5], [1]) for i in token_ids[a:b]])
        for a, b in itertools.pairwise(bounds)
    ] or [TokenDelta("r", [])]
    out[-1].finish_reason = finish  # type: ignore[assignment]
    return out


def assemble(params: SamplingParams, parts: list[TokenDelta]) -> tuple[object, ...]:
    assembler = CompletionAssembler(params, Utf8Stream())
    outs = [assembler.feed(d) for d in parts]
    return (
        "".join(o.text for o in outs),
        [i for o in outs for i in o.token_ids],
        [o for out in outs for o in out.offsets],
        [p for o in outs for p in o.logprobs or []],
        assembler.finish_reason,
        assembler.stop_reason,
        assembler.num_tokens,
        round(assembler.cumulative_logprob, 6),
    )


@given(ids, stops, st.booleans(), st.integers(0, 5), endings, st.lists(st.integers(0, 40), max_size=20))
@settings(max_examples=400, deadline=None)
def test_result_does_not_depend_on_batching(
    token_ids: list[int], stop: list[str], include: bool, least: int, finish: str, cuts: list[int]
) -> None:
    params = SamplingParams(stop=stop, include_stop_str_in_output=include, min_tokens=least, max_tokens=64)
    one = assemble(params, deltas(token_ids, [], finish))
    single = assemble(params, deltas(token_ids, list(range(41)), finish))
    assert assemble(params, deltas(token_ids, cuts, finish)) == one == single


@given(ids, stops, st.booleans(), st.lists(st.integers(0, 40), max_size=20))
@settings(max_examples=400, deadline=None)
def test_text_is_cut_at_the_stop_string_that_ends_first(
    token_ids: list[int], stop: list[str], include: bool, cuts: list[int]
) -> None:
    whole = b"".join(VOCAB[i] for i in token_ids).decode("utf-8", "replace")
    params = SamplingParams(stop=stop, include_stop_str_in_output=include, max_tokens=64)
    text, *_, reason, stop_reason, _, _ = assemble(params, deltas(token_ids, cuts, "length"))
    found = first_end(whole, stop)
    if found is None:
        assert (text, reason, stop_reason) == (whole, "length", None)
    else:
        end, which = found
        assert (text, reason, stop_reason) == (whole[: end if include else end - len(which)], "stop", which)


@given(st.text("ab", max_size=60), st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=4), st.data())
@settings(max_examples=300, deadline=None)
def test_matcher_holds_back_only_what_may_become_a_stop_string(text: str, stop: list[str], data: st.DataObject) -> None:
    matcher, given_out, position = StopMatcher(stop), "", 0
    while position < len(text):
        size = data.draw(st.integers(1, len(text) - position))
        piece, ended = matcher.push(text[position : position + size])
        given_out += piece
        position += size
        if ended is not None:
            assert first_end(text, stop) == (len(given_out) + len(ended), ended)
            return
        rest = text[len(given_out) : position]
        assert not rest or any(s.startswith(rest) and s != rest for s in stop)
    assert first_end(text, stop) is None
    assert given_out + matcher.flush() == text


def test_min_tokens_puts_off_stop_strings_but_not_across_the_border() -> None:
    params = SamplingParams(stop=["ab"], min_tokens=2)
    assert assemble(params, deltas([2, 12, 0, 1, 12], [], "length"))[0] == "abc"
    assert assemble(SamplingParams(stop=["ab"], min_tokens=1), deltas([0, 1, 12], [1, 2], "length"))[0] == ""


def test_stop_token_is_counted_but_not_shown() -> None:
    part = TokenDelta("r", [0, 11], finish_reason="stop", stop_reason=11)
    hidden = CompletionAssembler(SamplingParams(), Utf8Stream()).feed(part)
    assert (hidden.text, hidden.token_ids, hidden.stop_reason) == ("a", [0, 11], 11)
    shown = CompletionAssembler(SamplingParams(include_stop_str_in_output=True), Utf8Stream()).feed(part)
    assert shown.text == "aabc"


def test_stop_string_asks_for_an_abort_only_while_the_engine_goes_on() -> None:
    running = CompletionAssembler(SamplingParams(stop=["b"]), Utf8Stream())
    running.feed(TokenDelta("r", [0, 1, 2]))
    assert running.must_abort
    assert running.num_tokens == 2
    assert running.feed(TokenDelta("r", [0], finish_reason="abort")).token_ids == []
    ended = CompletionAssembler(SamplingParams(stop=["b"]), Utf8Stream())
    ended.feed(TokenDelta("r", [0, 1], finish_reason="length"))
    assert not ended.must_abort
    assert (ended.finish_reason, ended.stop_reason) == ("stop", "b")


def test_half_a_character_at_the_end_becomes_a_replacement_character() -> None:
    assert assemble(SamplingParams(), deltas([0, 6], [1], "length"))[0] == "a\ufffd"


def test_without_detokenising_there_are_only_ids() -> None:
    out = CompletionAssembler(SamplingParams(detokenize=False), Utf8Stream()).feed(TokenDelta("r", [0, 1]))
    assert (out.text, out.token_ids) == ("", [0, 1])


def test_collector_gives_what_the_python_api_returns() -> None:
    collector = CompletionCollector(3, SamplingParams(logprobs=1), Utf8Stream(), TokenNames(Names()))
    collector.feed(TokenDelta("r", [0], logprobs=[TokenLogprobs([0, 2], [-1.0, -0.5], [2, 1])]))
    last = [TokenLogprobs([6, 6], [-0.25, -0.25], [1, 1])]
    collector.feed(TokenDelta("r", [6], logprobs=last, finish_reason="length"))
    result = collector.result()
    assert (result.index, result.text, result.token_ids) == (3, "a\ufffd", [0, 6])
    assert result.finished()
    assert result.logprobs == [{0: Logprob(-1.0, 2, "a"), 2: Logprob(-0.5, 1, "ab")}, {6: Logprob(-0.25, 1, "\ufffd")}]
    assert result.cumulative_logprob == pytest.approx(-1.25)


def test_offsets_of_prompt_tokens() -> None:
    assert token_offsets(Utf8Stream(), [2, 6, 7, 0]) == [0, 2, 2, 3]


def test_cost_is_linear_in_the_text() -> None:
    """The worst stop strings, and 16 of them: lines executed per token must not grow with the number of tokens."""

    def lines(tokens: int) -> int:
        params = SamplingParams(stop=["a" * (100 + n) + "b" for n in range(16)], max_tokens=10**6)
        assembler = CompletionAssembler(params, Utf8Stream())
        count = 0

        def trace(*_: object) -> object:
            nonlocal count
            count += 1
            return trace

        sys.settrace(trace)
        try:
            for _ in range(tokens):
                assembler.feed(TokenDelta("r", [0]))
        finally:
            sys.settrace(None)
        return count

    assert lines(1600) < 4.5 * lines(400)
