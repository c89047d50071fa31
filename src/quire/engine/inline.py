"""The engine in the caller's process, driven step by step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from quire.config.engine import EngineConfig
from quire.engine.core import EngineCore
from quire.engine.messages import EngineRequest, EngineStats, TokenDelta
from quire.engine.plan import Runner


class InlineEngine:
    """Synchronous driver: ``add`` requests, then ``step`` until none is left. Its queue is unbounded."""

    def __init__(self, runner: Runner, config: EngineConfig) -> None:
        self.core = EngineCore(runner, config, bounded=False)

    @property
    def has_work(self) -> bool:
        return self.core.has_work

    @property
    def max_model_len(self) -> int:
        return self.core.limits.max_model_len

    def add(self, request: EngineRequest) -> None:
        """Queue a request. Raises ``ParameterError`` when it can never run."""
        self.core.add(request)

    def step(self) -> list[TokenDelta]:
        """Run one step (blocks for its time)."""
        return self.core.step()

    def run(self) -> Iterator[TokenDelta]:
        """Step until all requests are done. Closing the iterator early leaves them queued: ``abort`` what is left."""
        while self.core.has_work:
            yield from self.core.step()

    def abort(self, request_ids: Iterable[str]) -> None:
        self.core.abort(request_ids)

    def reset_prefix_cache(self) -> None:
        self.core.reset_prefix_cache()

    def stats(self) -> EngineStats:
        return self.core.stats()
