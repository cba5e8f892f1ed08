"""The metrics under the names that vLLM gives them, for dashboards that know those.

Names and labels: vLLM's docs/design/metrics.md and its reference dashboard for Grafana. Nothing is
counted twice: these are views of our own metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.samples import Sample

from llamahome.requests import EngineStats
from serve.wire import ReplicaStats

# Our metrics of answers, and vLLM's names for each; older names of the same come last.
ANSWERS = {
    "llamahome_ttft_seconds": ("time_to_first_token_seconds",),
    "llamahome_token_gap_seconds": ("inter_token_latency_seconds", "time_per_output_token_seconds"),
    "llamahome_tpot_seconds": ("request_time_per_output_token_seconds",),
    "llamahome_answer_seconds": ("e2e_request_latency_seconds",),
    "llamahome_queued_seconds": ("request_queue_time_seconds",),
    "llamahome_prefill_seconds": ("request_prefill_time_seconds",),
    "llamahome_decode_seconds": ("request_decode_time_seconds",),
    "llamahome_prompt_length": ("request_prompt_tokens",),
    "llamahome_answer_length": ("request_generation_tokens", "request_max_num_generation_tokens"),
    "llamahome_answers": ("request_success",),
    "llamahome_prompt_tokens": ("prompt_tokens", "prefix_cache_queries"),
    "llamahome_cached_tokens": ("prefix_cache_hits",),
    "llamahome_generated_tokens": ("generation_tokens",),
}
LABELS = {"model": "model_name", "finish": "finished_reason"}


@dataclass(eq=False)  # a registry keeps collectors by identity
class VllmNames:
    """A view of metrics of answers, and of what replicas say of themselves.

    Attributes:
        counted: our metrics.
    """

    counted: CollectorRegistry
    replicas: Sequence[ReplicaStats]

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        for family in self.counted.collect():
            for name in ANSWERS.get(family.name, ()):
                yield _renamed(family, f"vllm:{name}")
        yield self._gauge("num_requests_running", "Requests that hold a slot", _running)
        yield self._gauge("num_requests_waiting", "Requests that wait for a slot", _waiting)
        for name in ("kv_cache_usage_perc", "gpu_cache_usage_perc"):
            yield self._gauge(name, "Share of the slots in use, 0 to 1", _usage)

    def _gauge(
        self, name: str, text: str, value: Callable[[EngineStats], float]
    ) -> GaugeMetricFamily:
        family = GaugeMetricFamily(f"vllm:{name}", text, labels=["model_name", "engine"])
        for replica in self.replicas:
            for model in replica.models:
                family.add_metric([model.name, replica.replica], value(model.engine))
        return family


def _running(engine: EngineStats) -> float:
    return engine.slots_used


def _waiting(engine: EngineStats) -> float:
    return engine.queued


def _usage(engine: EngineStats) -> float:
    return engine.slots_used / engine.slots


def _renamed(family: Metric, name: str) -> Metric:
    """Return a metric under another name, with vLLM's labels."""
    renamed = Metric(name, family.documentation, family.type)
    for sample in family.samples:
        if not sample.name.endswith("_created"):
            labels = {LABELS.get(label, label): value for label, value in sample.labels.items()}
            end = sample.name.removeprefix(family.name)
            renamed.samples.append(Sample(name + end, labels, sample.value))
    return renamed
