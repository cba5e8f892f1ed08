"""Prometheus metrics of one ingress, and of the replicas it can reach."""

from __future__ import annotations

import time
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.wire import Delta, ReplicaStats

CLIENT_LEFT = "499"
TTFT_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
TPOT_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)


class ServeMetrics:
    """All metrics, in a registry of their own.

    Token counters count what this ingress passed on; gauges of replicas are read on demand.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self.requests = Counter(
            "llamahome_requests", "HTTP requests", ["path", "status"], registry=registry
        )
        self.in_flight = Gauge(
            "llamahome_requests_in_flight", "HTTP requests being answered", registry=registry
        )
        self.stream_errors = Counter(
            "llamahome_stream_errors", "Streams that ended in an error event", registry=registry
        )
        self.ttft = Histogram(
            "llamahome_ttft_seconds",
            "Time to first token",
            buckets=TTFT_BUCKETS,
            registry=registry,
        )
        self.tpot = Histogram(
            "llamahome_tpot_seconds",
            "Time per output token after the first",
            buckets=TPOT_BUCKETS,
            registry=registry,
        )
        self.prompt_tokens = Counter(
            "llamahome_prompt_tokens", "Prompt tokens of finished answers", registry=registry
        )
        self.generated_tokens = Counter(
            "llamahome_generated_tokens", "Tokens generated for clients", registry=registry
        )
        self.evicted_tokens = Counter(
            "llamahome_evicted_tokens",
            "Entries that each KV head of finished answers gave up",
            registry=registry,
        )
        self._replicas = {
            name: Gauge(f"llamahome_{name}", text, ["replica"], registry=registry)
            for name, text in (
                ("slots", "Slots of a replica"),
                ("slots_used", "Slots that hold a request"),
                ("queued", "Requests that wait for a slot"),
                ("kv_bytes", "Bytes allocated for keys and values"),
                ("drafted_tokens", "Tokens guessed ahead by prompt lookup"),
                ("accepted_tokens", "Tokens guessed ahead that were right"),
                ("prefix_hits", "Prompts that began from a prefix snapshot"),
                ("prefix_misses", "Prompts that no prefix snapshot served"),
                ("prefix_hit_tokens", "Prompt tokens that prefix snapshots spared"),
                ("prefix_bytes", "Bytes of prefix snapshots in memory"),
            )
        }

    def answer(self) -> AnswerMeter:
        """Return a meter of one answer, which starts now."""
        return AnswerMeter(self)

    def render(self, replicas: Iterable[ReplicaStats]) -> bytes:
        """Return all metrics in Prometheus's text format."""
        for gauge in self._replicas.values():
            gauge.clear()
        for replica in replicas:
            for name, gauge in self._replicas.items():
                gauge.labels(replica.replica).set(getattr(replica.engine, name))
        return generate_latest(self._registry)


class AnswerMeter:
    """Times and token counts of one answer."""

    def __init__(self, metrics: ServeMetrics) -> None:
        self._metrics = metrics
        self._start = self._first = time.perf_counter()
        self._tokens = 0

    def note(self, delta: Delta) -> None:
        now = time.perf_counter()
        if self._tokens == 0 and delta.token_count:
            self._first = now
            self._metrics.ttft.observe(now - self._start)
        self._tokens += delta.token_count
        self._metrics.generated_tokens.inc(delta.token_count)
        if delta.usage is not None:
            self._metrics.prompt_tokens.inc(delta.usage.prompt_tokens)
            self._metrics.evicted_tokens.inc(delta.usage.evicted_tokens)
        if delta.finish_reason is not None and self._tokens > 1:
            self._metrics.tpot.observe((now - self._first) / (self._tokens - 1))


class Meter:
    """An ASGI counter of requests by path and status. Paths outside `known` count as one."""

    def __init__(self, app: ASGIApp, metrics: ServeMetrics, known: Iterable[str]) -> None:
        self.app = app
        self.metrics = metrics
        self.known = frozenset(known)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self.known else "other"
        status = CLIENT_LEFT

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        with self.metrics.in_flight.track_inprogress():
            try:
                await self.app(scope, receive, noting)
            finally:
                self.metrics.requests.labels(path, status).inc()
