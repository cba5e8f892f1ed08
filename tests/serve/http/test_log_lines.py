"""Log lines of a request, through the whole application over a real engine."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from llamahome.keys import KeyFile
from llamahome.logs import Fields
from serve.security.settings import SecuritySettings
from serve.wire import Delta
from tests.serve.one_replica import served

SECRET = "Xyzzy-42"
CHAT: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": SECRET}],
    "max_tokens": 4,
    "temperature": 0,
}
PATH = "/v1/chat/completions"


@pytest.fixture
def lines(caplog) -> Iterator[pytest.LogCaptureFixture]:
    """Capture records as the program's own handler would write them."""
    caplog.set_level(logging.DEBUG)
    fields = Fields({})
    caplog.handler.addFilter(fields)
    yield caplog
    caplog.handler.removeFilter(fields)


@pytest.fixture
async def client(tiny_model: Path, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    keys = KeyFile(tmp_path / "keys.json")
    _, secret = keys.create("ann", role="admin")
    settings = {"security": SecuritySettings(keys_file=keys.path)}
    async with served(tiny_model, settings=settings) as app:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        headers = {"authorization": f"Bearer {secret}", "x-request-id": "mine"}
        async with httpx.AsyncClient(
            transport=transport, base_url="http://test", headers=headers
        ) as http:
            yield http


def access(lines: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [vars(record) for record in lines.records if record.name == "serve.access"]


@pytest.mark.parametrize("stream", [False, True])
async def test_one_line_says_who_asked_and_what_came_of_it(client, lines, stream):
    answer = await client.post(PATH, json={**CHAT, "stream": stream})
    (line,) = access(lines)
    assert answer.status_code == 200
    said = {name: line[name] for name in ("request_id", "key", "model", "method", "path", "status")}
    assert said == {
        "request_id": "mine",
        "key": "ann",
        "model": "tiny",
        "method": "POST",
        "path": PATH,
        "status": 200,
    }
    assert line["msg"] == "answered"
    assert line["completion_tokens"] == 4
    assert line["prompt_tokens"] > len(SECRET)
    assert 0 < line["ttft_s"] <= line["seconds"]
    assert (line["finish"], line["engine"]) == ("length", "replica")


async def test_ingress_replica_and_engine_name_the_same_request(client, lines):
    await client.post(PATH, json=CHAT)
    named = {record.name for record in lines.records if vars(record).get("request_id") == "mine"}
    assert {"serve.access", "serve.replica", "llamahome.engine.request"} <= named


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        (PATH, {**CHAT, "max_tokens": 5000}, 400, "invalid_request_error"),
        (PATH, {**CHAT, SECRET: 1}, 400, "unknown_field"),
        (PATH, {**CHAT, "model": SECRET}, 404, "model_not_found"),
        (PATH, {**CHAT, "guided_regex": f"(({SECRET}"}, 400, "invalid_request_error"),
        (PATH, {**CHAT, "stop": [SECRET] * 5}, 400, "too_long"),
        (PATH, SECRET, 400, "model_type"),
        ("/v1/nothing", {}, 404, "invalid_request_error"),
    ],
)
async def test_a_refusal_has_its_code(client, lines, path, body, status, code):
    answer = await client.post(path, json=body)
    (line,) = access(lines)
    assert answer.status_code == status
    assert (line["msg"], line["status"], line["error"]) == ("refused", status, code)
    assert SECRET not in written(lines)


async def test_neither_prompts_nor_answers_nor_keys_are_ever_written(client, lines):
    bearer = client.headers["authorization"].removeprefix("Bearer ")
    answer = await client.post(PATH, json={**CHAT, "max_tokens": 40})
    await client.post("/v1/completions", json={"model": "tiny", "prompt": SECRET, "echo": True})
    await client.post("/v1/embeddings", json={"model": "tiny", "input": SECRET})
    await client.post(f"/v1/models?q={SECRET}", content=SECRET)
    await client.post(PATH, content=f'{{"messages": "{SECRET}')
    await client.post(PATH, json=CHAT, headers={"authorization": f"Bearer {SECRET}"})
    text = written(lines)
    assert len(access(lines)) == 6
    for private in (SECRET, bearer, answer.json()["choices"][0]["message"]["content"]):
        assert private not in text


async def test_a_stream_that_breaks_is_a_failure_with_its_reason(connect, backend, lines):
    backend.script = [Delta(text=SECRET, token_count=1), RuntimeError("no memory")]
    async with connect() as http:
        answer = await http.post(PATH, json={**CHAT, "stream": True})
    (line,) = access(lines)
    assert answer.status_code == 200
    assert (line["msg"], line["levelname"], line["error"]) == ("failed", "WARNING", "internal")
    assert line["completion_tokens"] == 1
    (failure,) = [record for record in lines.records if record.exc_info]
    assert vars(failure)["request_id"] == line["request_id"]


async def test_a_client_that_leaves_is_said_to(connect, backend, lines):
    backend.script = [Delta(text="a", token_count=1), 600.0]
    async with connect() as http:
        asking = asyncio.create_task(http.post(PATH, json=CHAT))
        while not backend.requests:
            await asyncio.sleep(0.005)
        asking.cancel()
        await asyncio.wait([asking])
    (line,) = access(lines)
    assert (line["msg"], line["status"]) == ("client left", 499)


async def test_probes_that_are_answered_are_quiet(connect, lines):
    async with connect() as http:
        for path in ("/health", "/ping", "/metrics"):
            await http.get(path)
    assert {line["levelname"] for line in access(lines)} == {"DEBUG"}


def written(lines: pytest.LogCaptureFixture) -> str:
    """Return all that was said: messages, fields, tracebacks; without httpx's own."""
    formatter = logging.Formatter()
    own = [record for record in lines.records if not record.name.startswith("http")]
    return "\n".join(f"{formatter.format(record)} {vars(record)}" for record in own)
