"""Errors in the words of OpenAI's API, and the error of an endpoint that does not start."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from serve.security.call import CALL

ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
# Anthropic's client, whose tool runner asks for a thread, goes on without one when it reads this.
ANTHROPIC_DETAILS = {
    "thread": {"error_code": "thread_unsupported_request", "unsupported": ["thread"]},
}
POLICY_VIOLATION = 1008
# A client's name for a model may be of any length.
NAME_SHOWN = 100
# The logger that has one line for each request.
ACCESS = "serve.access"


class EndpointError(Exception):
    """The endpoint could not be started."""


@dataclass(eq=False)
class ApiError(Exception):
    """An answer other than 200; 429 and 503 ask the client to try again.

    Attributes:
        status: HTTP status.
        param: the field that is wrong, if one is.
        code: a word that clients may look for.
        retry_after_s: when to try again.
    """

    status: int
    message: str
    _: KW_ONLY
    param: str | None = None
    code: str | None = None
    retry_after_s: int = 1

    def __str__(self) -> str:
        return self.message

    def body(self) -> dict[str, dict[str, str | None]]:
        """Return the body of an answer, in the shape of OpenAI's API."""
        return {
            "error": {
                "message": self.message,
                "type": _error_type(self.status),
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self, path: str = "") -> JSONResponse:
        """Return the answer on a path: below /v1/messages in Anthropic's shape, else OpenAI's."""
        headers = {}
        if self.status in (429, 503):
            headers["Retry-After"] = str(self.retry_after_s)
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        body = self.anthropic() if path.startswith("/v1/messages") else self.body()
        return JSONResponse(body, self.status, headers)

    def anthropic(self) -> dict[str, Any]:
        """Return the body in the shape of Anthropic's API."""
        usual = "invalid_request_error" if self.status < 500 else "api_error"
        kind = ANTHROPIC_TYPES.get(self.status, usual)
        error: dict[str, Any] = {"type": kind, "message": self.message}
        if self.param in ANTHROPIC_DETAILS:
            error["details"] = ANTHROPIC_DETAILS[self.param]
        return {"type": "error", "error": error}


def note_error(error: ApiError) -> None:
    """Have the log say how the current request ended, with a reason where the client has no part
    in its words."""
    call = CALL.get()
    if call is not None:
        call.error = error.code or _error_type(error.status)
        call.reason = error.message if error.status >= 500 else None


async def refuse(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    """Send an error as the answer; a websocket whose server knows no answers is closed instead."""
    note_error(error)
    if scope["type"] == "websocket" and "websocket.http.response" not in scope.get(
        "extensions", {}
    ):
        await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": error.code})
    else:
        await error.response(scope["path"])(scope, receive, send)


def _error_type(status: int) -> str:
    usual = "invalid_request_error" if status < 500 else "server_error"
    named = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    return named.get(status, usual)


def invalid_request(message: str, field: str | None) -> ApiError:
    return ApiError(400, message, param=field, code="invalid_value")


def no_model(name: str, served: Iterable[str]) -> ApiError:
    there = ", ".join(map(repr, served)) or "none"
    return ApiError(
        404,
        f"no model {name[:NAME_SHOWN]!r} here; this endpoint serves {there}",
        param="model",
        code="model_not_found",
    )


def queue_full(message: str) -> ApiError:
    return ApiError(429, message, code="queue_full")


def no_replica() -> ApiError:
    return ApiError(503, "no engine replica could take the request; try again", code="no_replica")
