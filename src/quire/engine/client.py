"""The engine as the front sees it: the same whether it runs in a thread here or in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import msgspec

from quire.engine.admission import Limits
from quire.engine.messages import EngineReady, EngineRequest, EngineStats
from quire.engine.streams import TokenStream

STALL_S = 8.0  # without a finished step while work is outstanding: no longer ready


class Health(msgspec.Struct, frozen=True):
    """Whether the engine makes progress. ``idle_s``: seconds since it last finished a step or had nothing to do."""

    started: bool  # False while it starts or restarts
    outstanding: int  # requests it owes an end
    idle_s: float
    restarts: int
    dead: str | None  # why it will not come back

    @property
    def stalled(self) -> bool:
        return self.outstanding > 0 and self.idle_s > STALL_S

    @property
    def ready(self) -> bool:
        return self.started and self.dead is None and not self.stalled

    @property
    def reason(self) -> str | None:
        """Why it is not ready, in one sentence."""
        if self.dead is not None:
            return self.dead
        if not self.started:
            return "The engine is restarting." if self.restarts else "The engine is starting."
        if self.stalled:
            return f"The engine has finished no step for {self.idle_s:.0f} s with {self.outstanding} requests waiting."
        return None


class EngineClient(Protocol):
    """All methods belong to the event loop that called ``start``."""

    async def start(self, progress: Callable[[str], None] | None = None) -> EngineReady:
        """Load the model; ``progress`` hears each phase as it begins. Raises ``EngineDead``."""
        ...

    def generate(self, request: EngineRequest) -> TokenStream:
        """Queue a request at once; iterate for its deltas, the last of which has ``finish_reason``.

        Closing the stream, cancelling a wait for it or dropping it aborts the request. Raises ``QueueFull``,
        ``EngineDead``, or ``ParameterError`` (both here, and ``QueueFull`` also from the first wait).
        """
        ...

    async def abort(self, request_ids: Iterable[str]) -> None:
        """Cancel requests: their streams end with finish_reason "abort". Unknown ids are ignored."""
        ...

    async def reset_prefix_cache(self) -> None: ...

    async def shutdown(self) -> None:
        """End the engine; streams still open end with finish_reason "abort"."""
        ...

    @property
    def limits(self) -> Limits:
        """What a request may ask; known after ``start``."""
        ...

    @property
    def stats(self) -> EngineStats:
        """Counters and gauges, at most half a second old while the engine works."""
        ...

    @property
    def health(self) -> Health: ...
