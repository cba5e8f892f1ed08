"""`python -m serve` on a real Ray, spoken to by OpenAI's own client. One endpoint for all tests."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
import httpx
import openai
import psutil
import pytest
from ray.serve.generated import serve_pb2, serve_pb2_grpc

from llamahome.keys import KeyFile
from tests.ports import free_ports
from tests.serve.tuned import save_run

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
KEY = "test-key"
# Ray gives workers a niceness of 15, with which they starve on a busy machine.
PATIENT = {"RAY_worker_niceness": "0"}
MESSAGES = [{"role": "user", "content": "Tell me a story."}]
LONG: dict[str, Any] = {"max_tokens": 1900, "temperature": 0.0}


@dataclass
class Endpoint:
    process: subprocess.Popen[str]
    output: list[str]
    temp_dir: Path
    url: str
    client: openai.OpenAI
    limited: str  # a key with 2 requests a minute

    def metric(self, name: str) -> float:
        headers = {"Authorization": f"Bearer {KEY}"}
        lines = httpx.get(f"{self.url}/metrics", headers=headers, timeout=30).text.splitlines()
        own = (f"{name} ", f"{name}{{")  # and no longer name that begins so
        return sum(float(line.split()[-1]) for line in lines if line.startswith(own))

    def replicas(self, deployment: str) -> list[psutil.Process]:
        """Return the processes of a deployment, descendants of the one that we started."""
        name = f"ray::ServeReplica:llamahome:{deployment}"
        return [
            child
            for child in psutil.Process(self.process.pid).children(recursive=True)
            if child.is_running() and name in "".join(_command(child))
        ]


def _command(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        return process.cmdline()
    return []


def until(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not so within {seconds} s"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def tuned(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of other weights, to which the endpoint may be promoted."""
    return save_run(tiny_model, tmp_path_factory.mktemp("tuned") / "better", scale=1.0)


@pytest.fixture(scope="module")
def endpoint(tiny_model: Path, tuned: Path) -> Iterator[Endpoint]:
    (port,) = free_ports(1)
    with (
        tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as temp_dir,
        Path(temp_dir, "log").open("w") as log,
    ):
        keys = KeyFile(Path(temp_dir) / "keys.json")
        limits = {"requests_per_minute": 2, "tokens_per_minute": 1000}
        _, limited = keys.create("limited", models=("tiny",), **limits)
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "serve"),
                *(f"model.name={tiny_model}", f"serve.port={port}", "engine.num_threads=1"),
                *("engine.slots=2", "engine.max_queued=2", "engine.max_length=2048"),
                *("policy=h2o", "policy.budget=32", "policy.recent=16", "policy.interval=8"),
                *(f"serve.keys_file={keys.path}", f"serve.audit_log={temp_dir}/audit.log"),
                *("log.format=json", "log.level=DEBUG"),
                f"serve.model_dirs=[{tuned.parent}]",
            ],
            cwd=ROOT,
            env={**os.environ, "TMPDIR": temp_dir, "LLAMAHOME_API_KEY": KEY, **PATIENT},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        assert process.stdout is not None
        output: list[str] = []
        try:
            for line in process.stdout:
                output.append(line)
                if "ready:" in line:
                    break
            assert output, Path(log.name).read_text()
            url = f"http://127.0.0.1:{port}"
            with openai.OpenAI(
                base_url=f"{url}/v1", api_key=KEY, max_retries=0, timeout=120
            ) as client:
                yield Endpoint(process, output, Path(temp_dir), url, client, limited)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(60)
            process.stdout.close()


def test_the_ready_line_says_where(endpoint):
    assert f"ready: tiny at {endpoint.url}, on 1 CPU thread " in endpoint.output[-1]


def test_a_limited_key_is_counted_refused_logged_and_revoked(endpoint):
    client = endpoint.client.with_options(api_key=endpoint.limited)
    headers = {"x-request-id": "first"}
    raw = client.models.with_raw_response.list(extra_headers=headers)
    assert raw.headers["x-ratelimit-remaining-requests"] == "1"
    assert raw.headers.get_list("x-request-id") == ["first"]  # not Ray's and ours
    completions = client.chat.completions.with_raw_response
    raw = completions.create(model="tiny", messages=MESSAGES, max_tokens=400)
    used = raw.parse().usage.total_tokens
    assert int(raw.headers["x-ratelimit-remaining-tokens"]) < 600  # 400 were reserved
    with pytest.raises(openai.RateLimitError, match="limit of 2 requests a minute"):
        client.models.list()
    KeyFile(endpoint.temp_dir / "keys.json").revoke("limited")
    with pytest.raises(openai.AuthenticationError):
        client.models.list()
    lines = (endpoint.temp_dir / "audit.log").read_text().splitlines()
    records = [record for record in map(json.loads, lines) if record["name"] == "limited"]
    assert [record["status"] for record in records] == [200, 200, 429]
    assert records[0]["request_id"] == "first"
    assert records[1]["prompt_tokens"] + records[1]["completion_tokens"] == used


def test_one_id_leads_through_the_log_of_ingress_replica_and_engine(endpoint):
    headers = {"x-request-id": "found-again"}
    chat = endpoint.client.chat.completions
    answer = chat.create(model="tiny", messages=MESSAGES, max_tokens=3, extra_headers=headers)
    log = endpoint.temp_dir / "log"
    until(lambda: len(of_request(log, "found-again")) == 4, 60)
    lines = of_request(log, "found-again")
    named = {(line["deployment"], line["logger"]) for line in lines}
    assert {
        ("Api", "serve.access"),
        ("EngineReplica", "serve.replica"),
        ("EngineReplica", "llamahome.engine.request"),
    } == named
    (access,) = (line for line in lines if line["logger"] == "serve.access")
    assert access["completion_tokens"] == answer.usage.completion_tokens
    assert {line["key"] for line in lines} == {"serve.api_key"}
    engines = {line["replica"] for line in lines if line["deployment"] == "EngineReplica"}
    assert engines == {access["engine"]}
    text = log.read_text()
    assert "story" not in text
    assert KEY not in text


def of_request(log: Path, request_id: str) -> list[dict[str, Any]]:
    """Return the lines of a request so far; every line is JSON."""
    lines = [json.loads(line) for line in log.read_text().rpartition("\n")[0].splitlines()]
    return [line for line in lines if line.get("request_id") == request_id]


def test_what_listens_beyond_loopback_asks_for_rays_token(endpoint):
    owner = psutil.Process(endpoint.process.pid)
    open_ports = [
        connection.laddr.port
        for process in [owner, *owner.children(recursive=True)]
        for connection in process.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN
        and connection.laddr.ip.removeprefix("::ffff:") != "127.0.0.1"
    ]
    assert open_ports  # Serve's replicas, which call each other by gRPC
    for port in open_ports:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = serve_pb2_grpc.ASGIServiceStub(channel).HandleRequest
            with pytest.raises(grpc.RpcError) as refused:
                call(serve_pb2.ASGIRequest(), timeout=30)  # type: ignore[attr-defined]
        assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_a_chat_answers_the_same_streamed_or_not(endpoint):
    messages = [{"role": "user", "content": "Tell me a story that nobody has asked for yet."}]
    asked = {"model": "tiny", "messages": messages, "temperature": 0.0, "max_tokens": 60}
    whole = endpoint.client.chat.completions.create(**asked)
    chunks = list(
        endpoint.client.chat.completions.create(
            **asked, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert whole.choices[0].finish_reason == chunks[-2].choices[0].finish_reason == "length"
    assert whole.usage.llamahome == chunks[-1].usage.llamahome
    assert whole.usage.total_tokens == chunks[-1].usage.total_tokens
    cached = [answer.usage.prompt_tokens_details.cached_tokens for answer in (whole, chunks[-1])]
    assert cached[0] < cached[1]
    assert whole.usage.completion_tokens == 60
    assert whole.usage.llamahome["evicted_tokens"] > 0


def test_a_completion_of_text_and_of_token_ids(endpoint):
    for prompt in ("Once", [5, 6, 7]):
        answer = endpoint.client.completions.create(model="tiny", prompt=prompt, max_tokens=4)
        assert answer.usage.completion_tokens <= 4
        assert answer.object == "text_completion"


def test_choices_with_logprobs_and_a_grammar_travel_through_ray(endpoint):
    answer = endpoint.client.chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        n=2,
        logprobs=True,
        top_logprobs=2,
        extra_body={"guided_regex": "[a-z]{5}"},
    )
    for choice in answer.choices:
        assert "".join(token.token for token in choice.logprobs.content) == choice.message.content
        assert [len(token.top_logprobs) for token in choice.logprobs.content] == [2] * 5


def test_embeddings(endpoint):
    answer = endpoint.client.embeddings.create(model="tiny", input=["a cat", [5, 6]])
    assert [len(item.embedding) for item in answer.data] == [32, 32]


def test_models(endpoint):
    assert [model.id for model in endpoint.client.models.list()] == ["tiny"]
    assert endpoint.client.models.retrieve("tiny").owned_by == "llamahome"


def test_errors_become_the_clients_own(endpoint):
    create = endpoint.client.chat.completions.create
    with pytest.raises(openai.NotFoundError, match="gpt-4") as missing:
        create(model="gpt-4", messages=MESSAGES)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="not supported"):
        create(model="tiny", messages=MESSAGES, reasoning_effort="high")
    with pytest.raises(openai.BadRequestError, match=r"9999.* 2048") as long:
        create(model="tiny", messages=MESSAGES, max_tokens=9999)
    assert long.value.param == "max_tokens"
    with pytest.raises(openai.AuthenticationError):
        endpoint.client.models.list(extra_headers={"Authorization": "Bearer wrong"})


def test_two_clients_are_answered_at_once(endpoint):
    def ask(_: int) -> Any:
        return endpoint.client.completions.create(
            model="tiny", prompt="Same", max_tokens=200, temperature=0.0
        )

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(ask, range(2))
    assert first.choices[0].text == second.choices[0].text


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {
            "x-request-disconnect-disabled": "?1",
            "x-request-timeout-seconds": "0",
            "serve_multiplexed_model_id": "other",
        },
    ],
    ids=["plain", "headers that ask Serve not to look"],
)
def test_a_client_that_leaves_frees_its_slot(endpoint, headers):
    cancelled_at = endpoint.metric("llamahome_generated_tokens_total")
    stream = endpoint.client.completions.create(
        model="tiny", prompt="Once", stream=True, extra_headers=headers, **LONG
    )
    next(iter(stream))
    until(lambda: endpoint.metric("llamahome_slots_used") == 1, 300)
    stream.close()
    until(lambda: endpoint.metric("llamahome_slots_used") == 0, 300)
    assert endpoint.metric("llamahome_generated_tokens_total") - cancelled_at < 1900


async def test_more_than_the_queue_holds_is_refused(endpoint):
    async with openai.AsyncOpenAI(
        base_url=f"{endpoint.url}/v1", api_key=KEY, max_retries=0
    ) as client:
        asked = [
            asyncio.create_task(client.completions.create(model="tiny", prompt="Once", **LONG))
            for _ in range(8)  # 2 slots and 2 places in the queue
        ]
        done, _ = await asyncio.wait(asked, timeout=60, return_when=asyncio.FIRST_EXCEPTION)
        for task in asked:
            task.cancel()
        await asyncio.wait(asked)
    refused = [task.exception() for task in done if task.exception() is not None]
    assert isinstance(refused[0], openai.RateLimitError)
    assert refused[0].response.headers["retry-after"] == "1"
    until(lambda: endpoint.metric("llamahome_queued") == 0, 300)


def test_an_answer_outlives_its_replica(endpoint):
    asked = {"model": "tiny", "prompt": "Once", "max_tokens": 1900, "temperature": 1.0, "seed": 3}
    create = partial(endpoint.client.completions.create, **asked)
    whole = create(extra_body={"ignore_eos": True})
    stream = create(
        stream=True, stream_options={"include_usage": True}, extra_body={"ignore_eos": True}
    )
    chunks = [next(stream)]
    (engine,) = endpoint.replicas("EngineReplica")
    engine.kill()
    chunks += stream
    text = "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].text
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage.completion_tokens == 1900
    assert chunks[-1].usage.llamahome == whole.usage.llamahome


def test_an_ingress_that_is_killed_leaves_the_port_to_the_other(endpoint):
    killed, _ = endpoint.replicas("Api")
    counted = endpoint.metric("llamahome_generated_tokens_total")
    assert counted
    killed.kill()
    killed.wait(60)
    for _ in range(20):  # each on a connection of its own, so with luck none for both
        assert endpoint.metric("llamahome_generated_tokens_total") == counted
    until(lambda: len(endpoint.replicas("Api")) == 2, 300)


def promote(endpoint: Endpoint, source: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "serve", "promote", source, "--url", endpoint.url],
        cwd=ROOT,
        env={**os.environ, "LLAMAHOME_API_KEY": KEY},
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def test_a_promotion_loses_no_stream_and_outlives_a_replica(endpoint, tuned):
    create = partial(endpoint.client.completions.create, model="tiny", prompt="Once")
    short = partial(create, max_tokens=20, temperature=0.0)
    whole, before = create(**LONG), short()
    stream = create(stream=True, **LONG)
    chunks = [next(stream)]
    assert promote(endpoint, str(tuned)).startswith("tiny is now better (fp_")
    after = short()
    chunks += stream
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert before.choices[0].text != after.choices[0].text
    assert before.system_fingerprint != after.system_fingerprint
    (engine,) = endpoint.replicas("EngineReplica")
    engine.kill()
    assert short().choices[0].text == after.choices[0].text
    promote(endpoint, "tiny")
    assert short().choices[0].text == before.choices[0].text


def test_sigterm_ends_all_that_was_started(endpoint):
    started = psutil.Process(endpoint.process.pid).children(recursive=True)
    assert list(endpoint.temp_dir.iterdir())
    endpoint.process.send_signal(signal.SIGTERM)
    assert endpoint.process.wait(60) == 0
    assert [process for process in started if process.is_running()] == []
    assert [path for path in endpoint.temp_dir.iterdir() if path.is_dir()] == []
