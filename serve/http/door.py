"""The outermost layer: request ids, other sites' pages, safe response headers, log lines."""

from __future__ import annotations

import ipaddress
import logging
import re
import time
import uuid
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llamahome.logs import ABOUT
from serve.http.errors import ACCESS, ApiError, refuse
from serve.http.guard import OPEN_PATHS, Guard
from serve.security.audit import AuditLog
from serve.security.call import CALL, Call
from serve.security.limits import Limiter
from serve.security.settings import SecuritySettings, keyring

if TYPE_CHECKING:
    from serve.tracing import Tracing

access = logging.getLogger(ACCESS)

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
# The `anthropic` client reads the second one.
REQUEST_ID_HEADERS = ("X-Request-Id", "Request-Id")
PATH_LOGGED = 256
CLIENT_LEFT = 499
QUIET_PATHS = (*OPEN_PATHS, "/metrics")
# A page that shows something, such as the documentation, brings a policy of its own.
SAFE_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
HSTS = {"Strict-Transport-Security": "max-age=31536000"}
# Headers by which a client would control Ray Serve; the application never sees them.
PROXY_HEADERS = (
    b"x-request-timeout-seconds",
    b"x-request-disconnect-disabled",
    b"serve_multiplexed_model_id",
    b"serve-multiplexed-model-id",
)
# `openai` and `anthropic` send their own headers from a browser, too.
OPENAI_HEADERS = tuple(
    f"x-stainless-{name}"
    for name in (
        *("arch", "lang", "os", "package-version", "retry-count", "runtime", "runtime-version"),
        *("timeout", "async", "helper-method", "poll-helper"),
    )
)
ANTHROPIC_HEADERS = (
    *("x-api-key", "anthropic-version", "anthropic-beta"),
    "anthropic-dangerous-direct-browser-access",
)
ALLOWED_HEADERS = (
    *("authorization", "content-type", "x-request-id"),
    *OPENAI_HEADERS,
    *ANTHROPIC_HEADERS,
)
RATES = tuple(
    f"x-ratelimit-{what}-{kind}"
    for what in ("limit", "remaining", "reset")
    for kind in ("requests", "tokens")
)


def behind_door(
    app: ASGIApp,
    settings: SecuritySettings,
    limiter: Limiter,
    *,
    max_body_bytes: int,
    tracing: Tracing | None = None,
) -> ASGIApp:
    """Return `app` behind the guard, the rules for web pages, the log lines and the spans."""
    guarded: ASGIApp = Guard(
        app, keys=keyring(settings), max_body_bytes=max_body_bytes, limiter=limiter
    )
    if settings.cors_origins:
        guarded = CORSMiddleware(
            guarded,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=ALLOWED_HEADERS,
            expose_headers=(*REQUEST_ID_HEADERS, "retry-after", *RATES),
        )
    audit = None if settings.audit_log is None else AuditLog(settings.audit_log)
    headers = {**SAFE_HEADERS, **(HSTS if settings.tls else {})}
    checked: ASGIApp = OriginCheck(guarded, settings.cors_origins)
    return Door(checked if tracing is None else tracing.around(checked), headers, audit)


@dataclass(frozen=True)
class Door:
    """Gives each request its id and each answer its headers, and writes log and audit log."""

    app: ASGIApp
    headers: dict[str, str]
    audit: AuditLog | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id")
        plain = given is not None and REQUEST_ID.fullmatch(given) is not None
        call = Call(request_id=given if given is not None and plain else uuid.uuid4().hex)
        # Never reset: uvicorn logs what the application raises in the same task.
        ABOUT.set(lambda: call.origin.about())
        start, status = time.time(), CLIENT_LEFT

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                status = message["status"]
                self._complete(MutableHeaders(scope=message), call)
            elif message["type"] == "websocket.accept":
                status = 101
                message.setdefault("headers", [])
                self._complete(MutableHeaders(scope=message), call)
            await send(message)

        token = CALL.set(call)
        try:
            if given is not None and not plain:
                error = ApiError(
                    400,
                    "x-request-id: use 1 to 128 letters, digits and ._-",
                    param="x-request-id",
                    code="invalid_value",
                )
                await refuse(error, scope, receive, answer)
            else:
                await self.app(_for_application(scope, call), receive, answer)
        finally:
            CALL.reset(token)
            _log(scope, call, status)
            if self.audit is not None:
                self.audit.write(_record(scope, call, status, start))

    def _complete(self, headers: MutableHeaders, call: Call) -> None:
        for name, value in self.headers.items():
            headers.setdefault(name, value)
        for name in REQUEST_ID_HEADERS:
            headers[name] = call.request_id
        for name, value in call.rates.items():
            headers[f"x-ratelimit-{name}"] = value


@dataclass(frozen=True)
class OriginCheck:
    """Refuses web pages of other sites, even those that a name in DNS leads here.

    A browser says whose page asks. A page that this endpoint itself serves is let in only under an
    address: a name may be one that an attacker has pointed here.
    """

    app: ASGIApp
    allowed: Collection[str]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            headers = Headers(scope=scope)
            origin = headers.get("origin")
            if origin is not None and not self._lets_in(origin, headers.get("host", "")):
                error = ApiError(
                    403,
                    "pages of this origin may not use the endpoint (serve.cors_origins)",
                    param="origin",
                    code="origin_not_allowed",
                )
                await refuse(error, scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _lets_in(self, origin: str, host: str) -> bool:
        if origin in self.allowed:
            return True
        try:
            url = urlsplit(origin)
        except ValueError:
            return False
        return url.netloc == host and _is_address(url.hostname or "")


def _is_address(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _for_application(scope: Scope, call: Call) -> Scope:
    """Return the scope without headers for Ray Serve, and with the request's id."""
    dropped = (*PROXY_HEADERS, b"x-request-id")
    kept = [(name, value) for name, value in scope["headers"] if name.lower() not in dropped]
    return {**scope, "headers": [*kept, (b"x-request-id", call.request_id.encode())]}


def _log(scope: Scope, call: Call, status: int) -> None:
    """Write the one line of a request; probes that are answered are of no interest."""
    cut = call.error is not None and status < 400
    level = logging.WARNING if cut or status >= 500 else logging.INFO
    if status == 200 and scope["path"] in QUIET_PATHS:
        level = logging.DEBUG
    if access.isEnabledFor(level):
        outcome = "client left" if call.left or status == CLIENT_LEFT else _outcome(status, cut)
        access.log(level, outcome, extra=_line(scope, call, status))


def _outcome(status: int, cut: bool) -> str:
    if cut or status >= 500:
        return "failed"
    return "answered" if status < 400 else "refused"


def _line(scope: Scope, call: Call, status: int) -> dict[str, object]:
    """Return what a line says of a request; no prompt and no answer, whatever its path holds."""
    client = scope["client"][0] if scope.get("client") else None
    fields: dict[str, object] = {
        "method": scope.get("method", "WEBSOCKET"),
        "path": quote(scope["path"][:PATH_LOGGED]),
        "status": status,
        "client": client,
        "seconds": round(call.seconds, 4),
        "error": call.error,
        "reason": call.reason,
    }
    if call.model is not None:
        fields |= {
            "prompt_tokens": call.prompt_tokens or None,  # known at an answer's end
            "cached_tokens": call.cached_tokens if call.prompt_tokens else None,
            "completion_tokens": call.completion_tokens,
            "ttft_s": None if call.ttft_s is None else round(call.ttft_s, 4),
            "finish": ",".join(sorted(call.finishes)) or None,
            "engine": ",".join(sorted(call.replicas)) or None,
        }
    return {name: value for name, value in fields.items() if value is not None}


def _record(scope: Scope, call: Call, status: int, start: float) -> dict[str, object]:
    """Return who asked, for what, when, and what came of it; no prompt and no answer."""
    return {
        "time": datetime.fromtimestamp(start, UTC).isoformat(timespec="milliseconds"),
        "request_id": call.request_id,
        "key": None if call.key is None else call.key.id,
        "name": None if call.key is None else call.key.name,
        "client": scope["client"][0] if scope.get("client") else None,
        "method": scope.get("method", "WEBSOCKET"),
        "path": scope["path"][:PATH_LOGGED],
        "model": call.model,
        "status": status,
        "finish": sorted(call.finishes),
        "prompt_tokens": call.prompt_tokens,
        "completion_tokens": call.completion_tokens,
        "seconds": round(time.time() - start, 3),
    }
