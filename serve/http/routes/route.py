"""One route of the HTTP application."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from fastapi import Response

from serve.http.fields import Strict

# In place of an HTTP method.
WEBSOCKET = "WEBSOCKET"


class Route(NamedTuple):
    """A path, the coroutine function that answers it, its HTTP method, and types of both bodies.

    `answer` is the type of a JSON answer; it describes, and checks nothing.
    """

    path: str
    endpoint: Callable[..., Awaitable[Response | None]]
    method: str = "GET"
    body: type[Strict] | None = None
    answer: Any = None

    @property
    def methods(self) -> list[str]:
        """HTTP methods of this route; HEAD is a GET whose answer has no body."""
        return ["GET", "HEAD"] if self.method == "GET" else [self.method]
