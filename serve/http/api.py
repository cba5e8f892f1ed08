"""OpenAI's HTTP endpoints over a backend. Knows nothing of Ray."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from openai import BaseModel as OpenAIModel
from openai.types import Model
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from llamahome.requests import RequestError
from serve.http.calls import with_calls
from serve.http.checked import CheckedBackend
from serve.http.choices import Answers, Indexed, merged
from serve.http.door import behind_door
from serve.http.errors import ApiError, invalid_body, invalid_request, no_model
from serve.http.metrics import AnswerMeter, Meter, ServeMetrics
from serve.http.protocol import ChatRequest, CompletionRequest, EmbeddingRequest
from serve.http.responses import ChatFormat, CompletionFormat, Format, Head, embeddings_of, event
from serve.security.call import CALL
from serve.security.limits import Limiter, LocalLimiter
from serve.security.settings import SecuritySettings
from serve.wire import Delta, ReplicaStats
from serve.wire import Request as WireRequest

logger = logging.getLogger(__name__)

# A long list of texts waits here, so that one request does not fill the engines' queues.
EMBEDDED_AT_ONCE = 8
STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}

Body = TypeVar("Body", ChatRequest, CompletionRequest, EmbeddingRequest)


class Backend(Protocol):
    """The source of answers: engine replicas behind Ray Serve, or a stand-in in tests."""

    def stream(self, request: WireRequest) -> AsyncGenerator[Delta, None]:
        """Yield the answer as it grows. Raise ApiError, before the first delta or between two."""

    async def replicas(self) -> Sequence[ReplicaStats]:
        """Return the stats of every replica that answers now."""


@dataclass(frozen=True, kw_only=True)
class HttpSettings:
    """Settings of the HTTP endpoints.

    Attributes:
        model_id: the name of the served model.
        created: its time, in seconds since 1970.
        adapters: names of its LoRA adapters; each is a model to clients.
        request_timeout_s: seconds after which an incomplete answer is ended.
        max_body_bytes: larger request bodies are refused.
        security: who may use the endpoint.
        may_sleep: whether having no replica is healthy, since one is started on demand.
    """

    model_id: str
    created: int
    request_timeout_s: float
    max_body_bytes: int
    adapters: tuple[str, ...] = ()
    security: SecuritySettings = field(default_factory=SecuritySettings)
    may_sleep: bool = False


def build_app(backend: Backend, settings: HttpSettings, limiter: Limiter | None = None) -> ASGIApp:
    """Build the whole HTTP application; without a `limiter`, limits hold for this process alone."""
    metrics = ServeMetrics()
    limiter = limiter or LocalLimiter()
    endpoints = Endpoints(CheckedBackend(backend, limiter, settings.model_id), settings, metrics)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    routes = (
        ("/health", endpoints.health, "GET"),
        ("/metrics", endpoints.metrics, "GET"),
        ("/v1/models", endpoints.models, "GET"),
        ("/v1/models/{model_id:path}", endpoints.model, "GET"),
        ("/v1/completions", endpoints.completions, "POST"),
        ("/v1/embeddings", endpoints.embeddings, "POST"),
        ("/v1/chat/completions", endpoints.chat_completions, "POST"),
    )
    for path, endpoint, method in routes:
        app.add_api_route(path, endpoint, methods=[method], response_model=None)
    for kind in (ApiError, RequestError, HTTPException, Exception):
        app.add_exception_handler(kind, _error)
    door = behind_door(app, settings.security, limiter, max_body_bytes=settings.max_body_bytes)
    return Meter(door, metrics, [path for path, *_ in routes])


class Endpoints:
    """The endpoints, one method per path."""

    def __init__(self, backend: Backend, settings: HttpSettings, metrics: ServeMetrics) -> None:
        self._backend = backend
        self._settings = settings
        self._metrics = metrics
        self._models = {
            name: Model(id=name, created=settings.created, object="model", owned_by="llamahome")
            for name in (settings.model_id, *settings.adapters)
        }

    async def models(self) -> Response:
        models = [self._models[name].to_dict() for name in self._visible()]
        return JSONResponse({"object": "list", "data": models})

    async def model(self, model_id: str) -> Response:
        self._check_model(model_id)
        return _json(self._models[model_id])

    async def completions(self, request: Request) -> Response:
        body = await _parse(request, CompletionRequest)
        return await self._respond(body, CompletionFormat(self._head("cmpl", body.model)))

    async def chat_completions(self, request: Request) -> Response:
        body = await _parse(request, ChatRequest)
        return await self._respond(body, ChatFormat(self._head("chatcmpl", body.model)))

    async def embeddings(self, request: Request) -> Response:
        body = await _parse(request, EmbeddingRequest)
        head = self._head("embd", body.model)
        requests = body.embed_requests(head["id"], self._adapter(body.model))
        deadline = self._deadline()
        found: dict[int, Delta] = {}
        for start in range(0, len(requests), EMBEDDED_AT_ONCE):
            part = requests[start : start + EMBEDDED_AT_ONCE]
            async with aclosing(self._deltas(part, deadline)) as deltas:
                async for index, delta in deltas:
                    found[start + index] = delta
        ordered = [found[index] for index in range(len(requests))]
        return JSONResponse(embeddings_of(ordered, body.model, body.encoding_format or "float"))

    async def health(self) -> Response:
        running = sum(replica.running for replica in await self._backend.replicas())
        if running:
            return JSONResponse({"status": "ok", "replicas": running})
        if self._settings.may_sleep:
            return JSONResponse({"status": "asleep", "replicas": 0})
        return JSONResponse({"status": "unavailable", "replicas": 0}, 503)

    async def metrics(self) -> Response:
        text = self._metrics.render(await self._backend.replicas())
        return PlainTextResponse(text, media_type=CONTENT_TYPE_LATEST)

    def _head(self, prefix: str, model_id: str) -> Head:
        self._check_model(model_id)
        return Head(id=f"{prefix}-{uuid.uuid4().hex}", created=int(time.time()), model=model_id)

    def _adapter(self, model_id: str) -> str | None:
        return None if model_id == self._settings.model_id else model_id

    def _visible(self) -> list[str]:
        """Return the models that the sender's key may use; to it there are no others."""
        call = CALL.get()
        key = None if call is None else call.key
        return [name for name in self._models if key is None or key.may_use(name)]

    def _check_model(self, model_id: str) -> None:
        visible = self._visible()
        if model_id not in visible:
            raise no_model(model_id, visible)

    async def _respond(self, body: ChatRequest | CompletionRequest, form: Format) -> Response:
        requests = body.generate_requests(form.head["id"], self._adapter(body.model))
        deltas = self._deltas(requests, self._deadline())
        answers = Answers(len(requests), body.choices_per_prompt)
        if not body.stream:
            async with aclosing(deltas):
                async for index, delta in deltas:
                    answers.add(index, delta)
            return _json(form.whole(answers.whole(), answers.usage()))
        first = await anext(deltas)  # before the 200, so that a refusal gets a status of its own
        return StreamingResponse(
            self._events(first, deltas, form, answers, body.include_usage),
            media_type="text/event-stream",
            headers=STREAM_HEADERS,
        )

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + self._settings.request_timeout_s

    async def _deltas(
        self, requests: Sequence[WireRequest], deadline: float
    ) -> AsyncGenerator[Indexed, None]:
        """Yield and measure the backend's deltas, until each request's last one or the deadline."""
        meters = [AnswerMeter(self._metrics) for _ in requests]
        streams = [with_calls(self._backend.stream(request)) for request in requests]
        unfinished = set(range(len(requests)))
        async with aclosing(merged(streams)) as deltas:
            while unfinished:
                try:
                    async with asyncio.timeout_at(deadline):
                        index, delta = await anext(deltas)
                except TimeoutError:
                    limit = f"{self._settings.request_timeout_s:g} s (serve.request_timeout_s)"
                    raise ApiError(
                        504, f"the request took longer than {limit}", code="timeout"
                    ) from None
                except StopAsyncIteration:
                    raise ApiError(500, "the answer ended early", code="engine") from None
                meters[index].note(delta)
                yield index, delta
                if delta.finish_reason is not None:
                    unfinished.discard(index)

    async def _events(
        self,
        first: Indexed,
        deltas: AsyncGenerator[Indexed, None],
        form: Format,
        answers: Answers,
        include_usage: bool,
    ) -> AsyncIterator[str]:
        async with aclosing(deltas):
            try:
                answers.note(*first)
                for chunk in (*form.opening(answers.count), form.chunk(*first)):
                    yield event(chunk)
                async for index, delta in deltas:
                    answers.note(index, delta)
                    if delta.text or delta.calls or delta.tokens or delta.finish_reason:
                        yield event(form.chunk(index, delta))
            except Exception as error:  # noqa: BLE001 - a cut stream would look like an end
                self._metrics.stream_errors.inc()
                yield f"data: {json.dumps(_api_error(error).body())}\n\n"
                return
        usage = answers.usage()
        if include_usage and usage is not None:
            yield event(form.usage_chunk(usage))
        yield "data: [DONE]\n\n"


async def _parse(request: Request, kind: type[Body]) -> Body:
    # JSON alone also keeps web pages out: browsers ask for permission first, and get no answer.
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise ApiError(415, "send the body as Content-Type: application/json")
    try:
        return kind.model_validate_json(await request.body())
    except ValidationError as error:
        raise invalid_body(error) from None


def _json(content: OpenAIModel) -> Response:
    return Response(content.to_json(indent=None), media_type="application/json")


def _api_error(error: Exception) -> ApiError:
    if isinstance(error, ApiError):
        return error
    logger.error("a stream failed", exc_info=error)
    return ApiError(500, "internal error; the server's log has the details")


async def _error(_request: Request, error: Exception) -> Response:
    """Answer an error that an endpoint or the router raised; Starlette logs what is unexpected."""
    match error:
        case ApiError():
            return error.response()
        case RequestError():
            return invalid_request(error.for_client(error.field), error.field).response()
        case HTTPException():  # the router's 404 and 405
            response = ApiError(error.status_code, error.detail).response()
            response.headers.update(error.headers or {})
            return response
    return ApiError(500, "internal error; the server's log has the details").response()
