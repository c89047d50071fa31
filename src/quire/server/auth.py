"""API keys: every route needs one where keys are set, but for the few that tell whether the server lives."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

from starlette._utils import get_route_path
from starlette.types import ASGIApp, Receive, Scope, Send

from quire.server.errors import error_response

PUBLIC_PATHS = frozenset({"/health", "/ready", "/ping"})


class Keys:
    """The accepted keys, kept as hashes."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def tenant(self, authorization: str) -> str | None:
        """Who presents this ``Authorization`` header: a name made from the key, or ``None`` for no valid key."""
        scheme, _, key = authorization.partition(" ")
        digest = _digest(key.strip())
        # Compare with every key, so that the time says nothing about which one matched.
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        if scheme.lower() != "bearer" or not any(matches):
            return None
        return hashlib.sha256(b"quire tenant\0" + digest).hexdigest()[:16]


class RequireKey:
    """ASGI middleware that answers 401 to all but ``PUBLIC_PATHS`` unless a valid key is shown.

    It stands before routing, so a route added later is protected too; the public paths are compared whole, as the
    router sees them. Sets ``scope["state"]["tenant"]``.
    """

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        tenant: str | None = ""
        if self._keys and scope["type"] in ("http", "websocket") and get_route_path(scope) not in PUBLIC_PATHS:
            values = [value for name, value in scope["headers"] if name == b"authorization"]
            tenant = self._keys.tenant(values[0].decode("latin-1")) if len(values) == 1 else None
        if tenant is None:
            message = "A valid API key is needed: send it as 'Authorization: Bearer KEY'."
            await error_response(401, message, headers={"WWW-Authenticate": "Bearer"})(scope, receive, send)
            return
        if scope["type"] == "http":
            scope.setdefault("state", {})["tenant"] = tenant
        await self._app(scope, receive, send)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
