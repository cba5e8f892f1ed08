"""Routes that answer without an engine: state, models, the document, and the WebSocket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

import jsonschema
import pytest
import uvicorn
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as dial
from websockets.exceptions import ConnectionClosed, InvalidStatus

from llamahome.keys import digest
from serve.http.api import build_app
from serve.http.errors import ApiError
from serve.http.settings import HttpSettings
from serve.security.settings import SecuritySettings
from serve.wire import Delta

SECURED = SecuritySettings(api_key=digest("secret"))


async def test_state_and_version(connect):
    async with connect(security=SECURED) as client:
        assert (await client.get("/ping")).json() == {"status": "ok", "replicas": 1}
        assert (await client.get("/version")).status_code == 401
        client.headers["x-api-key"] = "secret"
        assert (await client.get("/version")).json() == {"version": version("llamahome")}


@pytest.mark.parametrize("path", ["/health", "/ping", "/metrics", "/version", "/v1/models"])
async def test_head_answers_where_get_does(connect, path):
    async with connect() as client:
        assert (await client.head(path)).status_code == 200


async def test_models_name_their_parent_and_context(connect, backend, make_stats):
    backend.stats = [make_stats(max_length=512)]
    async with connect(adapters=("pirate",)) as client:
        model, adapter = (await client.get("/v1/models")).json()["data"]
    assert (model["root"], model["parent"], model["max_model_len"]) == ("tiny", None, 512)
    assert (adapter["root"], adapter["parent"], adapter["max_model_len"]) == ("pirate", "tiny", 512)


async def test_the_document_is_off_unless_asked_for(connect):
    async with connect() as client:
        assert (await client.get("/openapi.json")).status_code == 404
    async with connect(docs=True) as client:
        document = (await client.get("/openapi.json")).json()
        page = (await client.get("/docs")).text
    for body in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(body)
    assert "temperature" in document["components"]["schemas"]["ChatRequest"]["properties"]
    assert set(document["paths"]["/v1/responses/{response_id}"]) == {"get", "head", "delete"}
    assert "/api/v1/process" in page
    assert "src=" not in page  # nothing is loaded from elsewhere
    assert "http" not in page.replace("<!doctype html>", "").replace("html", "")


async def test_plain_endpoints_take_and_give_text(connect, backend):
    async with connect() as client:
        whole = await client.post("/api/v1/process", json={"text": "Hi", "max_tokens": 5})
        stream = await client.post("/api/v1/stream", json={"text": "Hi"})
        wrong = await client.post("/api/v1/process", json={"text": "Hi", "top_p": 7.0})
    ending = {"finish_reason": "stop", "prompt_tokens": 5, "completion_tokens": 3}
    assert whole.json() == {"text": "Hello", **ending}
    events = [json.loads(line.removeprefix("data: ")) for line in stream.text.split("\n\n") if line]
    assert events == [{"text": "Hel"}, {"text": "lo"}, ending]
    assert backend.requests[0].messages == [{"role": "user", "content": "Hi"}]
    assert backend.requests[0].params.max_tokens == 5
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "top_p")


@asynccontextmanager
async def on_a_port(backend: Any, **settings: Any) -> AsyncIterator[str]:
    """Yield the address of the application in a server of this event loop."""
    fields = {"model_id": "tiny", "created": 1, "request_timeout_s": 60.0, "max_body_bytes": 4096}
    app = build_app(backend, HttpSettings(**{**fields, **settings}))
    server = uvicorn.Server(
        uvicorn.Config(app, port=0, log_level="warning", ws="websockets-sansio", lifespan="off")
    )
    serving = asyncio.create_task(server.serve())
    async with asyncio.timeout(30):
        while not server.started:
            await asyncio.sleep(0.001)
    try:
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"ws://127.0.0.1:{port}/api/v1/ws"
    finally:
        server.should_exit = True
        await serving


async def answer(socket: ClientConnection, body: dict[str, Any]) -> list[dict[str, Any]]:
    """Send a text and return the messages up to the end of its answer."""
    await socket.send(json.dumps(body))
    messages: list[dict[str, Any]] = []
    while not messages or "text" in messages[-1]:
        messages.append(json.loads(await socket.recv()))
    return messages


async def test_a_websocket_answers_text_after_text(backend):
    ids = {"x-request-id": "mine"}
    async with on_a_port(backend) as url, dial(url, additional_headers=ids) as socket:
        assert socket.response is not None
        assert socket.response.headers["x-request-id"] == "mine"
        for _ in range(2):
            *texts, ending = await answer(socket, {"text": "Hi"})
            assert "".join(part["text"] for part in texts) == "Hello"
            assert ending["finish_reason"] == "stop"
        refusals = [
            await answer(socket, {"text": "Hi", **wrong})
            for wrong in ({"nonsense": 1}, {"top_p": 7.0}, {"model": "x"})
        ]
        assert [error["error"]["param"] for [error] in refusals] == ["nonsense", "top_p", "model"]
        backend.script = [ApiError(500, "it died")]
        assert (await answer(socket, {"text": "Hi"}))[0]["error"]["message"] == "it died"


async def test_a_websocket_needs_the_key_and_no_other_sites_page(backend):
    async with on_a_port(backend, security=SECURED) as url:
        for headers, status in (
            ({}, 401),
            ({"Authorization": "Bearer wrong"}, 401),
            ({"Authorization": "Bearer secret", "Origin": "http://evil.example"}, 403),
        ):
            with pytest.raises(InvalidStatus) as caught:
                await dial(url, additional_headers=headers)
            assert caught.value.response.status_code == status
        async with dial(url, additional_headers={"x-api-key": "secret"}) as socket:
            assert (await answer(socket, {"text": "Hi"}))[-1]["finish_reason"] == "stop"


@pytest.mark.parametrize(("text", "code"), [('{"text": "%s"}' % ("x" * 5000), 1009)])
async def test_a_websocket_keeps_the_limit_of_bodies(backend, text, code):
    async with on_a_port(backend) as url, dial(url) as socket:
        await socket.send(text)
        with pytest.raises(ConnectionClosed):
            await socket.recv()
        assert socket.close_code == code
    assert backend.requests == []


async def test_leaving_or_interrupting_a_websocket_ends_the_answer(backend):
    backend.script = [Delta(text="a", token_count=1), 600.0]
    async with on_a_port(backend) as url:
        for leave in (False, True):
            async with dial(url) as socket:
                await socket.send('{"text": "Hi"}')
                await socket.recv()
                if not leave:
                    await socket.send('{"text": "More"}')
                    with pytest.raises(ConnectionClosed):
                        await socket.recv()
                    assert socket.close_code == 1008
        async with asyncio.timeout(30):
            while backend.closed < 2:
                await asyncio.sleep(0.001)
