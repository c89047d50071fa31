"""From token deltas of the engine to text: incremental decoding, stop strings, logprobs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from quire.engine.messages import FinishReason, TokenDelta, TokenLogprobs
from quire.outputs import CompletionOutput, Logprob
from quire.params import SamplingParams
from quire.text.stops import StopMatcher


class TextStream(Protocol):
    """An incremental decoder: text comes out as soon as it can no longer change."""

    def push(self, token_id: int) -> str: ...

    def flush(self) -> str: ...


class TokenTexts(Protocol):
    """What naming a token needs of a tokenizer."""

    def token_bytes(self, token_id: int) -> bytes: ...


@dataclass(slots=True)
class OutputDelta:
    """What one feeding added to a completion. ``offsets``: where each token's text starts, in characters."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] | None = None
    offsets: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None


class CompletionAssembler:
    """Builds one completion from the engine's deltas; the result doesn't depend on how tokens are batched in them.

    When a stop string ends the text before the engine has finished, ``must_abort`` turns true: the caller aborts
    the engine's request and feeds no more.
    """

    def __init__(self, params: SamplingParams, stream: TextStream | None) -> None:
        self._stream = stream if params.detokenize else None
        self._stops = StopMatcher(params.stop) if params.stop and self._stream else None
        self._include_stop = params.include_stop_str_in_output
        self._min_tokens = params.min_tokens
        self._chars = 0
        self.num_tokens = 0
        self.cumulative_logprob = 0.0
        self.finish_reason: FinishReason | None = None
        self.stop_reason: int | str | None = None
        self.must_abort = False

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None

    def feed(self, delta: TokenDelta) -> OutputDelta:
        """Take the next delta of this request; after the end, deltas add nothing."""
        out = OutputDelta()
        if self.finished:
            return out
        silent = len(delta.token_ids) - 1 if delta.finish_reason == "stop" and not self._include_stop else None
        texts: list[str] = []
        for i, token_id in enumerate(delta.token_ids):
            out.offsets.append(self._chars)
            self.num_tokens += 1
            if self._stream is None or i == silent:
                continue
            texts.append(self._take(self._stream.push(token_id)))
            if self.stop_reason is not None:
                self._finish("stop", self.stop_reason)
                self.must_abort = delta.finish_reason is None
                break
        if not self.finished and delta.finish_reason is not None:
            texts.append(self._end(delta))
        taken = len(out.offsets)
        out.token_ids = delta.token_ids if taken == len(delta.token_ids) else delta.token_ids[:taken]
        if delta.logprobs is not None:
            out.logprobs = delta.logprobs[:taken]
            self.cumulative_logprob += sum(p.logprobs[0] for p in out.logprobs)
        out.text = texts[0] if len(texts) == 1 else "".join(texts)
        out.finish_reason, out.stop_reason = self.finish_reason, self.stop_reason
        return out

    def _take(self, piece: str) -> str:
        """Text that may go out now that ``piece`` was decoded; sets ``stop_reason`` when a stop string ended in it."""
        self._chars += len(piece)
        if self._stops is None or not piece:
            return piece
        text, stop = self._stops.push(piece, armed=self.num_tokens > self._min_tokens)
        if stop is None:
            return text
        self.stop_reason = stop
        return text + stop if self._include_stop else text

    def _end(self, delta: TokenDelta) -> str:
        """The text still held back when the engine has finished; it may yet complete a stop string."""
        text = self._take(self._stream.flush()) if self._stream is not None else ""
        if self.stop_reason is not None:
            self._finish("stop", self.stop_reason)
            return text
        self._finish(delta.finish_reason, delta.stop_reason)
        return text + self._stops.flush() if self._stops is not None else text

    def _finish(self, reason: FinishReason | None, stop_reason: int | str | None) -> None:
        self.finish_reason = reason
        self.stop_reason = stop_reason


def token_offsets(stream: TextStream | None, token_ids: Sequence[int]) -> list[int]:
    """Where the text of each of these tokens starts, in characters."""
    offsets: list[int] = []
    chars = 0
    for token_id in token_ids:
        offsets.append(chars)
        if stream is not None:
            chars += len(stream.push(token_id))
    return offsets


class TokenNames:
    """Texts of single tokens, for logprobs; remembers them, for the same few come again and again."""

    def __init__(self, tokenizer: TokenTexts | None) -> None:
        self._tokenizer = tokenizer
        self._texts: dict[int, str] = {}

    @property
    def available(self) -> bool:
        return self._tokenizer is not None

    def text(self, token_id: int) -> str | None:
        """The token's text, U+FFFD standing for bytes that are no whole character; ``None`` without a tokenizer."""
        if self._tokenizer is None:
            return None
        text = self._texts.get(token_id)
        if text is None:
            text = self._texts[token_id] = self.raw(token_id).decode("utf-8", "replace")
        return text

    def raw(self, token_id: int) -> bytes:
        return self._tokenizer.token_bytes(token_id) if self._tokenizer is not None else b""

    def logprobs(self, position: TokenLogprobs) -> dict[int, Logprob]:
        """One position in the Python API's shape: the token itself first, then the best by rank."""
        entries = zip(position.token_ids, position.logprobs, position.ranks, strict=True)
        out: dict[int, Logprob] = {}
        for token_id, logprob, rank in entries:
            out.setdefault(token_id, Logprob(logprob, rank, self.text(token_id)))
        return out


class CompletionCollector:
    """A whole ``CompletionOutput`` from deltas, for callers that don't stream."""

    def __init__(self, index: int, params: SamplingParams, stream: TextStream | None, names: TokenNames) -> None:
        self.assembler = CompletionAssembler(params, stream)
        self._names = names
        self._texts: list[str] = []
        self._output = CompletionOutput(index, logprobs=[] if params.logprobs is not None else None)

    def feed(self, delta: TokenDelta) -> OutputDelta:
        out = self.assembler.feed(delta)
        self._texts.append(out.text)
        self._output.token_ids.extend(out.token_ids)
        if out.logprobs is not None and self._output.logprobs is not None:
            self._output.logprobs.extend(self._names.logprobs(p) for p in out.logprobs)
        return out

    def result(self) -> CompletionOutput:
        """The completion so far."""
        output = self._output
        output.text = "".join(self._texts)
        output.finish_reason = self.assembler.finish_reason
        output.stop_reason = self.assembler.stop_reason
        if output.logprobs is not None:
            output.cumulative_logprob = self.assembler.cumulative_logprob
        return output
