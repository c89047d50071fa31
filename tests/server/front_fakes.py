"""A tokenizer of bytes and an engine without a model, for tests of the front alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from hashlib import blake2b

from quire.engine.admission import Limits
from quire.engine.client import Health
from quire.engine.messages import EngineRequest, EngineStats, TokenDelta, TokenLogprobs
from quire.text.front import TextFront
from quire.text.output import TokenNames
from quire.text.protection import Rendered

BOS, EOS = 256, 257
VOCAB = 260
CONTEXT = 512


class ByteStream:
    """Incremental UTF-8."""

    def __init__(self) -> None:
        import codecs

        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        return self._decoder.decode(bytes([token_id])) if token_id < 256 else ""

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class ByteTokenizer:
    """Ids are bytes; BOS is added in front."""

    max_chars_per_token = 1

    def encode(self, text: str, add_special_tokens: bool = True, parse_special: bool = True) -> list[int]:
        return ([BOS] if add_special_tokens else []) + list(text.encode())

    def encode_template(self, rendered: Rendered, add_special_tokens: bool = False) -> list[int]:
        return self.encode(rendered.text, add_special_tokens)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return bytes(i for i in ids if i < 256).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if token_id < 256 else b"<special>"

    def stream(self, skip_special_tokens: bool = True, prompt_ids: object = None) -> ByteStream:
        return ByteStream()


class FakeStream:
    """What ``TokenStream`` is to its reader."""

    def __init__(self, engine: FakeEngine, request: EngineRequest) -> None:
        self._engine, self._id = engine, request.request_id
        self._deltas = engine._tokens(request)
        self._open = True

    def __aiter__(self) -> FakeStream:
        return self

    async def __anext__(self) -> TokenDelta:
        delta = await anext(self._deltas)
        if delta.finish_reason is not None:
            self._open = False
            self._engine.running.pop(self._id, None)
        return delta

    async def aclose(self) -> None:
        await self._deltas.aclose()
        if self._open:
            self._open = False
            self._engine.aborted.append(self._id)
            self._engine.running.pop(self._id, None)


class FakeEngine:
    """Answers with letters that follow from the prompt and the seed alone. ``hold`` stops all progress while set."""

    def __init__(self, delay: float = 0.0, batch: int = 1) -> None:
        self.delay = delay
        self.batch = batch
        self.stats = EngineStats(total_pages=100, free_pages=100)
        self.running: dict[str, bool] = {}
        self.aborted: list[str] = []
        self.seen: list[EngineRequest] = []
        self.dead: str | None = None
        self.fail_after: int | None = None
        self.fail_with: Exception | None = None

    def generate(self, request: EngineRequest) -> FakeStream:
        if self.fail_with is not None:
            raise self.fail_with
        self.running[request.request_id] = True
        self.seen.append(request)
        return FakeStream(self, request)

    @property
    def limits(self) -> Limits:
        return Limits(CONTEXT, VOCAB, 20)

    @property
    def health(self) -> Health:
        return Health(True, len(self.running), 0.0, 0, self.dead)

    async def _tokens(self, request: EngineRequest) -> AsyncGenerator[TokenDelta, None]:
        params, made = request.params, 0
        limit = params.max_tokens or 16
        now = time.time()
        while made < limit:
            await asyncio.sleep(self.delay)
            if not self.running.get(request.request_id):
                yield TokenDelta(request.request_id, [], finish_reason="abort")
                return
            if self.fail_after is not None and made >= self.fail_after:
                yield TokenDelta(request.request_id, finish_reason="error", error="/no/such: 0xdeadbeef")
                return
            count = min(self.batch, limit - made)
            ids = [letter(request, made + i) for i in range(count)]
            delta = TokenDelta(request.request_id, ids)
            if params.logprobs is not None:
                delta.logprobs = [_logprobs(i, params.logprobs) for i in ids]
            if made == 0:
                delta.scheduled_time, delta.first_token_time = now, time.time()
                if params.prompt_logprobs is not None:
                    k = params.prompt_logprobs
                    delta.prompt_logprobs = [None, *(_logprobs(i, k) for i in request.prompt_token_ids[1:])]
            made += count
            if made == limit:
                delta.finish_reason = "length"
            yield delta

    async def abort(self, request_ids: Sequence[str]) -> None:
        for request_id in request_ids:
            self.aborted.append(request_id)
            if request_id in self.running:
                self.running[request_id] = False

    async def reset_prefix_cache(self) -> None:
        pass


def letter(request: EngineRequest, position: int) -> int:
    seed = 0 if request.params.greedy else request.seed
    digest = blake2b(repr((request.prompt_token_ids, seed, position)).encode(), digest_size=2).digest()
    return b"abcdefghijklmnopqrstuvwxyz ."[int.from_bytes(digest, "big") % 28]


def _logprobs(token_id: int, k: int) -> TokenLogprobs:
    others = [(token_id + i) % 256 for i in range(k)]
    return TokenLogprobs([token_id, *others], [-0.5, *(-0.5 - i for i in range(k))], [1, *range(1, k + 1)])


class FakeTemplate:
    def render(self, messages: Sequence[dict[str, str]], **variables: object) -> Rendered:
        return Rendered("".join(f"<{m['role']}>{m['content']}" for m in messages) + "<assistant>")


def fake_text() -> TextFront:
    tokenizer = ByteTokenizer()
    return TextFront(tokenizer, FakeTemplate(), TokenNames(tokenizer), (EOS,), {}, 0)
