from __future__ import annotations

import asyncio
import base64
import json
import struct
from typing import Any

import pytest

from llamahome.requests import Token, TopToken
from serve.http.errors import ApiError, no_replica, queue_full
from serve.wire import Delta

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
COMPLETION = {"model": "tiny", "prompt": "Hi"}
TOKEN = Token(5, b"H", 0, -0.5, (TopToken(b"J", -0.25),))


def events(text: str) -> list[Any]:
    """Return the payloads of a stream of server-sent events."""
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


async def test_a_chat_answer_in_one_piece(connect, backend):
    async with connect() as client:
        response = await client.post("/v1/chat/completions", json=CHAT)
    body = response.json()
    assert response.status_code == 200
    assert body["choices"][0]["message"]["content"] == "Hello"
    assert body["choices"][0]["finish_reason"] == "stop"
    assert (body["object"], body["model"]) == ("chat.completion", "tiny")
    assert body["usage"]["total_tokens"] == 8
    assert body["usage"]["llamahome"] == {
        "kept_tokens": 3,
        "evicted_tokens": 2,
        "peak_tokens": 4,
        "kv_bytes": 100,
        "kv_bytes_dense": 400,
    }
    assert body["usage"]["prompt_tokens_details"]["cached_tokens"] == 1
    assert body["id"] == backend.requests[0].request_id


async def test_a_completion_in_one_piece(connect):
    async with connect() as client:
        body = (await client.post("/v1/completions", json=COMPLETION)).json()
    assert (body["object"], body["choices"][0]["text"]) == ("text_completion", "Hello")


async def test_a_chat_as_a_stream(connect):
    options = {"stream": True, "stream_options": {"include_usage": True}}
    async with connect() as client:
        response = await client.post("/v1/chat/completions", json={**CHAT, **options})
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, usage, done = events(response.text)
    assert done == "[DONE]"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    texts = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert texts == ["", "Hel", "lo"]
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None, None, "stop"]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], 3)


async def test_a_completion_as_a_stream_without_usage(connect):
    async with connect() as client:
        response = await client.post("/v1/completions", json={**COMPLETION, "stream": True})
    *chunks, done = events(response.text)
    assert done == "[DONE]"
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "Hello"
    assert all("usage" not in chunk or chunk["usage"] is None for chunk in chunks)


async def test_several_choices_in_one_piece(connect, backend):
    async with connect() as client:
        body = (await client.post("/v1/chat/completions", json={**CHAT, "n": 3, "seed": 5})).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert [choice["message"]["content"] for choice in body["choices"]] == ["Hello"] * 3
    assert (body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]) == (5, 9)
    assert [request.params.seed for request in backend.requests] == [5, 6, 7]


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
async def test_several_choices_as_a_stream(connect, path):
    options = {"n": 2, "stream": True, "stream_options": {"include_usage": True}}
    question = CHAT if path.startswith("chat") else COMPLETION
    async with connect() as client:
        response = await client.post(f"/v1/{path}", json={**question, **options})
    *chunks, usage, done = events(response.text)
    assert done == "[DONE]"
    for index in range(2):
        choices = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
        parts = [c["delta"].get("content", "") if "delta" in c else c["text"] for c in choices]
        assert "".join(parts) == "Hello"
        assert choices[-1]["finish_reason"] == "stop"
    assert usage["usage"]["completion_tokens"] == 6


async def test_several_prompts_are_choices_one_after_the_other(connect, backend):
    async with connect() as client:
        body = (
            await client.post("/v1/completions", json={**COMPLETION, "prompt": ["a", "b"]})
        ).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1]
    assert [request.prompt for request in backend.requests] == ["a", "b"]
    assert body["usage"]["prompt_tokens"] == 10


async def test_one_choice_that_fails_fails_the_answer(connect, backend):
    backend.script = [Delta(text="Hel", token_count=1), ApiError(500, "it died")]
    async with connect() as client:
        response = await client.post("/v1/chat/completions", json={**CHAT, "n": 2})
    assert response.status_code == 500
    assert backend.closed == 2


async def test_logprobs_of_a_chat(connect, backend):
    backend.script = [
        Delta(text="H", token_count=1, tokens=(TOKEN,)),
        Delta(text="i", token_count=1, tokens=(TOKEN,), finish_reason="stop"),
    ]
    async with connect() as client:
        asked = {**CHAT, "logprobs": True, "top_logprobs": 1}
        whole = (await client.post("/v1/chat/completions", json=asked)).json()
        stream = await client.post("/v1/chat/completions", json={**asked, "stream": True})
    expected = {
        "token": "H",
        "bytes": [72],
        "logprob": -0.5,
        "top_logprobs": [{"token": "J", "bytes": [74], "logprob": -0.25}],
    }
    assert whole["choices"][0]["logprobs"] == {"content": [expected] * 2, "refusal": None}
    chunks = [chunk["choices"][0]["logprobs"] for chunk in events(stream.text)[:-1]]
    assert chunks == [None, *[{"content": [expected], "refusal": None}] * 2]
    assert backend.requests[0].params.logprobs == 1


async def test_logprobs_of_a_completion(connect, backend):
    backend.script = [Delta(text="H", token_count=1, tokens=(TOKEN,), finish_reason="stop")]
    async with connect() as client:
        body = (await client.post("/v1/completions", json={**COMPLETION, "logprobs": 1})).json()
    assert body["choices"][0]["logprobs"] == {
        "text_offset": [0],
        "token_logprobs": [-0.5],
        "tokens": ["H"],
        "top_logprobs": [{"J": -0.25, "H": -0.5}],
    }


async def test_an_adapter_is_a_model_of_its_own(connect, backend):
    async with connect(adapters=("pirate",)) as client:
        listed = (await client.get("/v1/models")).json()["data"]
        answer = await client.post("/v1/completions", json={**COMPLETION, "model": "pirate"})
        await client.post("/v1/completions", json=COMPLETION)
    assert [model["id"] for model in listed] == ["tiny", "pirate"]
    assert answer.json()["model"] == "pirate"
    assert [request.params.adapter for request in backend.requests] == ["pirate", None]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"max_tokens": 0}, "max_tokens", "max_tokens=0: it must be at least 1"),
        ({"min_tokens": 5, "max_tokens": 2}, "min_tokens", "it must lie between 0 and 2"),
        ({"temperature": -1.0}, "temperature", "temperature=-1.0: it must lie between 0 and 100"),
        ({"top_p": 0.0}, "top_p", "top_p=0.0: it must lie above 0 and at most at 1"),
        ({"logit_bias": {"5": 101}}, "logit_bias", "a bias must lie between -100 and 100"),
    ],
)
async def test_a_value_out_of_range_is_refused_before_a_replica_is_asked(
    connect, backend, fields, param, message, stream
):
    async with connect() as client:
        response = await client.post(
            "/v1/chat/completions", json={**CHAT, "stream": stream, **fields}
        )
    error = response.json()["error"]
    assert (response.status_code, error["type"]) == (400, "invalid_request_error")
    assert (error["param"], error["code"]) == (param, "invalid_value")
    assert message in error["message"]
    assert backend.requests == []


async def test_two_grammars_are_refused_by_field(connect):
    asked = {**CHAT, "guided_regex": "a", "guided_choice": ["a"]}
    async with connect() as client:
        response = await client.post("/v1/chat/completions", json=asked)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "guided_choice")


VECTOR = (0.5, -0.25, 0.125)


@pytest.mark.parametrize("encoding", [None, "float", "base64"])
async def test_embeddings_in_both_encodings(connect, backend, make_usage, encoding):
    data = struct.pack("<3f", *VECTOR)
    backend.script = [
        Delta(
            text="", token_count=0, embedding=data, finish_reason="length", usage=make_usage(5, 0)
        )
    ]
    asked = {"model": "tiny", "input": ["a"] * 11, "encoding_format": encoding}
    async with connect() as client:
        body = (await client.post("/v1/embeddings", json=asked)).json()
    assert [item["index"] for item in body["data"]] == list(range(11))
    expected = base64.b64encode(data).decode() if encoding == "base64" else list(VECTOR)
    assert [item["embedding"] for item in body["data"]] == [expected] * 11
    assert body["usage"] == {"prompt_tokens": 55, "total_tokens": 55}
    assert (body["object"], body["model"], body["data"][0]["object"]) == (
        "list",
        "tiny",
        "embedding",
    )


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": "a", "dimensions": 5}, "dimensions"),
        ({}, "input"),
    ],
)
async def test_embeddings_name_what_is_wrong(connect, fields, param):
    async with connect() as client:
        response = await client.post("/v1/embeddings", json={"model": "tiny", **fields})
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


async def test_models_are_listed_and_found(connect):
    async with connect(model_id="org/tiny") as client:
        listed = (await client.get("/v1/models")).json()
        found = (await client.get("/v1/models/org/tiny")).json()
        missing = await client.get("/v1/models/other")
    assert listed == {"object": "list", "data": [found]}
    assert (found["id"], found["created"], found["object"]) == ("org/tiny", 1, "model")
    assert missing.status_code == 404


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (ApiError(400, "too long", param="max_tokens"), 400, "invalid_request_error"),
        (queue_full("full"), 429, "rate_limit_error"),
        (no_replica(), 503, "server_error"),
        (ApiError(500, "broken"), 500, "server_error"),
    ],
    ids=["invalid", "full", "no replica", "engine"],
)
async def test_an_early_error_has_its_own_status(connect, backend, error, status, kind, stream):
    backend.script = [error]
    async with connect() as client:
        response = await client.post("/v1/chat/completions", json={**CHAT, "stream": stream})
    body = response.json()["error"]
    assert (response.status_code, body["type"], body["message"]) == (status, kind, error.message)
    assert set(body) == {"message", "type", "param", "code"}
    assert response.headers.get("retry-after") == ("1" if status in (429, 503) else None)


async def test_a_late_error_is_an_event_of_the_stream(connect, backend):
    backend.script = [Delta(text="Hel", token_count=1), ApiError(500, "it died", code="engine")]
    async with connect() as client:
        response = await client.post("/v1/chat/completions", json={**CHAT, "stream": True})
        metrics = (await client.get("/metrics")).text
    assert response.status_code == 200
    assert events(response.text)[-1]["error"]["message"] == "it died"
    assert "llamahome_stream_errors_total 1.0" in metrics


async def test_a_late_error_of_a_whole_answer_is_a_status(connect, backend):
    backend.script = [Delta(text="Hel", token_count=1), ApiError(500, "it died")]
    async with connect() as client:
        response = await client.post("/v1/chat/completions", json=CHAT)
    assert response.status_code == 500


@pytest.mark.parametrize(
    "script",
    [[], [Delta(text="", token_count=1)], [Delta(text="Hel", token_count=1)]],
    ids=["nothing", "a token without text", "some text"],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_an_answer_without_an_end_is_an_error(connect, backend, script, path, stream):
    backend.script = script
    body = CHAT if "chat" in path else {"model": "tiny", "prompt": "Once"}
    async with connect() as client:
        response = await client.post(path, json={**body, "stream": stream})
    if stream and script:
        assert events(response.text)[-1]["error"]["code"] == "engine"
        assert "[DONE]" not in response.text
    else:
        assert response.status_code == 500
        assert response.json()["error"]["message"] == "the answer ended early"


@pytest.mark.parametrize(
    "fault",
    [RuntimeError("secret"), asyncio.CancelledError()],
    ids=["a bug", "a stream that is cancelled"],
)
async def test_whatever_ends_a_stream_early_is_an_event(connect, backend, fault):
    backend.script = [Delta(text="Hel", token_count=1), fault]
    async with connect() as client:
        response = await client.post("/v1/chat/completions", json={**CHAT, "stream": True})
    assert response.status_code == 200
    assert events(response.text)[-1]["error"]["type"] == "server_error"
    assert "secret" not in response.text


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_a_request_ends_at_its_deadline(connect, backend, stream):
    backend.script = [60.0]
    async with connect(request_timeout_s=0.05) as client:
        response = await client.post("/v1/chat/completions", json={**CHAT, "stream": stream})
    assert response.status_code == 504
    assert "0.05 s" in response.json()["error"]["message"]
    assert backend.closed == 1


async def test_a_stream_ends_at_its_deadline_whatever_headers_ask(connect, backend):
    backend.script = [Delta(text="a", token_count=1), 60.0]
    headers = {"x-request-timeout-seconds": "0", "x-request-disconnect-disabled": "?1"}
    async with connect(request_timeout_s=0.05) as client:
        response = await client.post(
            "/v1/chat/completions", json={**CHAT, "stream": True}, headers=headers
        )
    assert events(response.text)[-1]["error"]["code"] == "timeout"
    assert backend.closed == 1


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nothing", 404), ("DELETE", "/v1/completions", 405), ("GET", "/docs", 404)],
)
async def test_routes_that_do_not_exist_answer_in_the_same_shape(connect, method, path, status):
    async with connect() as client:
        response = await client.request(method, path)
    assert response.status_code == status
    assert response.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("content", "content_type", "status"),
    [
        ("{", "application/json", 400),
        ("[]", "application/json", 400),
        ("", "application/json", 400),
        (b'{"model": "\xff"}', "application/json", 400),
        ("[" * 3000, "application/json", 400),
        (json.dumps(CHAT), "text/plain", 415),
        (json.dumps(CHAT), "application/json; charset=utf-8", 200),
        (json.dumps({**CHAT, "model": "gpt-4"}), "application/json", 404),
        (json.dumps({**CHAT, "temperature": float("nan")}), "application/json", 400),
        (r'{"model": "tiny", "prompt": "\ud800"}', "application/json", 400),
    ],
    ids=["cut", "list", "empty", "utf8", "deep", "text", "charset", "model", "nan", "surrogate"],
)
async def test_bodies(connect, content, content_type, status):
    async with connect() as client:
        response = await client.post(
            "/v1/chat/completions", content=content, headers={"content-type": content_type}
        )
    assert response.status_code == status
    assert status == 200 or response.json()["error"]["message"]


async def test_a_surprise_is_a_500_that_says_nothing_of_the_inside(connect, backend):
    backend.script = ["not a delta"]
    async with connect() as client:
        response = await client.post("/v1/chat/completions", json=CHAT)
    assert response.status_code == 500
    assert response.json()["error"]["message"] == "internal error; the server's log has the details"


async def test_health_follows_the_replicas(connect, backend, make_stats):
    async with connect() as client:
        assert (await client.get("/health")).json() == {"status": "ok", "replicas": 1}
        backend.stats = [make_stats(running=False)]
        assert (await client.get("/health")).status_code == 503
    backend.stats = []
    async with connect(may_sleep=True) as client:
        assert (await client.get("/health")).json() == {"status": "asleep", "replicas": 0}


async def test_metrics_count_what_happened(connect, backend, make_stats):
    backend.stats = [make_stats("r1"), make_stats("r2")]
    async with connect() as client:
        await client.post("/v1/chat/completions", json={**CHAT, "stream": True})
        await client.post("/v1/completions", json={**COMPLETION, "model": "x"})
        await client.get("/a/random/path")
        first = (await client.get("/metrics")).text.splitlines()
        backend.stats = [make_stats("r2")]
        second = (await client.get("/metrics")).text
    for line in (
        'llamahome_requests_total{path="/v1/chat/completions",status="200"} 1.0',
        'llamahome_requests_total{path="/v1/completions",status="404"} 1.0',
        'llamahome_requests_total{path="other",status="404"} 1.0',
        "llamahome_requests_in_flight 1.0",
        'llamahome_ttft_seconds_count{model="tiny"} 1.0',
        'llamahome_tpot_seconds_count{model="tiny"} 1.0',
        'llamahome_prompt_tokens_total{model="tiny"} 5.0',
        'llamahome_generated_tokens_total{model="tiny"} 3.0',
        'llamahome_evicted_tokens_total{model="tiny"} 2.0',
        'llamahome_slots_used{model="tiny",replica="r1"} 1.0',
        'llamahome_kv_bytes{model="tiny",replica="r2"} 1024.0',
        'llamahome_prefix_hit_tokens{model="tiny",replica="r2"} 96.0',
    ):
        assert line in first
    assert 'replica="r1"' not in second


async def test_answers_run_side_by_side(connect, backend):
    backend.script = [1.0, Delta(text="a", token_count=1, finish_reason="stop")]
    async with connect(request_timeout_s=60.0) as client:
        async with asyncio.timeout(15):  # one after the other they take 20 s
            posts = [client.post("/v1/chat/completions", json=CHAT) for _ in range(20)]
            responses = await asyncio.gather(*posts)
    assert {response.status_code for response in responses} == {200}
    assert len({response.json()["id"] for response in responses}) == 20
