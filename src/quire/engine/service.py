"""Messages in, messages out: the engine's side of the line, whatever carries it."""

from __future__ import annotations

import logging
import time

import msgspec

from quire.config.engine import EngineConfig
from quire.engine.core import EngineCore
from quire.engine.errors import QueueFull
from quire.engine.messages import (
    Abort,
    ClientMessage,
    DeltaBatch,
    EngineReady,
    EngineRequest,
    EngineStats,
    Rejected,
    ResetPrefixCache,
    TokenDelta,
)
from quire.engine.plan import LoadedRunner
from quire.params import ParameterError

log = logging.getLogger("quire.engine")

_STATS_EVERY_S = 0.25


class EngineService:
    """Drives an ``EngineCore`` by messages."""

    def __init__(self, runner: LoadedRunner, config: EngineConfig) -> None:
        self.core = EngineCore(runner, config)
        self.ready = EngineReady(
            max_model_len=self.core.limits.max_model_len,
            vocab_size=runner.vocab_size,
            slots=self.core.scheduler.slots,
            num_pages=self.core.kv.total_pages,
            page_size=runner.page_size,
            model_bytes=runner.model_bytes,
            kv_bytes=runner.kv_bytes,
            phases=runner.phases,
        )
        self._stats_due = 0.0

    def handle(self, message: ClientMessage) -> DeltaBatch | Rejected | None:
        """Act on a message (but for ``Shutdown``, which is the caller's); returns the answer, if it has one."""
        match message:
            case EngineRequest():
                return self._add(message)
            case Abort():
                self.core.abort(message.request_ids)
            case ResetPrefixCache():
                self.core.reset_prefix_cache()
            case _:
                pass
        return None

    def step(self) -> list[DeltaBatch | EngineStats]:
        """Run a step; returns its deltas, and statistics when they are due."""
        out: list[DeltaBatch | EngineStats] = []
        deltas = self.core.step()
        if deltas:
            out.append(DeltaBatch(deltas))
        now = time.monotonic()
        if now >= self._stats_due or not self.core.has_work:
            self._stats_due = now + _STATS_EVERY_S
            out.append(self.core.stats())
        return out

    def _add(self, request: EngineRequest) -> DeltaBatch | Rejected | None:
        try:
            self.core.add(request)
        except QueueFull as full:
            return Rejected(request.request_id, str(full), full.retry_after)
        except ParameterError as error:
            if error.param == "request_id":
                log.warning("A request was dropped: its id is in use.")
                return None
            return refusal(request.request_id, str(error))
        return None


def refusal(request_id: str, message: str) -> DeltaBatch:
    """The end of a request that the engine will not run."""
    return DeltaBatch([TokenDelta(request_id, finish_reason="error", error=message)])


class _Name(msgspec.Struct):
    request_id: str


def refuse_undecodable(frame: bytes) -> DeltaBatch | None:
    """An answer to a message that is not one of ours, if it says at least which request it was."""
    try:
        name = msgspec.msgpack.decode(frame, type=_Name)
    except (msgspec.DecodeError, ValueError, RecursionError):
        log.warning("A message of %d bytes could not be read and was dropped.", len(frame))
        return None
    log.warning("A malformed request was refused.")
    return refusal(name.request_id, "The engine could not read the request.")
