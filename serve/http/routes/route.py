"""One route of the HTTP application."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from fastapi import Response


class Route(NamedTuple):
    """A path, the coroutine function that answers it, and its HTTP method."""

    path: str
    endpoint: Callable[..., Awaitable[Response]]
    method: str = "GET"
