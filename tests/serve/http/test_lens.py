"""The lens in a chat's stream, what describes it, and the files of the page."""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import asdict, replace

import pytest

from llamahome.keys import digest
from llamahome.lens import CacheShape, LensFrame
from serve.security.settings import SecuritySettings
from serve.wire import Delta

SECURED = SecuritySettings(api_key=digest("secret"))
FRAME = LensFrame(
    length=9,
    layers=2,
    heads=1,
    kept=zlib.compress(bytes([0b11111111, 0b1, 0b00000011, 0b1])),
    start=0,
    ids=(5, 6),
    texts=("a", "b"),
    token_bytes=64,
)
CACHE = CacheShape(
    policy="h2o",
    budgets=(32,),
    kv_budgets=(12, 32),
    interval=8,
    layers=2,
    heads=1,
    slot_bytes=2048,
    token_bytes=64,
)
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "stream": True}


def test_a_frame_lists_what_a_head_holds() -> None:
    assert FRAME.held(0, 0) == list(range(9))
    assert FRAME.held(1, 0) == [0, 1, 8]


async def test_frames_are_chunks_of_a_stream(connect, backend):
    """One that comes while text is held back, too; its bits arrive as they were."""
    backend.script = (
        Delta(text="", token_count=1, lens=FRAME),
        Delta(text="Hello", token_count=1, finish_reason="stop", lens=FRAME),
    )
    async with connect(lens=True) as client:
        text = (await client.post("/v1/chat/completions", json={**CHAT, "lens": True})).text
    chunks = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    first, last = (chunk["lens"] for chunk in chunks if "lens" in chunk)
    assert first == last
    assert (
        LensFrame(**{**first, "kept": base64.b64decode(first["kept"]), **_tuples(first)}) == FRAME
    )
    assert backend.requests[0].params.lens


def _tuples(frame: dict) -> dict:
    return {name: tuple(frame[name]) for name in ("ids", "texts")}


async def test_a_chat_that_does_not_ask_gets_no_frames(connect, backend):
    async with connect(lens=True) as client:
        text = (await client.post("/v1/chat/completions", json=CHAT)).text
    assert '"lens"' not in text
    assert not backend.requests[0].params.lens


async def test_the_lens_is_refused_where_it_is_not_served(connect, backend):
    async with connect() as client:
        answer = await client.post("/v1/chat/completions", json={**CHAT, "lens": True})
    assert answer.status_code == 403
    assert answer.json()["error"]["param"] == "lens"
    assert "serve.lens" in answer.json()["error"]["message"]
    assert backend.requests == []


async def test_the_lens_needs_a_stream(connect):
    async with connect(lens=True) as client:
        body = {**CHAT, "stream": False, "lens": True}
        answer = await client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "lens"


@pytest.mark.parametrize("cache", [CACHE, None])
async def test_the_cache_is_described(connect, backend, make_stats, cache):
    backend.stats = [replace(make_stats(), cache=cache)]
    async with connect(lens=True) as client:
        body = (await client.get("/v1/lens")).json()
    assert body["lens"] is True
    assert "h2o" in body["kv_policies"]
    assert body["cache"] == (None if cache is None else json.loads(json.dumps(asdict(cache))))


async def test_the_page_is_off_unless_served(connect):
    async with connect() as client:
        for path in ("/", "/page/main.js"):
            assert (await client.get(path)).status_code == 404


async def test_files_of_the_page_need_no_key_and_nothing_else_is_open(connect):
    async with connect(page=True, lens=True, security=SECURED) as client:
        page = await client.get("/")
        assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert "script-src 'self'" in page.headers["content-security-policy"]
        assert page.headers["x-content-type-options"] == "nosniff"
        script = await client.get("/page/main.js")
        assert script.headers["content-type"] == "text/javascript; charset=utf-8"
        assert (await client.get("/page/none.js")).status_code == 404
        assert (await client.get("/page/../api.py")).status_code != 200
        assert (await client.post("/", json={})).status_code == 401
        assert (await client.head("/")).status_code == 200
        assert (await client.get("/v1/lens")).status_code == 401
        answer = await client.post("/v1/chat/completions", json={**CHAT, "lens": True})
        assert answer.status_code == 401
