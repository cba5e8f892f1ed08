"""One process that keeps responses for every ingress process."""

from __future__ import annotations

from typing import Any, cast

from ray.exceptions import RayActorError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from serve.http.errors import ApiError
from serve.http.stateful.store import Stored


class RemoteStore:
    """A `MemoryStore` behind a Ray Serve handle. Its responses are gone when its process is."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle

    async def put(self, key: str, stored: Stored) -> None:
        """Keep a response."""
        await self._call("put", key, stored)

    async def get(self, key: str, owner: str) -> Stored | None:
        """Return the owner's response, if it is still there."""
        return cast("Stored | None", await self._call("get", key, owner))

    async def delete(self, key: str, owner: str) -> bool:
        """Drop the owner's response; return whether it was there."""
        return cast(bool, await self._call("delete", key, owner))

    async def _call(self, method: str, *args: Any) -> Any:
        try:
            return await self._handle.options(method_name=method).remote(*args)
        except (RayActorError, DeploymentUnavailableError) as error:
            message = "responses cannot be kept or read at present; try again"
            raise ApiError(503, message, code="no_store") from error
