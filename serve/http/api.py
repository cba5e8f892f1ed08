"""The HTTP application: every family of routes over one backend. Knows nothing of Ray."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from llamahome.requests import RequestError
from serve.http.answering import Answering, Backend
from serve.http.changes import CatalogStore, Changes, LocalCatalog
from serve.http.checked import CheckedBackend
from serve.http.docs import doc_routes
from serve.http.door import behind_door
from serve.http.errors import ApiError, invalid_request, note_error
from serve.http.metrics import Meter, ServeMetrics
from serve.http.page import page_routes
from serve.http.placed import PlacedBackend
from serve.http.routes import (
    admin,
    chat,
    completions,
    embeddings,
    lens,
    messages,
    models,
    plain,
    responses,
    scores,
    state,
    tokens,
)
from serve.http.routes.route import WEBSOCKET
from serve.http.settings import HttpSettings, catalog_of
from serve.http.stateful.store import Store
from serve.security.limits import Limiter, LocalLimiter

if TYPE_CHECKING:
    from serve.tracing import Tracing

FAMILIES = (
    state,
    models,
    completions,
    embeddings,
    chat,
    responses,
    messages,
    tokens,
    scores,
    lens,
    plain,
)


def build_app(
    backend: Backend,
    settings: HttpSettings,
    limiter: Limiter | None = None,
    store: Store | None = None,
    models: CatalogStore | None = None,
    changes: Changes | None = None,
    tracing: Tracing | None = None,
) -> ASGIApp:
    """Build the whole HTTP application.

    Without a `limiter`, limits hold for this process alone; without a `store`, no responses are
    kept; without `models` and `changes`, the models are those of the settings, for ever; without
    `tracing`, no spans are made.
    """
    metrics = ServeMetrics((settings.model_id, *settings.adapters))
    limiter = limiter or LocalLimiter()
    models = models or LocalCatalog(catalog_of(settings))
    checked = CheckedBackend(PlacedBackend(backend, models), limiter, settings.model_id)
    answering = Answering(checked, settings, metrics, store, models)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    routes = [route for family in FAMILIES for route in family.routes(answering)]
    if changes is not None:
        routes += admin.routes(changes)
    if settings.page:
        routes += page_routes()
    if settings.docs:
        routes += doc_routes(routes)
    for route in routes:
        if route.method == WEBSOCKET:
            app.add_api_websocket_route(route.path, route.endpoint)
        else:
            methods = route.methods
            app.add_api_route(route.path, route.endpoint, methods=methods, response_model=None)
    for kind in (ApiError, RequestError, HTTPException, Exception):
        app.add_exception_handler(kind, _error)
    limit = settings.max_body_bytes
    door = behind_door(app, settings.security, limiter, max_body_bytes=limit, tracing=tracing)
    return Meter(door, metrics, [route.path for route in routes])


async def _error(request: Request, error: Exception) -> Response:
    """Answer an error that an endpoint or the router raised; Starlette logs what is unexpected."""
    refusal = _refusal(error)
    note_error(refusal)
    response = refusal.response(request.url.path)
    if isinstance(error, HTTPException):
        response.headers.update(error.headers or {})
    return response


def _refusal(error: Exception) -> ApiError:
    match error:
        case ApiError():
            return error
        case RequestError():
            return invalid_request(error.for_client(error.field), error.field)
        case HTTPException():  # the router's 404 and 405
            return ApiError(error.status_code, error.detail)
    return ApiError(500, "internal error; the server's log has the details", code="internal")
