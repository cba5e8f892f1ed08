"""The model behind each request's name, at the one place that every request passes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Protocol

from serve.catalog import Catalog, Target
from serve.http.changes import CatalogStore
from serve.http.errors import no_model
from serve.wire import Delta, GenerateRequest, ReplicaStats, Request


class _Backend(Protocol):
    def stream(self, request: Request) -> AsyncGenerator[Delta, None]: ...

    async def replicas(self) -> Sequence[ReplicaStats]: ...


class PlacedBackend:
    """A backend whose requests carry the model that they are for.

    Until here, a request's `adapter` is the client's name of any model but the default one.
    """

    def __init__(self, backend: _Backend, models: CatalogStore) -> None:
        self._backend = backend
        self._models = models

    async def replicas(self) -> Sequence[ReplicaStats]:
        return await self._backend.replicas()

    async def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        """Yield the answer; raise ApiError 404 for a name that has just ceased to be served."""
        async with aclosing(self._backend.stream(placed(request, self._models.catalog))) as deltas:
            async for delta in deltas:
                yield delta


def placed(request: Request, catalog: Catalog) -> Request:
    """Return a request with its model, and with an adapter only if its name is one's."""
    name = model_name(request)
    target = Target(catalog.default) if name is None else catalog.target(name)
    if name is not None and target is None:
        raise no_model(name, catalog.names)
    assert target is not None
    if isinstance(request, GenerateRequest):
        params = request.params
        if params.adapter != target.adapter:
            params = replace(params, adapter=target.adapter)
        return replace(request, model=target.served, params=params)
    return replace(request, model=target.served, adapter=target.adapter)


def model_name(request: Request) -> str | None:
    """Return the name that a client gave for a model other than the default one."""
    return request.params.adapter if isinstance(request, GenerateRequest) else request.adapter
