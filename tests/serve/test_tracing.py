"""Spans of requests, from the whole application over a real engine to a collector."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from llamahome.logs import Fields
from serve.tracing import Tracing
from tests.serve.one_replica import served

PATH = "/v1/chat/completions"
SECRET = "Xyzzy-42"
CHAT: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": SECRET}],
    "max_tokens": 5,
    "temperature": 0,
    "stop": [f"{SECRET}!"],
}
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE_ID}-00f067aa0ba902b7-01"


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@asynccontextmanager
async def connected(model: Path, tracing: Tracing) -> AsyncIterator[httpx.AsyncClient]:
    async with served(model, tracing=tracing) as app:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            yield http


@pytest.fixture
async def client(tiny_model: Path, spans: InMemorySpanExporter) -> AsyncIterator[httpx.AsyncClient]:
    tracing = Tracing("http://nowhere", 1.0, "test", SimpleSpanProcessor(spans))
    async with connected(tiny_model, tracing) as http:
        yield http
    tracing.close()


def by_name(spans: InMemorySpanExporter) -> dict[str, Any]:
    finished = spans.get_finished_spans()
    named = {span.name: span for span in finished}
    assert len(named) == len(finished)
    return named


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_is_one_trace_that_continues_the_clients(client, spans, stream):
    headers = {"traceparent": PARENT, "x-request-id": "mine"}
    await client.post(PATH, json={**CHAT, "stream": stream}, headers=headers)
    named = by_name(spans)
    ingress, answer = named[f"POST {PATH}"], named["chat tiny"]
    assert set(named) == {f"POST {PATH}", "chat tiny", "queue", "prefill", "decode"}
    assert {f"{span.context.trace_id:032x}" for span in named.values()} == {TRACE_ID}
    assert f"{ingress.parent.span_id:016x}" == "00f067aa0ba902b7"
    assert answer.parent.span_id == ingress.context.span_id
    phases = [named[name] for name in ("queue", "prefill", "decode")]
    assert {phase.parent.span_id for phase in phases} == {answer.context.span_id}
    moments = [moment for phase in phases for moment in (phase.start_time, phase.end_time)]
    assert moments == sorted(moments)
    assert ingress.start_time <= answer.start_time <= moments[0]
    assert moments[-1] <= answer.end_time <= ingress.end_time


async def test_attributes_are_those_of_the_conventions_and_hold_no_text(client, spans):
    answer = await client.post(PATH, json=CHAT, headers={"x-request-id": "mine"})
    named, usage = by_name(spans), answer.json()["usage"]
    shared = {
        "llamahome.request_id": "mine",
        "gen_ai.request.model": "tiny",
        "gen_ai.usage.input_tokens": usage["prompt_tokens"],
        "gen_ai.usage.output_tokens": usage["completion_tokens"],
        "gen_ai.response.finish_reasons": ("length",),
    }
    http = {
        "http.request.method": "POST",
        "http.route": PATH,
        "http.response.status_code": 200,
        "llamahome.replicas": ("replica",),
    }
    engine = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "llamahome",
        "gen_ai.request.max_tokens": 5,
        "gen_ai.request.temperature": 0.0,
    }
    assert {**shared, **http}.items() <= dict(named[f"POST {PATH}"].attributes).items()
    assert {**shared, **engine}.items() <= dict(named["chat tiny"].attributes).items()
    written = json.dumps([span.to_json() for span in named.values()])
    assert SECRET not in written
    assert answer.json()["choices"][0]["message"]["content"] not in written


async def test_each_choice_has_a_span_of_its_own(client, spans):
    await client.post(PATH, json={**CHAT, "n": 3})
    names = [span.name for span in spans.get_finished_spans()]
    assert (names.count("chat tiny"), names.count("decode"), names.count(f"POST {PATH}")) == (
        3,
        3,
        1,
    )


async def test_a_refusal_is_found_by_its_id_and_code(client, spans):
    answer = await client.post(PATH, json={**CHAT, "max_tokens": 10_000})
    named = by_name(spans)
    ingress = named[f"POST {PATH}"]
    assert ingress.attributes["llamahome.request_id"] == answer.headers["x-request-id"]
    assert ingress.attributes["http.response.status_code"] == 400
    assert ingress.status.is_unset  # the server is not to blame
    assert named["chat tiny"].attributes["error.type"] == "invalid"


async def test_paths_that_nobody_serves_are_no_names(client, spans):
    await client.get(f"/{SECRET}")
    (span,) = spans.get_finished_spans()
    assert span.name == "GET"
    assert SECRET not in span.to_json()


@pytest.mark.parametrize(
    ("share", "headers", "count"), [(0.0, {}, 0), (0.0, {"traceparent": PARENT}, 5)]
)
async def test_a_client_decides_before_the_share(tiny_model, spans, share, headers, count):
    tracing = Tracing("http://nowhere", share, "test", SimpleSpanProcessor(spans))
    async with connected(tiny_model, tracing) as http:
        await http.post(PATH, json=CHAT, headers=headers)
    assert len(spans.get_finished_spans()) == count


async def test_a_client_that_asks_for_no_trace_has_none(client, spans):
    await client.post(PATH, json=CHAT, headers={"traceparent": f"{PARENT[:-1]}0"})
    assert spans.get_finished_spans() == ()


async def test_log_lines_name_the_trace(client, caplog):
    caplog.handler.addFilter(fields := Fields({}))
    with caplog.at_level("INFO", "serve.access"):
        await client.post(PATH, json=CHAT, headers={"traceparent": PARENT})
    caplog.handler.removeFilter(fields)
    (line,) = (record for record in caplog.records if record.name == "serve.access")
    assert line.trace_id == TRACE_ID


class Collector(BaseHTTPRequestHandler):
    received: list[ExportTraceServiceRequest]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.received.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def collector() -> Iterator[HTTPServer]:
    handler = type("Received", (Collector,), {"received": []})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


async def test_a_collector_reads_the_spans(tiny_model, collector: Any):
    url = f"http://127.0.0.1:{collector.server_port}/v1/traces"
    tracing = Tracing(url, 1.0, "EngineReplica/r1")
    async with connected(tiny_model, tracing) as http:
        await http.post(PATH, json=CHAT)
    tracing.close()
    received = [
        each for batch in collector.RequestHandlerClass.received for each in batch.resource_spans
    ]
    names = {s.name for each in received for scope in each.scope_spans for s in scope.spans}
    assert names == {f"POST {PATH}", "chat tiny", "queue", "prefill", "decode"}
    resource = {a.key: a.value.string_value for a in received[0].resource.attributes}
    assert resource["service.name"] == "llamahome"
    assert resource["service.instance.id"] == "EngineReplica/r1"


def test_without_the_option_nothing_of_it_is_imported():
    program = (
        "import sys; import serve.http.api;"
        "print([m for m in sys.modules if m == 'serve.tracing' or 'opentelemetry.sdk' in m])"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    assert run.stdout.strip() == "[]"
