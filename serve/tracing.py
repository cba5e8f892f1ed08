"""Traces of requests by OpenTelemetry: spans of the ingress, the replica, queue, prefill, decode.

Attributes follow OpenTelemetry's semantic conventions for HTTP and for generative AI (gen_ai.*);
none holds a text of the request or of the answer. Imported only where traces are wanted, since
the packages are an extra.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llamahome.requests import Usage
from serve.security.call import CALL, Call
from serve.wire import Delta, EmbedRequest, Failure, GenerateRequest, Origin, Reply, Request

W3C = TraceContextTextMapPropagator()
SECOND_NS = 1_000_000_000
# The part that a trace shows of sampling; neither stop texts nor grammars.
SAMPLING = ("max_tokens", "temperature", "top_p", "top_k", "seed")


class Tracing:
    """A source of spans, which are sent in the background.

    A client's traceparent decides whether its request is traced, and to which trace it belongs.

    Args:
        endpoint: URL to which OTLP is posted, such as http://collector:4318/v1/traces.
        share: of the requests without a traceparent, how many are traced.
        instance: name of this process.
        processor: takes the spans instead of the exporter.
    """

    def __init__(
        self, endpoint: str, share: float, instance: str, processor: SpanProcessor | None = None
    ) -> None:
        release = version("llamahome")
        attributes = {
            "service.name": "llamahome",
            "service.version": release,
            "service.instance.id": instance,
        }
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(share)),
            resource=Resource.create(attributes),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(
            processor or BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint))
        )
        self._tracer = self._provider.get_tracer("llamahome", release)

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()

    def around(self, app: ASGIApp) -> ASGIApp:
        """Return `app` with a span around each request."""
        return _TracedApp(app, self)

    def start(
        self, name: str, parent: Context, kind: SpanKind, start_time: int | None = None
    ) -> Span:
        return self._tracer.start_span(name, context=parent, kind=kind, start_time=start_time)

    async def answer(
        self, replies: AsyncGenerator[Reply, None], request: Request, origin: Origin
    ) -> AsyncGenerator[Reply, None]:
        """Yield the replies to a request, and send the span of their answer."""
        parent = W3C.extract({} if origin.traceparent is None else {W3C_HEADER: origin.traceparent})
        operation = _operation(request)
        span = self.start(f"{operation} {origin.model}", parent, SpanKind.INTERNAL)
        answer = _AnswerSpan(span, time.time_ns())
        if span.is_recording():
            span.set_attributes(_asked(request, operation, origin))
        try:
            async with aclosing(replies):
                async for reply in replies:
                    answer.note(reply)
                    if isinstance(reply, Delta) and reply.usage is not None:
                        self._phases(span, reply.usage)
                    yield reply
        finally:
            answer.end()

    def _phases(self, span: Span, usage: Usage) -> None:
        """Send the spans of queue, prefill and decode, of which the last one ends now."""
        parent, end = set_span_in_context(span), time.time_ns()
        seconds = {"queue": usage.queued_s, "prefill": usage.prefill_s, "decode": usage.decode_s}
        start = end - round(sum(seconds.values()) * SECOND_NS)
        for name, length in seconds.items():
            phase = self.start(name, parent, SpanKind.INTERNAL, start_time=start)
            start += round(length * SECOND_NS)
            phase.end(min(start, end))


W3C_HEADER = "traceparent"


@dataclass(frozen=True)
class _TracedApp:
    app: ASGIApp
    tracing: Tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = CALL.get()
        if scope["type"] not in ("http", "websocket") or call is None:
            await self.app(scope, receive, send)
            return
        method, status = scope.get("method", "WEBSOCKET"), 0

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                status = message["status"]
            await send(message)

        parent = W3C.extract(Headers(scope=scope))
        span = self.tracing.start(method, parent, SpanKind.SERVER)
        carrier: dict[str, str] = {}
        W3C.inject(carrier, set_span_in_context(span))
        call.traceparent = carrier[W3C_HEADER]
        try:
            await self.app(scope, receive, noting)
        finally:
            if span.is_recording():
                _describe(span, scope, method, status, call)
            span.end()


def _describe(span: Span, scope: Scope, method: str, status: int, call: Call) -> None:
    """Say how a request was answered; its path only as far as it is one of the application's."""
    route = getattr(scope.get("route"), "path", None)
    if route is not None:
        span.update_name(f"{method} {route}")
    failed = status >= 500 or (call.error is not None and status < 400)
    if failed:
        span.set_status(StatusCode.ERROR, call.reason)
    _set(
        span,
        {
            "http.request.method": method,
            "http.route": route,
            "http.response.status_code": status or None,
            "error.type": call.error,
            "llamahome.request_id": call.request_id,
            "llamahome.key": None if call.key is None else call.key.name,
            "llamahome.client_left": call.left or None,
            "llamahome.replicas": sorted(call.replicas) or None,
            "gen_ai.request.model": call.model,
            "gen_ai.usage.input_tokens": call.prompt_tokens or None,
            "gen_ai.usage.output_tokens": call.completion_tokens or None,
            "gen_ai.response.finish_reasons": sorted(call.finishes) or None,
            "gen_ai.response.time_to_first_chunk": call.ttft_s,
        },
    )


class _AnswerSpan:
    """The span of one answer by one replica, which ends however the answer does."""

    def __init__(self, span: Span, start_ns: int) -> None:
        self._span = span
        self._start_ns = start_ns
        self._begun = False
        self._finished = False

    def note(self, reply: Reply) -> None:
        """Take in a reply."""
        if isinstance(reply, Failure):
            self._fail(reply.kind)
        if not isinstance(reply, Delta):
            return
        if reply.token_count and not self._begun:
            self._begun = True
            waited = (time.time_ns() - self._start_ns) / SECOND_NS
            self._span.add_event("first token")
            self._span.set_attribute("gen_ai.response.time_to_first_chunk", waited)
        if reply.finish_reason is not None:
            self._finished = True
            self._span.set_attribute("gen_ai.response.finish_reasons", [reply.finish_reason])
        if reply.usage is not None:
            self._span.set_attributes(_used(reply.usage))

    def _fail(self, kind: str) -> None:
        self._finished = True
        self._span.set_attribute("error.type", kind)
        self._span.set_status(StatusCode.ERROR)

    def end(self) -> None:
        """End the span; an answer that nobody read to its end is marked."""
        if not self._finished:
            self._fail("cancelled")
        self._span.end()


def _operation(request: Request) -> str:
    match request:
        case GenerateRequest():
            return "text_completion" if request.messages is None else "chat"
        case EmbedRequest():
            return "embeddings"
    return type(request).__name__.removesuffix("Request").lower()


def _asked(request: Request, operation: str, origin: Origin) -> dict[str, Any]:
    asked: dict[str, Any] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "llamahome",
        "gen_ai.response.id": request.request_id,
        "llamahome.request_id": origin.request_id,
    }
    if origin.model is not None:
        asked["gen_ai.request.model"] = origin.model
    if isinstance(request, GenerateRequest):
        values = {name: getattr(request.params, name) for name in SAMPLING}
        asked |= {f"gen_ai.request.{name}": v for name, v in values.items() if v is not None}
        if request.progress is not None:
            asked["llamahome.resumed_tokens"] = len(request.progress.tokens)
    return asked


def _used(usage: Usage) -> dict[str, int]:
    return {
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.output_tokens": usage.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
        "llamahome.kept_tokens": usage.kept_tokens,
        "llamahome.evicted_tokens": usage.evicted_tokens,
    }


def _set(span: Span, attributes: dict[str, Any]) -> None:
    for name, value in attributes.items():
        if value is not None:
            span.set_attribute(name, value)
