"""What the routes share: the model being served, its engine, and the requests in flight."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from fastapi import Request

from quire.config.server import ServerConfig
from quire.engine.client import EngineClient
from quire.engine.errors import EngineDead
from quire.engine.messages import EngineReady, EngineRequest, EngineStats
from quire.params import ParameterError, SamplingParams
from quire.server.auth import Keys
from quire.server.errors import ApiError, unavailable
from quire.server.generation import Choice, Generation, make_choices
from quire.server.metrics import Metrics
from quire.server.openai.fields import REQUEST_ID
from quire.text.prompt import EncodedPrompt, Processor

if TYPE_CHECKING:
    from quire.text.front import TextFront

_OFF_LOOP_CHARS = 4096  # longer texts are tokenised in a thread: they would hold up other streams' tokens
_PROBES = frozenset({"/health", "/ready", "/ping", "/metrics"})
logger = logging.getLogger("quire.server")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Loaded:
    """What is there once the model can be served."""

    engine: EngineClient
    text: TextFront
    processor: Processor


@dataclass
class ModelCard:
    """The model's names in the API, the first being the one returned, and what ``/v1/models`` tells of it."""

    names: tuple[str, ...]
    accepted: frozenset[str]  # names that requests may use
    created: int = field(default_factory=lambda: int(time.time()))
    max_model_len: int | None = None
    has_chat_template: bool = False
    sampling_defaults: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, model: str, served: Sequence[str]) -> ModelCard:
        """Names for what the command line calls ``model``; a path shows as its last part only."""
        path = Path(model).expanduser()
        own = path.resolve().name.removesuffix(".gguf") if path.exists() else model.removeprefix("pypi:")
        names = tuple(served) or (own,)
        return cls(names, frozenset(names if served else (own, model)))

    @property
    def name(self) -> str:
        return self.names[0]


class Service:
    """State of one server. ``phase`` is "ready", or says why requests are turned away."""

    def __init__(self, config: ServerConfig, card: ModelCard, keys: Keys, *, priorities: bool = False) -> None:
        """``priorities``: the scheduler heeds them."""
        self.config = config
        self.card = card
        self.keys = keys
        self.phase = "starting"
        self._priorities = priorities
        self.metrics = Metrics(card.name, lambda: self.stats)
        self.in_flight = 0  # HTTP requests, probes among them
        self.running: dict[str, list[Generation]] = {}
        self._loaded: Loaded | None = None

    def open(self, engine: EngineClient, text: TextFront, ready: EngineReady, phases: Mapping[str, float]) -> None:
        """Start taking requests. ``phases``: seconds that each part of the start took."""
        self._loaded = Loaded(engine, text, text.processor(engine.limits))
        self.card.max_model_len = engine.limits.max_model_len
        self.card.has_chat_template = text.template is not None
        self.card.sampling_defaults = text.sampling_defaults
        self.metrics.ready, self.metrics.phases = ready, phases
        self.phase = "ready"

    @property
    def opened(self) -> bool:
        """Whether it has ever been ready."""
        return self._loaded is not None

    @property
    def alive(self) -> bool:
        """Whether there is an engine that works, or will again."""
        return self._loaded is not None and self._loaded.engine.health.dead is None

    @property
    def stats(self) -> EngineStats | None:
        return self._loaded.engine.stats if self._loaded is not None else None

    @property
    def loaded(self) -> Loaded:
        """Raises ``ApiError`` (503) while the server takes no requests."""
        if self._loaded is None or self.phase != "ready":
            raise unavailable(f"The server takes no requests now: it is {self.phase}.")
        return self._loaded

    @property
    def serving_card(self) -> ModelCard:
        """The card, once its facts are known. Raises ``ApiError`` (503) before."""
        _ = self.loaded
        return self.card

    def obstacle(self) -> str | None:
        """What keeps the server from serving, in one sentence; also work that makes no progress."""
        if self.phase != "ready" or self._loaded is None:
            return f"The server is {self.phase}."
        return self._loaded.engine.health.reason

    def account(self, route: str, method: str, status: int, seconds: float) -> None:
        """Note one HTTP request that ended."""
        if route in _PROBES:
            return
        self.metrics.http_request(route, method, status)
        if self.config.enable_log_requests:
            logger.info("%s %s %d %.3f s", method, route, status, seconds)

    def check_model(self, name: str | None) -> None:
        if name and name not in self.card.accepted:
            raise ApiError(404, f"This server has no such model; it serves {self.card.name}.", "model")

    def check_priority(self, priority: int | None) -> int:
        """Raises ``ParameterError`` for a priority that the scheduler would not heed."""
        if priority and not self._priorities:
            raise ParameterError("priority", "priority needs a server started with --scheduling-policy priority.")
        return priority or 0

    async def off_loop(self, size: int, work: Callable[[], T]) -> T:
        """``work()``, in a thread when ``size`` characters make it long."""
        return await asyncio.to_thread(work) if size > _OFF_LOOP_CHARS else work()

    def generation(
        self,
        public_id: str,
        tenant: str,
        prompts: list[tuple[EncodedPrompt, list[EngineRequest]]],
        params: SamplingParams,
        arrival: float,
    ) -> Generation:
        loaded = self.loaded
        choices: list[Choice] = make_choices(prompts, loaded.text.stream)
        self.metrics.admitted(params.n, choices[0].request.params.max_tokens or 0)
        return Generation(public_id, tenant, choices, loaded.engine, self.metrics, arrival)

    @contextmanager
    def registered(self, generation: Generation) -> Iterator[None]:
        """Count a generation as in flight, and let it be cancelled by its id."""
        same_id = self.running.setdefault(generation.public_id, [])
        same_id.append(generation)
        try:
            yield
        finally:
            same_id.remove(generation)
            if not same_id:
                self.running.pop(generation.public_id, None)

    async def cancel(self, public_id: str, tenant: str) -> int:
        """Cancel this tenant's requests of that id; returns how many there were."""
        found = [g for g in self.running.get(public_id, []) if g.tenant == tenant]
        for generation in found:
            await generation.cancel()
        return len(found)

    async def fail_all(self, message: str) -> None:
        """End everything in flight with a 503, as an error event where a stream has begun."""
        with suppress(EngineDead):  # then they have ended already
            for generation in [g for same_id in self.running.values() for g in same_id]:
                await generation.fail(unavailable(message))


def service_of(request: Request) -> Service:
    return cast(Service, request.app.state.service)


def tenant_of(request: Request) -> str:
    return cast(str, request.state.tenant)


def cache_salt(tenant: str, salt: str | None) -> str:
    """Keeps tenants' prefix caches apart; ``salt`` divides a tenant's own. A tenant name holds no colon."""
    return f"{tenant}:{salt or ''}" if tenant or salt else ""


def request_id(prefix: str, request: Request, given: str | None) -> str:
    """The id shown to the client: its own (header or field) or a new one."""
    own = request.headers.get("x-request-id")
    if own and not REQUEST_ID.fullmatch(own):
        raise ApiError(400, "X-Request-Id must be 1 to 128 letters, digits or any of _ . : -", "request_id")
    return f"{prefix}-{own or given or uuid.uuid4().hex}"
