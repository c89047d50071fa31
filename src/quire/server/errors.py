"""The one error shape, and the one place that renders it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from quire.engine.errors import EngineDead, QueueFull
from quire.params import ParameterError

logger = logging.getLogger("quire.server")
_TYPES = {
    400: "BadRequestError",
    401: "AuthenticationError",
    404: "NotFoundError",
    405: "MethodNotAllowedError",
    413: "RequestTooLargeError",
    415: "UnsupportedMediaTypeError",
    429: "RateLimitError",
    431: "HeadersTooLargeError",
    499: "ClientClosedRequest",
    500: "InternalServerError",
    503: "ServiceUnavailableError",
}
_DEFAULT_MESSAGES = {
    404: "There is no such route.",
    405: "This route does not take this method.",
    500: "The server failed on this request; its log says why.",
}
_MAX_MESSAGE = 500

# What a value should have been, by pydantic's name of the error; in braces what its context names.
_EXPECTED = {
    "missing": "is required.",
    "int_type": "must be an integer.",
    "int_from_float": "must be an integer.",
    "float_type": "must be a number.",
    "finite_number": "must be a finite number.",
    "bool_type": "must be true or false.",
    "string_type": "must be a string.",
    "list_type": "must be a list.",
    "dict_type": "must be an object.",
    "model_type": "must be an object.",
    "literal_error": "must be {expected}.",
    "greater_than_equal": "must be at least {ge}.",
    "less_than_equal": "must be at most {le}.",
    "string_too_short": "must not be empty.",
    "string_too_long": "must have at most {max_length} characters.",
    "too_short": "must not be empty.",
    "too_long": "must hold at most {max_length} items.",
    "request_field": "{rule}",
    "model_attributes_type": "must be an object.",
}


class ErrorInfo(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: int


class ErrorBody(msgspec.Struct):
    """``{"error": {...}}``, as every error leaves the server."""

    error: ErrorInfo


class ApiError(HTTPException):
    """An answer other than success. ``message`` is one sentence that holds no path, trace or input."""

    def __init__(
        self, status: int, message: str, param: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(status, message, dict(headers) if headers else None)
        self.param = param

    def body(self) -> bytes:
        return error_body(self.status_code, self.detail, self.param)


def error_body(status: int, message: str, param: str | None = None) -> bytes:
    info = ErrorInfo(message[:_MAX_MESSAGE], _TYPES.get(status, "BadRequestError"), param, status)
    return msgspec.json.encode(ErrorBody(info))


def error_response(
    status: int, message: str, param: str | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    return Response(error_body(status, message, param), status, headers, media_type="application/json")


def overloaded(message: str, retry_after: float) -> ApiError:
    """429: nothing was queued; try again later."""
    return ApiError(429, message, headers={"Retry-After": str(max(1, round(retry_after)))})


def unavailable(message: str) -> ApiError:
    """503: this server can't serve now; the connection closes, so that a balancer picks another."""
    return ApiError(503, message, headers={"Connection": "close"})


def internal_error() -> ApiError:
    return ApiError(500, _DEFAULT_MESSAGES[500])


def as_api_error(error: Exception) -> ApiError:
    """What an exception of the validator or the engine means to a client; anything unknown is logged, and a 500."""
    match error:
        case ApiError():
            return error
        case ParameterError():
            return ApiError(400, str(error), error.param)
        case QueueFull():
            return overloaded(str(error), error.retry_after)
        case EngineDead():
            return unavailable(str(error))
        case RequestValidationError():
            return from_validation(error.errors())
        case HTTPException():
            message = _DEFAULT_MESSAGES.get(error.status_code, "The request can't be served.")
            return ApiError(error.status_code, message, headers=error.headers)
    logger.error("A request failed.", exc_info=error)
    return internal_error()


def from_validation(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """The first of pydantic's errors as one sentence that names the field."""
    first = errors[0]
    loc = [part for part in first["loc"] if part not in ("body", "query", "path", "header")]
    param = field_path(loc)
    if param is None:
        return ApiError(400, "The request needs a JSON object as its body.")
    expected = _EXPECTED.get(first["type"], "has a value that is not allowed here.")
    return ApiError(400, f"{param} {expected.format_map(first.get('ctx', {}))}", param)


def field_path(loc: Sequence[str | int]) -> str | None:
    """``("messages", 0, "role")`` as ``messages[0].role``; names that a client made up are left out."""
    path = ""
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part.isidentifier() and len(part) <= 64:
            path += f".{part}" if path else part
    return path or None


def error_of(error: Exception) -> Response:
    answer = as_api_error(error)
    return error_response(answer.status_code, answer.detail, answer.param, answer.headers)


async def on_error(_: Request, error: Exception) -> Response:
    """Exception handler of the whole application, for the kinds in ``HANDLED``."""
    return error_of(error)


HANDLED = (HTTPException, RequestValidationError, ParameterError, QueueFull, EngineDead)
