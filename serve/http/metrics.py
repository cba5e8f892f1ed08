"""Prometheus metrics of the ingress processes of one node, and of the replicas they can reach.

With PROMETHEUS_MULTIPROC_DIR set, all processes count into files of that folder, so that each of
them answers with the sums, and a process that dies takes no count along.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llamahome.requests import Usage
from serve.http.errors import ApiError
from serve.http.vllm_names import VllmNames
from serve.wire import Delta, ReplicaStats

CLIENT_LEFT = "499"
SECONDS_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
TPOT_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
LENGTH_BUCKETS = tuple(2**n for n in range(18))
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

    Answers are counted as the ingress passes them on; gauges of replicas are read on demand.

    Args:
        models: names of the models that are served from the start.
    """

    def __init__(self, models: Sequence[str]) -> None:
        self._models = models
        self._registry = registry = CollectorRegistry()
        counter = partial(Counter, registry=registry)
        histogram = partial(Histogram, registry=registry)
        answers = partial(counter, labelnames=["model"])
        seconds = partial(histogram, labelnames=["model"], buckets=SECONDS_BUCKETS)
        each_token = partial(histogram, labelnames=["model"], buckets=TPOT_BUCKETS)
        length = partial(histogram, labelnames=["model"], buckets=LENGTH_BUCKETS)
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
        self.answers = counter("llamahome_answers", "Answers by their end", ["model", "finish"])
        self.ttft = seconds("llamahome_ttft_seconds", "Time to first token")
        self.tpot = each_token(
            "llamahome_tpot_seconds", "Mean time per output token after an answer's first"
        )
        self.gaps = each_token("llamahome_token_gap_seconds", "Time between output tokens")
        self.answer_seconds = seconds("llamahome_answer_seconds", "Time to the end of an answer")
        self.queued = seconds("llamahome_queued_seconds", "Time that a request waited for a slot")
        self.prefill = seconds("llamahome_prefill_seconds", "Time from the slot to the first token")
        self.decode = seconds("llamahome_decode_seconds", "Time from the first token to the end")
        self.prompt_length = length("llamahome_prompt_length", "Prompt tokens of an answer")
        self.answer_length = length("llamahome_answer_length", "Tokens of an answer")
        self.prompt_tokens = answers("llamahome_prompt_tokens", "Prompt tokens of finished answers")
        self.cached_tokens = answers(
            "llamahome_cached_tokens", "Those of them that came from prefix snapshots"
        )
        self.generated_tokens = answers(
            "llamahome_generated_tokens", "Tokens generated for clients"
        )
        self.evicted_tokens = answers(
            "llamahome_evicted_tokens", "Entries evicted from each KV head of finished answers"
        )
        self._begin_at_zero()

    def _begin_at_zero(self) -> None:
        for metric in vars(self).values():
            for model in self._models:
                if getattr(metric, "_labelnames", ()) == ("model",):
                    metric.labels(model)

    def render(self, replicas: Iterable[ReplicaStats]) -> bytes:
        """Return all metrics in Prometheus's text format, under our names and under vLLM's."""
        counted = self._registry
        if FOLDER in os.environ:
            counted = CollectorRegistry()
            MultiProcessCollector(counted)  # type: ignore[no-untyped-call]
        read = CollectorRegistry()
        read.register(_ReplicaGauges(tuple(replicas)))
        view = CollectorRegistry()
        view.register(VllmNames(counted, tuple(replicas)))
        return b"".join(map(generate_latest, (counted, read, view)))


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

    def __init__(self, metrics: ServeMetrics, model: str) -> None:
        self._metrics = metrics
        self._model = model
        self._generated = metrics.generated_tokens.labels(model)
        self._gaps = metrics.gaps.labels(model)
        self._start = self._first = self._last = time.perf_counter()
        self._tokens = 0
        self._ended = False

    def note(self, delta: Delta) -> None:
        """Take in a part of the answer that has just come."""
        now = time.perf_counter()
        if delta.token_count:
            self._note_tokens(delta.token_count, now)
        if delta.usage is not None:
            self._note_usage(delta.usage)
        if delta.finish_reason is not None and delta.usage is not None:
            self.end(delta.finish_reason)
            self._metrics.answer_seconds.labels(self._model).observe(now - self._start)
            if self._tokens > 1:
                each = (now - self._first) / (self._tokens - 1)
                self._metrics.tpot.labels(self._model).observe(each)
        # The tokenizer's work is no answer.
        self._ended = self._ended or delta.finish_reason is not None

    def _note_tokens(self, count: int, now: float) -> None:
        """Take in tokens; those that come together share the time since the ones before them."""
        if self._tokens == 0:
            self._first = now
            self._metrics.ttft.labels(self._model).observe(now - self._start)
        else:
            for _ in range(count):
                self._gaps.observe((now - self._last) / count)
        self._last = now
        self._tokens += count
        self._generated.inc(count)

    def _note_usage(self, usage: Usage) -> None:
        metrics, model = self._metrics, self._model
        metrics.prompt_tokens.labels(model).inc(usage.prompt_tokens)
        metrics.cached_tokens.labels(model).inc(usage.cached_tokens)
        metrics.evicted_tokens.labels(model).inc(usage.evicted_tokens)
        metrics.prompt_length.labels(model).observe(usage.prompt_tokens)
        metrics.answer_length.labels(model).observe(usage.completion_tokens)
        metrics.queued.labels(model).observe(usage.queued_s)
        metrics.prefill.labels(model).observe(usage.prefill_s)
        metrics.decode.labels(model).observe(usage.decode_s)

    def end(self, finish: str) -> None:
        """Count how the answer ended, once: by its finish reason, `abort` or `error`."""
        if not self._ended:
            self._ended = True
            self._metrics.answers.labels(self._model, finish).inc()


@contextmanager
def metered(metrics: ServeMetrics, models: Sequence[str]) -> Iterator[list[AnswerMeter]]:
    """Measure one answer for each of `models`; those that have not ended do with the block.

    A request that is refused has no answer.
    """
    meters = [AnswerMeter(metrics, model) for model in models]
    finish = None
    try:
        yield meters
    except Exception as error:
        refused = isinstance(error, ApiError) and error.status < 500
        finish = None if refused else "error"
        raise
    except BaseException:  # it was closed or cancelled: the client has left
        finish = "abort"
        raise
    finally:
        if finish is not None:
            for meter in meters:
                meter.end(finish)


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
