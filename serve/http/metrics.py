"""Prometheus metrics of the ingress processes of one node, and of the replicas they can reach.

With PROMETHEUS_MULTIPROC_DIR set, all processes count into files of that folder, so that each of
them answers with the sums, and a process that dies takes no count along.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.wire import Delta, ReplicaStats

CLIENT_LEFT = "499"
TTFT_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
TPOT_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
FOLDER = "PROMETHEUS_MULTIPROC_DIR"
REPLICA_GAUGES = (
    ("slots", "Slots of a replica"),
    ("slots_used", "Slots that hold a request"),
    ("queued", "Requests that wait for a slot"),
    ("queued_tokens", "Prompt tokens that are still to be read"),
    ("kv_bytes", "Bytes allocated for keys and values"),
    ("drafted_tokens", "Draft tokens proposed by prompt lookup"),
    ("accepted_tokens", "Draft tokens accepted by verification"),
    ("prefix_hits", "Prompts that began from a prefix snapshot"),
    ("prefix_misses", "Prompts that began from no prefix snapshot"),
    ("prefix_hit_tokens", "Prompt tokens restored from prefix snapshots"),
    ("prefix_bytes", "Bytes of prefix snapshots in memory"),
)


class ServeMetrics:
    """All metrics, in a registry of their own.

    Token counters count what the ingress passed on; gauges of replicas are read on demand.
    """

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        counter = partial(Counter, registry=registry)
        histogram = partial(Histogram, registry=registry)
        self.requests = counter("llamahome_requests", "HTTP requests", ["path", "status"])
        self.in_flight = Gauge(
            "llamahome_requests_in_flight",
            "HTTP requests being answered",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.stream_errors = counter(
            "llamahome_stream_errors", "Streams that ended in an error event"
        )
        self.ttft = histogram("llamahome_ttft_seconds", "Time to first token", buckets=TTFT_BUCKETS)
        self.tpot = histogram(
            "llamahome_tpot_seconds", "Time per output token after the first", buckets=TPOT_BUCKETS
        )
        self.prompt_tokens = counter("llamahome_prompt_tokens", "Prompt tokens of finished answers")
        self.generated_tokens = counter(
            "llamahome_generated_tokens", "Tokens generated for clients"
        )
        self.evicted_tokens = counter(
            "llamahome_evicted_tokens", "Entries evicted from each KV head of finished answers"
        )

    def render(self, replicas: Iterable[ReplicaStats]) -> bytes:
        """Return all metrics in Prometheus's text format."""
        counted = self._registry
        if FOLDER in os.environ:
            counted = CollectorRegistry()
            MultiProcessCollector(counted)  # type: ignore[no-untyped-call]
        read = CollectorRegistry()
        read.register(_ReplicaGauges(tuple(replicas)))
        return generate_latest(counted) + generate_latest(read)


@dataclass(eq=False)  # a registry keeps collectors by identity
class _ReplicaGauges:
    """Gauges that are read from replicas, and kept nowhere."""

    replicas: Sequence[ReplicaStats]

    def collect(self) -> Iterator[GaugeMetricFamily]:
        for name, text in REPLICA_GAUGES:
            family = GaugeMetricFamily(f"llamahome_{name}", text, labels=["replica", "model"])
            for replica in self.replicas:
                for model in replica.models:
                    family.add_metric([replica.replica, model.name], getattr(model.engine, name))
            yield family


def share_metrics(folder: str) -> None:
    """Make the folder into which the processes of this node count; forget gauges of dead ones."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    counting = {int(path.stem.rpartition("_")[2]) for path in Path(folder).glob("*.db")}
    for process in counting:
        if not psutil.pid_exists(process):
            mark_process_dead(process, folder)  # type: ignore[no-untyped-call]


class AnswerMeter:
    """Times and token counts of one answer, which starts now."""

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


@dataclass(frozen=True)
class Meter:
    """An ASGI counter of requests by path and status. Paths outside `known` count as one."""

    app: ASGIApp
    metrics: ServeMetrics
    known: Collection[str]

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
