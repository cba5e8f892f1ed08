from __future__ import annotations

import asyncio
import json

import pytest

from llamahome.keys import digest
from serve.http.guard import Guard
from serve.security.settings import SecuritySettings

SECURED = SecuritySettings(api_key=digest("secret"))
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "Basic secret"},
        {"authorization": "secret"},
        {"authorization": "Bearer "},
        {"authorization": "Bearer sécret"},
    ],
    ids=["none", "wrong", "scheme", "bare", "empty", "not ascii"],
)
async def test_a_wrong_key_is_401(connect, backend, headers):
    encoded = [(name, value.encode("utf-8")) for name, value in headers.items()]
    async with connect(security=SECURED) as client:
        for path in ("/v1/models", "/metrics", "/v1/chat/completions"):
            response = await client.post(path, json=CHAT, headers=encoded)
            assert response.status_code == 401
            assert response.json()["error"]["code"] == "invalid_api_key"
            assert response.headers["www-authenticate"] == "Bearer"
    assert backend.requests == []


async def test_the_right_key_opens_and_health_needs_none(connect):
    async with connect(security=SECURED) as client:
        headers = {"authorization": "bearer secret"}
        assert (await client.get("/v1/models", headers=headers)).status_code == 200
        assert (await client.get("/health")).status_code == 200


async def test_a_body_that_is_too_long_is_413(connect, backend):
    async def chunks():
        for _ in range(100):
            yield b"x" * 100

    async with connect(max_body_bytes=2000) as client:
        by_length = await client.post("/v1/completions", content=b"x" * 2001)
        by_counting = await client.post("/v1/completions", content=chunks())
    for response in (by_length, by_counting):
        assert response.status_code == 413
        assert "2000 bytes" in response.json()["error"]["message"]
    assert backend.requests == []


class Conversation:
    """One ASGI request, message by message."""

    def __init__(self, app, *messages):
        self.sent = []
        self._messages = list(messages)
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/chat/completions",
            "raw_path": b"/v1/chat/completions",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
            "client": ("127.0.0.1", 1),
        }
        self.done = asyncio.create_task(app(scope, self._receive, self._send))
        self.leave = asyncio.Event()

    async def _receive(self):
        if self._messages:
            return self._messages.pop(0)
        await self.leave.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message):
        self.sent.append(message)


def request(body: bytes, *, more: bool = False):
    return {"type": "http.request", "body": body, "more_body": more}


async def echo(scope, receive, send):
    body = (await receive())["body"]
    await respond(send, body)


async def respond(send, body: bytes):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


async def test_a_body_in_pieces_arrives_whole():
    guard = Guard(echo, keys=None, max_body_bytes=10)
    conversation = Conversation(guard, request(b"abc", more=True), request(b"def"))
    await conversation.done
    assert conversation.sent[-1]["body"] == b"abcdef"


async def test_a_body_that_does_not_arrive_is_408():
    guard = Guard(echo, keys=None, max_body_bytes=10, body_timeout_s=0.02)
    conversation = Conversation(guard, request(b"abc", more=True))
    await conversation.done
    assert conversation.sent[0]["status"] == 408


async def test_a_client_that_leaves_before_its_body_is_dropped():
    conversation = Conversation(
        Guard(echo, keys=None, max_body_bytes=10), request(b"abc", more=True)
    )
    conversation.leave.set()
    await conversation.done
    assert conversation.sent == []


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_a_client_that_leaves_ends_its_request(connect, backend, stream):
    backend.script = [*backend.script[:1], 60.0]
    async with connect() as client:
        app = client._transport.app
        body = json.dumps({**CHAT, "stream": stream}).encode()
        conversation = Conversation(app, request(body))
        while not backend.requests:
            await asyncio.sleep(0.005)
        conversation.leave.set()
        await asyncio.wait_for(conversation.done, 2)
        metrics = (await client.get("/metrics")).text
    assert backend.closed == 1
    status = "200" if stream else "499"
    assert f'path="/v1/chat/completions",status="{status}"}} 1.0' in metrics


async def test_an_error_of_the_application_passes_through():
    async def broken(scope, receive, send):
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await Conversation(Guard(broken, keys=None, max_body_bytes=10), request(b"")).done
