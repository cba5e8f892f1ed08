"""Keys, limits, ids, origins and the audit log, through the whole application."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from llamahome.keys import KeyFile
from serve.http.door import PROXY_HEADERS, Door, behind_door
from serve.http.errors import queue_full
from serve.security.limits import LocalLimiter
from serve.security.settings import SecuritySettings
from serve.wire import Delta

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Secret words"}]}
PATH = "/v1/chat/completions"


@pytest.fixture
def keys(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "keys.json")


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


def refused(response, status: int, code: str, param: str | None = None) -> str:
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (status, code, param)
    return error["message"]


async def test_a_revoked_key_is_refused_at_once(connect, keys):
    _, secret = keys.create("ann")
    async with connect(security=SecuritySettings(keys_file=keys.path)) as client:
        assert (await client.post(PATH, json=CHAT, headers=bearer(secret))).status_code == 200
        keys.revoke("ann")
        refused(await client.post(PATH, json=CHAT, headers=bearer(secret)), 401, "invalid_api_key")
        _, second = keys.create("ann")
        assert (await client.post(PATH, json=CHAT, headers=bearer(second))).status_code == 200


async def test_a_key_sees_and_uses_only_its_models(connect, keys, backend):
    _, secret = keys.create("ann", models=("pirate", "elsewhere"))
    settings = SecuritySettings(keys_file=keys.path)
    async with connect(security=settings, adapters=("pirate",)) as client:
        client.headers = bearer(secret)
        listed = (await client.get("/v1/models")).json()["data"]
        assert [model["id"] for model in listed] == ["pirate"]
        refused(await client.get("/v1/models/tiny"), 404, "model_not_found", "model")
        for path, body in (
            (PATH, CHAT),
            ("/v1/completions", {"model": "tiny", "prompt": "a"}),
            ("/v1/embeddings", {"model": "tiny", "input": "a"}),
        ):
            message = refused(await client.post(path, json=body), 404, "model_not_found", "model")
            assert message == "no model 'tiny' here; this endpoint serves 'pirate'"
        assert backend.requests == []
        allowed = await client.post(PATH, json={**CHAT, "model": "pirate"})
        assert allowed.status_code == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_only_admins_go_ahead_of_others_and_read_metrics(connect, keys, backend, stream):
    _, user = keys.create("ann")
    _, admin = keys.create("root", role="admin")
    async with connect(security=SecuritySettings(keys_file=keys.path)) as client:
        ahead = {**CHAT, "priority": -1, "stream": stream}
        denied = await client.post(PATH, json=ahead, headers=bearer(user))
        assert "priority=-1" in refused(denied, 403, "permission_denied", "priority")
        assert backend.requests == []
        behind = {**ahead, "priority": 1}
        assert (await client.post(PATH, json=behind, headers=bearer(user))).status_code == 200
        assert (await client.post(PATH, json=ahead, headers=bearer(admin))).status_code == 200
        for path in ("/metrics", "/admin", "/admin/adapters"):
            refused(await client.get(path, headers=bearer(user)), 403, "permission_denied")
        assert (await client.get("/metrics", headers=bearer(admin))).status_code == 200


async def test_a_limit_of_requests_says_when_to_come_back(connect, keys):
    _, ann = keys.create("ann", requests_per_minute=2)
    _, bob = keys.create("bob", requests_per_minute=2)
    async with connect(security=SecuritySettings(keys_file=keys.path)) as client:
        first = await client.get("/v1/models", headers=bearer(ann))
        assert first.headers["x-ratelimit-limit-requests"] == "2"
        assert first.headers["x-ratelimit-remaining-requests"] == "1"
        assert first.headers["x-ratelimit-reset-requests"] == "30s"
        await client.post(PATH, json=CHAT, headers=bearer(ann))
        limited = await client.post(PATH, json=CHAT, headers=bearer(ann))
        message = refused(limited, 429, "rate_limit_exceeded")
        assert "limit of 2 requests a minute" in message
        assert 25 <= int(limited.headers["retry-after"]) <= 30
        assert limited.headers["x-ratelimit-remaining-requests"] == "0"
        assert (await client.get("/v1/models", headers=bearer(bob))).status_code == 200


async def test_tokens_are_reserved_and_settled_by_what_was_used(connect, keys, backend):
    _, secret = keys.create("ann", tokens_per_minute=1000)
    async with connect(security=SecuritySettings(keys_file=keys.path)) as client:
        client.headers = bearer(secret)
        asked = {"model": "tiny", "prompt": "a" * 400, "max_tokens": 800}
        first = await client.post("/v1/completions", json=asked)
        assert first.headers["x-ratelimit-remaining-tokens"] == "100"  # 1000 - 400 / 4 - 800
        # The answer used 5 + 3 tokens; the rest is back.
        second = await client.post("/v1/completions", json={**asked, "max_tokens": 500})
        assert 390 <= int(second.headers["x-ratelimit-remaining-tokens"]) <= 400
        too_much = await client.post("/v1/completions", json={**asked, "max_tokens": 901})
        assert "has 1000 a minute" in refused(too_much, 400, "invalid_value", "max_tokens")
        # An answer may be longer than what was reserved: then the key owes the rest.
        backend.script = [Delta(text="a", token_count=900), *backend.script[-1:]]
        long = {**asked, "prompt": "", "max_tokens": None}
        backend.script[-1] = Delta(text="", token_count=0, finish_reason="length")
        assert (await client.post(PATH, json=CHAT)).status_code == 200
        limited = await client.post("/v1/completions", json={**long, "max_tokens": 800})
        assert "tokens a minute" in refused(limited, 429, "rate_limit_exceeded")


async def test_a_request_that_was_refused_costs_no_tokens(connect, keys, backend):
    _, secret = keys.create("ann", tokens_per_minute=1000)
    async with connect(security=SecuritySettings(keys_file=keys.path)) as client:
        client.headers = bearer(secret)
        backend.script = [queue_full("wait")]
        for _ in range(5):
            asked = {"model": "tiny", "prompt": "a", "max_tokens": 900}
            refused(await client.post("/v1/completions", json=asked), 429, "queue_full")


async def test_every_answer_has_safe_headers(connect, keys):
    settings = SecuritySettings(keys_file=keys.path, tls=True)
    async with connect(security=settings) as client:
        for path in ("/health", "/v1/models", "/nowhere"):
            headers = (await client.get(path)).headers
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["x-frame-options"] == "DENY"
            assert headers["cache-control"] == "no-store"
            assert headers["content-security-policy"].startswith("default-src 'none'")
            assert headers["strict-transport-security"] == "max-age=31536000"
    async with connect() as client:
        stream = await client.post(PATH, json={**CHAT, "stream": True})
        assert stream.headers["cache-control"] == "no-store"
        assert "strict-transport-security" not in stream.headers


@pytest.mark.parametrize("given", ["a", "Az0._-" * 21])
async def test_a_plain_request_id_comes_back(connect, given):
    async with connect() as client:
        response = await client.get("/health", headers={"x-request-id": given})
        assert response.headers["x-request-id"] == given
        own = [(await client.get("/health")).headers["x-request-id"] for _ in range(2)]
        assert len(set(own)) == 2


@pytest.mark.parametrize("given", ["", "a b", "a" * 129, "<script>", "é", 'a"b', "a\tb"])
async def test_another_request_id_is_refused_and_not_repeated(connect, given):
    async with connect() as client:
        headers = [(b"x-request-id", given.encode())]
        response = await client.get("/health", headers=headers)
        refused(response, 400, "invalid_value", "x-request-id")
        assert response.headers["x-request-id"] != given


@pytest.mark.parametrize(
    ("origin", "host", "status"),
    [
        ("https://chat.example.org", "test", 200),
        ("https://chat.example.org.evil.org", "test", 403),
        ("http://chat.example.org", "test", 403),
        ("null", "test", 403),
        ("http://evil.org", "evil.org", 403),  # its name leads here: DNS rebinding
        ("http://127.0.0.1:8000", "127.0.0.1:8000", 200),
        ("http://[::1]:8000", "[::1]:8000", 200),
        ("http://[::1", "[::1", 403),
        ("http://127.0.0.1:9000", "127.0.0.1:8000", 403),
    ],
)
async def test_only_pages_of_allowed_origins_get_in(connect, origin, host, status):
    settings = SecuritySettings(cors_origins=("https://chat.example.org",))
    async with connect(security=settings) as client:
        headers = {"origin": origin, "host": host}
        response = await client.post(PATH, json=CHAT, headers=headers)
        asked = {**headers, "access-control-request-method": "POST"}
        preflight = await client.options(PATH, headers=asked)
    assert response.status_code == status
    allowed = origin if origin == "https://chat.example.org" else None
    assert response.headers.get("access-control-allow-origin") == allowed
    assert preflight.headers.get("access-control-allow-origin") == allowed
    assert response.headers.get("access-control-allow-credentials") is None


async def test_a_page_needs_a_key_but_its_preflight_does_not(connect, keys):
    origin = "https://chat.example.org"
    settings = SecuritySettings(keys_file=keys.path, cors_origins=(origin,))
    async with connect(security=settings) as client:
        preflight = await client.options(
            PATH,
            headers={
                "origin": origin,
                "access-control-request-method": "POST",
                "access-control-request-headers": "x-api-key,anthropic-version,x-stainless-os",
            },
        )
        assert preflight.status_code == 200
        response = await client.post(PATH, json=CHAT, headers={"origin": origin})
        refused(response, 401, "invalid_api_key")
        assert response.headers["access-control-allow-origin"] == origin


async def test_the_audit_log_says_who_what_when_and_how_it_ended(connect, keys, tmp_path):
    key, secret = keys.create("ann")
    log = tmp_path / "audit.log"
    settings = SecuritySettings(keys_file=keys.path, audit_log=log)
    start = time.time()
    async with connect(security=settings) as client:
        headers = {**bearer(secret), "x-request-id": "mine"}
        answer = await client.post(PATH, json=CHAT, headers=headers)
        await client.post(PATH, json={**CHAT, "stream": True}, headers=bearer(secret))
        await client.post(PATH, json=CHAT, headers=bearer("lh-wrong"))
        await client.post(PATH, json={**CHAT, "model": "Secret words"}, headers=bearer(secret))
    text = log.read_text()
    assert "Secret" not in text
    assert answer.json()["choices"][0]["message"]["content"] not in text
    assert secret not in text
    whole, stream, wrong, unknown = map(json.loads, text.splitlines())
    assert (
        whole.items()
        >= {
            "request_id": "mine",
            "key": key.id,
            "name": "ann",
            "method": "POST",
            "path": PATH,
            "model": "tiny",
            "status": 200,
            "finish": ["stop"],
            "prompt_tokens": 5,
            "completion_tokens": 3,
        }.items()
    )
    assert whole["time"][:4] == time.strftime("%Y", time.gmtime(start))
    assert (stream["status"], stream["completion_tokens"], stream["finish"]) == (200, 3, ["stop"])
    assert (wrong["status"], wrong["key"], wrong["model"]) == (401, None, None)
    assert (unknown["status"], unknown["key"], unknown["model"]) == (404, key.id, None)


async def test_headers_for_rays_proxy_do_not_reach_the_application():
    seen = {}

    async def app(scope, receive, send):
        seen.update(scope["headers"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def nothing(*_):
        return {"type": "http.disconnect"}

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/",
        "headers": [(b"accept", b"*/*"), *((name, b"1") for name in PROXY_HEADERS)],
    }
    await Door(app, {})(scope, nothing, nothing)
    assert set(seen) == {b"accept", b"x-request-id"}


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer lh-wrong"}])
async def test_a_websocket_needs_a_key_and_an_origin_too(keys, headers):
    async def app(scope, receive, send):
        raise AssertionError("it was let in")

    sent = []

    async def receive():
        return {"type": "websocket.connect"}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "websocket",
        "path": "/",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "extensions": {"websocket.http.response": {}},
    }
    settings = SecuritySettings(keys_file=keys.path)
    door = behind_door(app, settings, LocalLimiter(), max_body_bytes=1)
    await door(scope, receive, send)
    assert sent[0]["type"] == "websocket.http.response.start"
    assert sent[0]["status"] == 401
    _, secret = keys.create("ann")
    scope["headers"] = [(b"authorization", f"Bearer {secret}".encode()), (b"origin", b"http://x")]
    await door(scope, receive, send)
    assert sent[-2]["status"] == 403
    del scope["extensions"]
    await door(scope, receive, send)
    assert (sent[-1]["type"], sent[-1]["code"]) == ("websocket.close", 1008)
