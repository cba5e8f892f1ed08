"""Clients' mistakes and hostile requests, answered by a real engine: never a 5xx, never a hang."""

from __future__ import annotations

import asyncio
import json
import random
import re
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve.http.anthropic.body import CountBody, MessagesBody
from serve.http.api import build_app
from serve.http.fields import Strict
from serve.http.plain import PlainBody
from serve.http.protocol import ChatRequest, CompletionRequest, EmbeddingRequest
from serve.http.routes.scores import RerankBody, ScoreBody
from serve.http.routes.tokens import DetokenizeBody, TokenizeBody
from serve.http.settings import HttpSettings
from serve.http.stateful.body import ResponsesBody
from serve.http.stateful.store import MemoryStore
from tests.serve.http.real import OneReplica

PROMPT = {"model": "tiny", "prompt": "a", "max_tokens": 8}
# Wide enough to be compiled for long, or to need more states than a step has.
MANY = {f"property_{i}": {"type": "string"} for i in range(3000)}
NESTED = r"((\p{L}{1,100}){1,100}){1,100}"
SEED, REQUESTS, AT_ONCE = 15, 1000, 10
STORE = MemoryStore(100_000, 600)


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Iterator[OneReplica]:
    backend = OneReplica(tiny_model)
    yield backend
    backend.replica.close()


@pytest.fixture
def client(engine: OneReplica) -> httpx.AsyncClient:
    settings = HttpSettings(
        model_id="tiny", created=1, request_timeout_s=120.0, max_body_bytes=2**20
    )
    transport = httpx.ASGITransport(
        build_app(engine, settings, store=STORE), raise_app_exceptions=False
    )
    return httpx.AsyncClient(transport=transport, base_url="http://test")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"guided_json": {"type": "object", "properties": MANY}}, "guided_json"),
        ({"guided_json": json.dumps(MANY)[:-1]}, "guided_json"),
        ({"guided_regex": "(" * 10_000 + ")" * 10_000}, "guided_regex"),
        ({"guided_choice": [f"choice {i}" for i in range(20_000)]}, "guided_choice"),
        ({"guided_choice": [""], "min_tokens": 2}, "guided_choice"),
        ({"repetition_penalty": 1e-300}, "repetition_penalty"),
        ({"stop_token_ids": list(range(259)), "min_tokens": 2}, "min_tokens"),
        ({"logit_bias": {"259": -100}}, "logit_bias"),
        ({"logit_bias": {str(i): -101 for i in range(259)}}, "logit_bias"),
        ({"kv_budget": 1e-300}, "kv_budget"),
        ({"max_tokens": 10**30}, "max_tokens"),
    ],
    ids=lambda value: str(value)[:40],
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_a_mistake_is_a_400_that_names_the_field(client, fields, param, stream):
    response = await client.post("/v1/completions", json={**PROMPT, **fields, "stream": stream})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param), error
    assert len(error["message"]) < 500


async def test_a_bias_against_every_token_is_a_bias_against_none(client):
    bias = {str(token): -100 for token in range(259)}
    asked = {**PROMPT, "temperature": 0}
    plain = await client.post("/v1/completions", json=asked)
    biased = await client.post("/v1/completions", json={**asked, "logit_bias": bias})
    assert biased.status_code == 200
    assert biased.json()["choices"] == plain.json()["choices"]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_a_grammar_that_grows_too_large_in_an_answer_is_the_clients_mistake(client, stream):
    asked = {**PROMPT, "guided_regex": NESTED, "max_tokens": 100, "stream": stream, "seed": 1}
    response = await client.post("/v1/completions", json=asked)
    if response.headers["content-type"].startswith("text/event-stream"):
        error = json.loads(response.text.strip().splitlines()[-1].removeprefix("data: "))["error"]
    else:
        assert response.status_code == 400
        error = response.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", "guided_regex")
    assert "too many expressions" in error["message"]


async def test_neighbours_get_tokens_while_a_grammar_is_compiled(client, engine):
    """The answers of neighbours that begin and end while a grammar is being compiled count."""
    release = threading.Event()
    compiling = threading.Event()

    def occupied() -> None:
        compiling.set()
        release.wait(60)

    # The thread that compiles is busy for as long as the test wants.
    engine.replica._compiler.submit(occupied)
    try:
        slow = asyncio.create_task(
            client.post("/v1/completions", json={**PROMPT, "guided_regex": "[a-c]{3}"})
        )
        await asyncio.to_thread(compiling.wait, 60)
        for _ in range(3):
            assert (await client.post("/v1/completions", json=PROMPT)).status_code == 200
        assert not slow.done()
    finally:
        release.set()
    answer = await slow
    assert re.fullmatch("[a-c]{3}", answer.json()["choices"][0]["text"])


def nasty(draw: random.Random) -> Any:
    """Draw a value that a field may not expect."""
    depth = draw.randrange(1, 60)
    return draw.choice(
        [
            *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**40, 0.5, 1e-300, 1e300),
            *("", "a", "\0", "\ud800", "\U0001f600" * 50, "<|im_end|>", "</s>" * 20, "a" * 5000),
            *([], {}, [[]], [None], [1, "a"], [-1], [10**9], ["a"] * 200, {"a": {"b": []}}),
            *({"259": 1}, {"x": 1}, {"1": None}, [{"role": "user"}], {"type": "object"}),
            *(NESTED, "(?=a)", "[", "a{1000000}", "(a|b)*c{5,3}", "\\p{L}{1,50}", ".*" * 50),
            json.loads("[" * depth + "]" * depth),
            json.loads('{"items":' * depth + "{}" + "}" * depth),
            {"type": "object", "properties": {f"p{i}": {"enum": [i]} for i in range(depth)}},
            {"$ref": "#"},
            {"allOf": [{"type": "string"}, {"type": "integer"}]},
            {"type": "string", "pattern": NESTED},
            {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "nothing"}}},
            [{"type": "function", "name": "f", "parameters": {"$ref": "#"}}],
            [{"name": "f", "input_schema": {"type": "object", "pattern": NESTED}}],
            [{"type": "function_call", "call_id": "1", "name": "f", "arguments": "[" * 5000}],
            [{"type": "function_call_output", "call_id": "1", "output": "a"}],
            [{"role": "assistant", "content": [{"type": "tool_use", "id": "1", "input": {}}]}],
            [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1"}]}],
        ]
    )


BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": PROMPT,
    "/v1/chat/completions": {
        "model": "tiny",
        "messages": [{"role": "user", "content": "a"}],
        "max_tokens": 4,
    },
    "/v1/embeddings": {"model": "tiny", "input": "a"},
    "/v1/responses": {"model": "tiny", "input": "a", "max_output_tokens": 4},
    "/v1/messages": {
        "model": "tiny",
        "messages": [{"role": "user", "content": "a"}],
        "max_tokens": 4,
    },
    "/v1/messages/count_tokens": {"model": "tiny", "messages": [{"role": "user", "content": "a"}]},
    "/tokenize": {"prompt": "a"},
    "/detokenize": {"tokens": [5]},
    "/v1/score": {"model": "tiny", "text_1": "a", "text_2": ["b", "c"]},
    "/v1/rerank": {"model": "tiny", "query": "a", "documents": ["b", "c"]},
    "/api/v1/process": {"text": "a", "max_tokens": 4},
    "/api/v1/stream": {"text": "a", "max_tokens": 4},
}
KINDS: dict[str, type[Strict]] = {
    "/v1/completions": CompletionRequest,
    "/v1/chat/completions": ChatRequest,
    "/v1/embeddings": EmbeddingRequest,
    "/v1/responses": ResponsesBody,
    "/v1/messages": MessagesBody,
    "/v1/messages/count_tokens": CountBody,
    "/tokenize": TokenizeBody,
    "/detokenize": DetokenizeBody,
    "/v1/score": ScoreBody,
    "/v1/rerank": RerankBody,
    "/api/v1/process": PlainBody,
    "/api/v1/stream": PlainBody,
}


def hostile(draw: random.Random) -> dict[str, Any]:
    """Draw the arguments of a request that no honest client would send."""
    path = draw.choice(
        [*BODIES, *BODIES, *BODIES, "/v1/models/../x", "/%00", "/metrics", "//", "/"]
    )
    body = dict(BODIES.get(path, PROMPT))
    fields = [*KINDS.get(path, CompletionRequest).model_fields, "nonsense"]
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        field = draw.choice(fields)
        plain = draw.choice([name for name in fields if name in PLAIN] or [field])
        wrong = (field, nasty(draw))
        field, value = draw.choice([wrong, (plain, PLAIN.get(plain, 1))])
        body[field] = value
    content = json.dumps(body).encode()
    harm = draw.randrange(10)
    if harm == 0:
        content = draw.randbytes(draw.randrange(300))
    elif harm == 1:
        content = content[: draw.randrange(len(content))]
    elif harm == 2:
        content = b"[" * draw.randrange(1, 100_000)
    method = "POST" if path in BODIES and draw.random() < 0.95 else draw.choice(METHODS)
    headers = [(b"content-type", draw.choice([b"application/json"] * 9 + [b"text/plain"]))]
    headers += draw.sample(HEADERS, draw.randrange(3))
    return {"method": method, "url": path, "content": content, "headers": headers}


# Values that are allowed, so that harm also arrives where it is computed with.
PLAIN: dict[str, Any] = {
    "temperature": 100,
    "top_p": 1e-300,
    "min_p": 1e-300,
    "top_k": 2**31,
    "repetition_penalty": 0.01,
    "presence_penalty": -2,
    "frequency_penalty": 2,
    "logit_bias": {str(token): -100 for token in range(259)},
    "seed": -(2**63),
    "n": 3,
    "stop": ["\0", "<|im_end|>", "\U0001f600"],
    "stream": True,
    "ignore_eos": True,
    "min_tokens": 4,
    "stop_token_ids": list(range(259)),
    "priority": 2**31,
    "response_format": {"type": "json_object"},
    "guided_regex": NESTED,
    "guided_choice": ["", "a", "\0"],
    "structured_outputs": {"json": {"type": "array", "items": {"$ref": "#"}}},
    "top_n": 2**40,
    "stop_sequences": ["\0"],
    "instructions": "</s>" * 20,
    "system": "\U0001f600",
    "output_config": {"format": {"type": "json_schema", "schema": {"$ref": "#"}}},
    "tool_choice": {"type": "none"},
    "return_token_strs": True,
}
ODD_PATHS = ("/v1/models/../x", "/%00", "/metrics", "//", "/")
METHODS = ("GET", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE", "BREW")
HEADERS = [
    (b"x-request-id", b"a" * 5000),
    (b"x-request-timeout-seconds", b"-1"),
    (b"x-request-disconnect-disabled", b"?1"),
    (b"serve_multiplexed_model_id", b"x"),
    (b"authorization", b"Bearer " + b"\xff" * 100),
    (b"origin", b"http://["),
    (b"origin", b"null"),
    (b"content-encoding", b"gzip"),
    (b"expect", b"100-continue"),
    (b"cookie", b"a" * 4000),
    (b"x-forwarded-for", b"' or 1=1"),
]


async def test_hostile_requests_get_no_5xx_and_leave_the_endpoint_as_it_was(client, engine):
    draw, statuses = random.Random(SEED), Counter[int]()
    before = await client.post("/v1/completions", json={**PROMPT, "temperature": 0})
    for _ in range(REQUESTS // AT_ONCE):
        sent = [hostile(draw) for _ in range(AT_ONCE)]
        async with asyncio.timeout(120):
            answers = await asyncio.gather(*(client.request(**request) for request in sent))
        for request, answer in zip(sent, answers, strict=True):
            assert answer.status_code < 500, (request, answer.text)
            statuses[answer.status_code] += 1
            assert "server_error" not in answer.text, request
    assert statuses[200] > REQUESTS / 20  # the engine had its share
    stats = (await engine.replicas())[0]
    assert stats.running
    assert (stats.engine.slots_used, stats.engine.queued) == (0, 0)
    after = await client.post("/v1/completions", json={**PROMPT, "temperature": 0})
    assert after.json()["choices"] == before.json()["choices"]
