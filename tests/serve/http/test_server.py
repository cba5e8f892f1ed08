"""The HTTP server on a real port, against clients that break the rules."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from serve.http.server import EdgeLimits, HttpServer, ServerStoppedError

LIMITS = {"header_bytes": 2048, "header_timeout_s": 60.0, "connections_per_client": 8}
HEAD = b"POST / HTTP/1.1\r\nhost: x\r\n"
PATIENCE_S = 60
ARRIVED, GO_ON = asyncio.Event(), asyncio.Event()


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the path; `/early` before the body is complete; `/held` waits."""
    if scope["path"] == "/held":
        ARRIVED.set()
        await GO_ON.wait()
    more = scope["path"] != "/early"
    while more:
        more = (await receive()).get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": scope["path"].encode()})


@contextlib.asynccontextmanager
async def serving(port: int = 0, **limits: Any) -> AsyncIterator[HttpServer]:
    edge = EdgeLimits(**{**LIMITS, **limits})
    server = HttpServer(app, host="127.0.0.1", port=port, limits=edge, grace_s=PATIENCE_S)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def said(reader: asyncio.StreamReader) -> tuple[int, dict[str, Any]]:
    """Return the status and the error that the server sends before it closes the connection."""
    answer = await asyncio.wait_for(reader.read(), PATIENCE_S)
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]


async def open_to(server: HttpServer) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", server.port)


async def pour(writer: asyncio.StreamWriter) -> None:
    """Send chunks until the server closes the connection."""
    while True:
        writer.write(b"1000\r\n" + b"a" * 4096 + b"\r\n")
        await asyncio.wait_for(writer.drain(), PATIENCE_S)


async def asked(server: HttpServer, path: str) -> str:
    """Return the answer to a request on a connection of its own."""
    url = f"http://127.0.0.1:{server.port}{path}"
    return (await asyncio.to_thread(httpx.get, url, timeout=PATIENCE_S)).text


async def test_requests_of_one_connection_are_answered_in_turn():
    async with serving() as server, httpx.AsyncClient() as client:
        for path in ("/a", "/b", "/early"):
            answer = await client.post(f"http://127.0.0.1:{server.port}{path}", content=b"12")
            assert (answer.status_code, answer.text) == (200, path)


async def test_large_headers_are_refused():
    async with serving() as server:
        reader, writer = await open_to(server)
        writer.write(HEAD + b"x: " + b"a" * 4096)
        status, error = await said(reader)
        assert status == 400
        assert "2048 bytes (serve.max_header_bytes)" in error["message"]
        writer.close()


@pytest.mark.parametrize("sent", [b"", HEAD], ids=["nothing", "half the headers"])
async def test_slow_headers_are_refused(sent):
    async with serving(header_timeout_s=0.2) as server:
        reader, writer = await open_to(server)
        writer.write(sent)
        status, error = await said(reader)
        assert status == 408
        assert "0.2 s (serve.header_timeout_s)" in error["message"]
        writer.close()


async def test_a_connection_that_drips_a_second_request_is_refused():
    async with serving(header_timeout_s=0.2) as server:
        reader, writer = await open_to(server)
        writer.write(HEAD + b"content-length: 0\r\n\r\n")
        await reader.readuntil(b"0\r\n\r\n")
        writer.write(HEAD)
        assert (await said(reader))[0] == 408
        writer.close()


async def test_a_body_without_end_is_not_read_for_ever():
    async with serving() as server:
        reader, writer = await open_to(server)
        writer.write(
            HEAD.replace(b"POST /", b"POST /early") + b"transfer-encoding: chunked\r\n\r\n"
        )
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        with pytest.raises(ConnectionError):
            await pour(writer)
        writer.close()


async def test_a_body_that_ends_late_keeps_its_connection():
    async with serving() as server:
        reader, writer = await open_to(server)
        writer.write(HEAD.replace(b"POST /", b"POST /early") + b"content-length: 2\r\n\r\n1")
        await reader.readuntil(b"/early")
        writer.write(b"2" + HEAD.replace(b"POST /", b"POST /b") + b"content-length: 0\r\n\r\n")
        assert b"200" in await asyncio.wait_for(reader.readuntil(b"/b"), PATIENCE_S)
        writer.close()


async def test_one_client_has_only_so_many_connections():
    async with serving(connections_per_client=2) as server:
        opened = [await open_to(server) for _ in range(2)]
        for reader, writer in opened:  # an answer each, so that the server has them
            writer.write(HEAD + b"content-length: 0\r\n\r\n")
            await reader.readline()
        reader, writer = await open_to(server)
        status, error = await said(reader)
        assert status == 429
        assert error["type"] == "rate_limit_error"
        assert "serve.max_connections_per_client" in error["message"]
        for _, one in [*opened, (reader, writer)]:
            one.close()


async def test_two_servers_share_a_port_and_one_takes_over():
    async with serving() as first:
        async with serving(first.port):
            assert await asyncio.gather(*(asked(first, "/x") for _ in range(8))) == ["/x"] * 8
        assert await asyncio.gather(*(asked(first, "/x") for _ in range(8))) == ["/x"] * 8


async def test_a_server_that_stops_answers_what_it_has():
    ARRIVED.clear()
    GO_ON.clear()
    async with serving() as server:
        held = asyncio.create_task(asked(server, "/held"))
        await ARRIVED.wait()
        stopping = asyncio.create_task(server.stop())
        await asyncio.sleep(0)
        GO_ON.set()
        assert await held == "/held"
        await stopping


async def test_a_server_that_ended_is_not_healthy():
    async with serving() as server:
        server.check()
    with pytest.raises(ServerStoppedError):
        server.check()
