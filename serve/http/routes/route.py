"""One route of the HTTP application."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from fastapi import Response

from serve.http.fields import Strict

# In place of an HTTP method.
WEBSOCKET = "WEBSOCKET"


class Route(NamedTuple):
    """A path, the coroutine function that answers it, its HTTP method, and the request's body."""

    path: str
    endpoint: Callable[..., Awaitable[Response | None]]
    method: str = "GET"
    body: type[Strict] | None = None

    @property
    def methods(self) -> list[str]:
        """HTTP methods of this route; HEAD is a GET whose answer has no body."""
        return ["GET", "HEAD"] if self.method == "GET" else [self.method]
