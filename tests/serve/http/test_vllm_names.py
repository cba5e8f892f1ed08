"""Metrics of answers under our names and vLLM's, read by Prometheus's own parser."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serve.http.errors import ApiError
from serve.http.vllm_names import ANSWERS
from serve.wire import Delta
from tests.serve.one_replica import served

ROOT = Path(__file__).parents[3]
BODY: dict[str, Any] = {"model": "tiny", "prompt": "Once upon a time", "max_tokens": 6}
# Counts in a process of its own, as an ingress does, and says what all of them have counted.
PROCESS = """
import sys
from llamahome.requests import Usage
from serve.http.metrics import ServeMetrics, metered, share_metrics
from serve.wire import Delta
share_metrics(sys.argv[1])
metrics = ServeMetrics(("tiny",))
usage = Usage(prompt_tokens=5, completion_tokens=3, kept_tokens=8, evicted_tokens=0, peak_tokens=8,
    cached_tokens=2, kv_bytes=1, kv_bytes_dense=1, queued_s=0.5, prefill_s=0.25, decode_s=1.0)
with metered(metrics, ["tiny"]) as (meter,):
    meter.note(Delta(text="a", token_count=1))
    meter.note(Delta(text="bc", token_count=2, finish_reason="stop", usage=usage))
print(metrics.render([]).decode())
"""


def samples(text: str) -> dict[tuple[str, ...], float]:
    """Return values by name and by labels other than the model's, sorted."""
    found: dict[tuple[str, ...], float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = {k: v for k, v in sample.labels.items() if k not in ("model", "model_name")}
            key = (sample.name, *(f"{k}={v}" for k, v in sorted(labels.items())))
            assert key not in found, f"{key} is there twice"
            found[key] = sample.value
    return found


@pytest.fixture
async def client(tiny_model: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with served(tiny_model, slots=4) as app:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            yield http


async def test_vllms_names_say_what_clients_were_told(client):
    answers = [
        (await client.post("/v1/completions", json={**BODY, **more})).json()["usage"]
        for more in ({}, {"n": 2}, {"max_tokens": 1})
    ]
    refused = await client.post("/v1/completions", json={**BODY, "max_tokens": 10_000})
    await client.post("/tokenize", json={"model": "tiny", "prompt": "a"})
    told = (await client.get("/metrics")).text
    values = samples(told)
    generated = sum(usage["completion_tokens"] for usage in answers)
    assert refused.status_code == 400
    assert values["vllm:generation_tokens_total",] == generated
    assert values["vllm:prompt_tokens_total",] == 4 * answers[0]["prompt_tokens"]
    assert values["vllm:prefix_cache_queries_total",] == 4 * answers[0]["prompt_tokens"]
    ends = [value for key, value in values.items() if key[0] == "vllm:request_success_total"]
    assert sum(ends) == 4
    assert values["vllm:time_to_first_token_seconds_count",] == 4
    assert values["vllm:e2e_request_latency_seconds_count",] == 4
    assert values["vllm:request_queue_time_seconds_count",] == 4
    gaps = values["vllm:inter_token_latency_seconds_count",]
    assert gaps == values["vllm:time_per_output_token_seconds_count",] == generated - 4
    assert values["vllm:num_requests_running", "engine=replica"] == 0
    assert values["vllm:num_requests_waiting", "engine=replica"] == 0
    assert values["vllm:kv_cache_usage_perc", "engine=replica"] == 0
    lines = [line for line in told.splitlines() if line.startswith("vllm:")]
    assert all('model_name="tiny"' in line for line in lines)


async def test_parts_of_a_request_sum_up_to_its_length(client):
    await client.post("/v1/completions", json=BODY)
    values = samples((await client.get("/metrics")).text)
    parts = [
        values[f"vllm:request_{part}_time_seconds_sum",] for part in ("queue", "prefill", "decode")
    ]
    assert all(part >= 0 for part in parts)
    assert 0 < sum(parts) <= values["vllm:e2e_request_latency_seconds_sum",]
    assert parts[2] > 0


async def test_every_series_of_ours_has_the_same_values_as_vllms(client):
    await client.post("/v1/completions", json=BODY)
    values = samples((await client.get("/metrics")).text)
    for ours, names in ANSWERS.items():
        own = {k: v for k, v in values.items() if k[0].startswith(ours) and "_created" not in k[0]}
        own = {k: v for k, v in own.items() if k[0].removeprefix(ours) in ENDS}
        assert own, ours
        for name in names:
            for key, value in own.items():
                labels = (label.replace("finish=", "finished_reason=") for label in key[1:])
                assert values[key[0].replace(ours, f"vllm:{name}", 1), *labels] == value


ENDS = ("_total", "_sum", "_count", "_bucket")


@pytest.mark.parametrize(
    ("error", "ends"),
    [
        (ApiError(500, "it died", code="engine"), {"finished_reason=error": 1.0}),
        (ApiError(429, "full", code="queue_full"), {}),
    ],
)
async def test_a_failure_is_an_end_and_a_refusal_is_no_answer(connect, backend, error, ends):
    backend.script = [error]
    async with connect() as http:
        await http.post("/v1/completions", json=BODY)
        values = samples((await http.get("/metrics")).text)
    assert {k[1]: v for k, v in values.items() if k[0] == "vllm:request_success_total"} == ends


async def test_a_client_that_leaves_ends_its_answers_by_abort(connect, backend):
    backend.script = [Delta(text="a", token_count=1), 600.0]
    async with connect() as http:
        asking = asyncio.create_task(http.post("/v1/completions", json={**BODY, "n": 2}))
        while len(backend.requests) < 2:
            await asyncio.sleep(0.005)
        asking.cancel()
        await asyncio.wait([asking])
        values = samples((await http.get("/metrics")).text)
    assert values["vllm:request_success_total", "finished_reason=abort"] == 2


def test_several_ingress_processes_add_up(tmp_path):
    env = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    told = [
        subprocess.run(
            [sys.executable, "-c", PROCESS, str(tmp_path)],
            env=env,
            check=True,
            capture_output=True,
            text=True,
            timeout=120,
        ).stdout
        for _ in range(2)
    ]
    for count, text in enumerate(told, start=1):
        values = samples(text)
        assert values["vllm:request_success_total", "finished_reason=stop"] == count
        assert values["vllm:generation_tokens_total",] == 3 * count
        assert values["vllm:prefix_cache_hits_total",] == 2 * count
        assert values["vllm:request_queue_time_seconds_sum",] == 0.5 * count
        assert values["vllm:inter_token_latency_seconds_count",] == 2 * count
