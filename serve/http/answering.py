"""The way from a checked request to its answer: the model's name, the deadline, the stream."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Protocol

from fastapi import Response
from fastapi.responses import StreamingResponse

from serve.catalog import Catalog
from serve.http.bodies import as_json
from serve.http.calls import with_calls
from serve.http.changes import CatalogStore, LocalCatalog
from serve.http.checked import model_of
from serve.http.choices import Answers, Indexed, merged
from serve.http.errors import ApiError, no_model, note_error
from serve.http.metrics import ServeMetrics, metered
from serve.http.protocol import ChatRequest, CompletionRequest
from serve.http.responses import Format, Head, event
from serve.http.settings import HttpSettings, catalog_of
from serve.http.stateful.store import Store
from serve.security.call import CALL
from serve.wire import Delta, ReplicaStats
from serve.wire import Request as WireRequest

logger = logging.getLogger(__name__)

# A long list of texts waits here, so that one request does not fill the engines' queues.
AT_ONCE = 8
STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


Write = Callable[[AsyncGenerator[Delta, None]], AsyncIterator[str]]


class Backend(Protocol):
    """The source of answers: engine replicas behind Ray Serve, or a stand-in in tests."""

    def stream(self, request: WireRequest) -> AsyncGenerator[Delta, None]:
        """Yield the answer as it grows. Raise ApiError, before the first delta or between two."""

    async def replicas(self) -> Sequence[ReplicaStats]:
        """Return the stats of every replica that answers now."""


class Answering:
    """Answers of a backend to checked requests; every family of routes shares one."""

    def __init__(
        self,
        backend: Backend,
        settings: HttpSettings,
        metrics: ServeMetrics,
        store: Store | None = None,
        models: CatalogStore | None = None,
    ) -> None:
        self.store = store
        self._models = models or LocalCatalog(catalog_of(settings))
        self.backend = backend
        self.settings = settings
        self.metrics = metrics

    @property
    def catalog(self) -> Catalog:
        """The models that are served now."""
        return self._models.catalog

    def visible(self) -> list[str]:
        """Return the models that the sender's key may use; to it there are no others."""
        call = CALL.get()
        key = None if call is None else call.key
        return [name for name in self.catalog.names if key is None or key.may_use(name)]

    def check_model(self, model_id: str) -> None:
        """Raise ApiError for a model that is not served here."""
        visible = self.visible()
        if model_id not in visible:
            raise no_model(model_id, visible)

    def adapter(self, model_id: str) -> str | None:
        """Return a model's name as requests carry it to the backend; None is the default model."""
        return None if model_id == self.settings.model_id else model_id

    def head(self, prefix: str, model_id: str) -> Head:
        """Begin an answer of a served model."""
        self.check_model(model_id)
        target = self.catalog.target(model_id)
        return Head(
            id=f"{prefix}-{uuid.uuid4().hex}",
            created=int(time.time()),
            model=model_id,
            system_fingerprint=None if target is None else target.served.fingerprint,
        )

    def deadline(self) -> float:
        """Return the event loop's time by which a request that begins now must be answered."""
        return asyncio.get_running_loop().time() + self.settings.request_timeout_s

    async def respond(self, body: ChatRequest | CompletionRequest, form: Format) -> Response:
        """Answer with generated text, whole or as a stream."""
        requests = body.generate_requests(form.head["id"], self.adapter(body.model))
        deltas = self.deltas(requests, self.deadline())
        answers = Answers(len(requests), body.choices_per_prompt)
        if not body.stream:
            async with aclosing(deltas):
                async for index, delta in deltas:
                    answers.add(index, delta)
            return as_json(form.whole(answers.whole(), answers.usage()))
        first = await anext(deltas)  # before the 200, so that a refusal gets a status of its own
        return StreamingResponse(
            self._events(first, deltas, form, answers, body.include_usage),
            media_type="text/event-stream",
            headers=STREAM_HEADERS,
        )

    async def whole(self, request: WireRequest) -> Delta:
        """Return the whole answer to one request."""
        return (await self.each([request]))[0]

    async def each(self, requests: Sequence[WireRequest]) -> list[Delta]:
        """Return the whole answers to many requests, of which a few run at once."""
        deadline = self.deadline()
        found: list[Delta] = []
        for start in range(0, len(requests), AT_ONCE):
            part = requests[start : start + AT_ONCE]
            answers = Answers(len(part), 1)
            async with aclosing(self.deltas(part, deadline)) as deltas:
                async for index, delta in deltas:
                    answers.add(index, delta)
            found += answers.whole()
        return found

    async def stream(self, request: WireRequest, write: Write) -> Response:
        """Stream the answer to one request, as `write` turns it into events.

        `write` gets the answer from its first delta on, which has come before the status is sent.
        It has to answer an ApiError between two deltas in its own form.
        """
        deltas = self.deltas([request], self.deadline())
        first = await anext(deltas)
        return StreamingResponse(
            write(self._from_first(first, deltas)),
            media_type="text/event-stream",
            headers=STREAM_HEADERS,
        )

    async def _from_first(
        self, first: Indexed, deltas: AsyncGenerator[Indexed, None]
    ) -> AsyncGenerator[Delta, None]:
        async with aclosing(deltas):
            yield first[1]
            try:
                async for _, delta in deltas:
                    yield delta
            except Exception as error:
                self.metrics.stream_errors.inc()
                raise _cut(error) from error

    async def deltas(
        self, requests: Sequence[WireRequest], deadline: float
    ) -> AsyncGenerator[Indexed, None]:
        """Yield and measure the backend's deltas, until each request's last one or the deadline."""
        models = [model_of(request, self.settings.model_id) for request in requests]
        streams = [with_calls(self.backend.stream(request)) for request in requests]
        unfinished = set(range(len(requests)))
        with metered(self.metrics, models) as meters:
            async with aclosing(merged(streams)) as deltas:
                while unfinished:
                    index, delta = await self._next(deltas, deadline)
                    meters[index].note(delta)
                    yield index, delta
                    if delta.finish_reason is not None:
                        unfinished.discard(index)

    async def _next(self, deltas: AsyncGenerator[Indexed, None], deadline: float) -> Indexed:
        try:
            async with asyncio.timeout_at(deadline):
                return await anext(deltas)
        except TimeoutError:
            limit = f"{self.settings.request_timeout_s:g} s (serve.request_timeout_s)"
            message = f"the request took longer than {limit}"
            raise ApiError(504, message, code="timeout") from None
        except StopAsyncIteration:
            raise ApiError(500, "the answer ended early", code="engine") from None

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
                    if _shows(delta):
                        yield event(form.chunk(index, delta))
            except Exception as error:  # noqa: BLE001 - a cut stream would look like an end
                self.metrics.stream_errors.inc()
                yield f"data: {json.dumps(_cut(error).body())}\n\n"
                return
        usage = answers.usage()
        if include_usage and usage is not None:
            yield event(form.usage_chunk(usage))
        yield "data: [DONE]\n\n"


def _shows(delta: Delta) -> bool:
    """Return whether a client has anything of a delta; text that is held back is nothing yet."""
    has = delta.text or delta.calls or delta.tokens or delta.lens or delta.finish_reason
    return bool(has)


def _cut(error: Exception) -> ApiError:
    """Return the error for a client whose stream is cut, and have the log name it."""
    if not isinstance(error, ApiError):
        logger.error("a stream failed", exc_info=error)
        message = "internal error; the server's log has the details"
        error = ApiError(500, message, code="internal")
    note_error(error)
    return error
