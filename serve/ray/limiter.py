"""Limits per key over several ingress processes: one deployment has the buckets of all."""

from __future__ import annotations

from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from serve.http.errors import ApiError
from serve.security.limits import Buckets, Kind, Taken


class KeyLimits:
    """The buckets of all keys. A new process begins with full ones."""

    def __init__(self) -> None:
        self._buckets = Buckets()

    async def take(self, key: str, kind: Kind, per_minute: int, cost: int) -> Taken:
        return self._buckets.take(key, kind, per_minute, cost)

    async def give(self, key: str, kind: Kind, per_minute: int, amount: int) -> None:
        self._buckets.give(key, kind, per_minute, amount)


class RemoteLimiter:
    """`KeyLimits` behind its handle."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle

    async def take(self, key: str, kind: Kind, per_minute: int, cost: int) -> Taken:
        """Ask for `cost`; raise ApiError 503 while no process can say, so that no limit is lost."""
        try:
            taken: Taken = await self._handle.take.remote(key, kind, per_minute, cost)
        except (RayError, RayServeException) as error:
            raise ApiError(
                503, "the limits of keys cannot be read now; try again", code="limits_unavailable"
            ) from error
        return taken

    def give(self, key: str, kind: Kind, per_minute: int, amount: int) -> None:
        self._handle.give.remote(key, kind, per_minute, amount)
