"""Replicas that die in the middle of an answer: the client gets what it would have got anyway."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from ray.exceptions import ActorDiedError
from transformers import LlamaConfig, LlamaForCausalLM

from llamahome.config import EngineConfig, ModelConfig, PolicyConfig
from serve.http.api import build_app
from serve.http.settings import HttpSettings
from serve.ray.backend import ServeBackend
from serve.ray.recovery import Deadlines
from serve.replica import Replica
from serve.wire import Delta, GenerateRequest, Origin, Reply

PATIENT = Deadlines(first_token_s=600.0, token_s=600.0)
CHAT: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "Tell me a story."}],
    "max_tokens": 12,
    "temperature": 0.0,
    "ignore_eos": True,
}
SAMPLED = {"temperature": 1.2, "seed": 4, "top_p": 0.9}
COMPLETION: dict[str, Any] = {"model": "tiny", "prompt": "Once", "max_tokens": 12, **SAMPLED}
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", CHAT),
    "chat_n": ("/v1/chat/completions", {**CHAT, **SAMPLED, "n": 2, "logprobs": True}),
    "regex": ("/v1/chat/completions", {**CHAT, **SAMPLED, "guided_regex": "[a-z]{10}"}),
    "completion": ("/v1/completions", {**COMPLETION, "frequency_penalty": 1.0}),
    "echo": ("/v1/completions", {**COMPLETION, "echo": True, "logprobs": 2}),
    "prompts": ("/v1/completions", {**COMPLETION, "prompt": ["Once", "Twice"], "min_tokens": 8}),
}


@dataclass
class MortalReplicas:
    """Two real replicas behind the face of direct calls.

    The one that a request comes to first is lost to it after `life` deltas; the other one lives.
    """

    replicas: list[Replica]
    life: int = 0
    tried: dict[str, int] = field(default_factory=dict)
    resumed: list[int] = field(default_factory=list)  # tokens that the second replicas began with

    def remote(self, request: GenerateRequest, origin: Origin | None) -> Replies:
        before = self.tried.get(request.request_id, 0)
        self.tried[request.request_id] = before + 1
        if request.progress is not None:
            self.resumed.append(len(request.progress.tokens))
        return Replies(
            self.replicas[before % 2].process_input(request, origin), self.life, before > 0
        )


@dataclass
class Replies:
    """The replies of one replica, until it dies."""

    own: AsyncIterator[Reply]
    life: int
    immortal: bool

    async def next(self, limit_s: float) -> Reply:
        if not self.immortal and self.life == 0:
            await self.own.aclose()  # type: ignore[attr-defined]  # an async generator
            raise ActorDiedError
        reply = await anext(self.own)
        self.life -= isinstance(reply, Delta)
        return reply

    def cancel(self) -> None:
        pass


@pytest.fixture(scope="module")
def replicas(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Replica]]:
    folder = shutil.copytree(tiny_model, tmp_path_factory.mktemp("native") / "tiny")
    config = LlamaConfig.from_pretrained(folder, hidden_size=64, head_dim=16)
    LlamaForCausalLM(config).save_pretrained(folder)  # a shape that the C++ kernels compute
    # Without snapshots, so that `cached_tokens` do not depend on what ran before.
    engine = EngineConfig(runner="native", slots=4, max_length=256, num_threads=1, snapshot_bytes=0)
    policy = PolicyConfig(budget=32, recent=16, interval=8)
    made = [Replica(ModelConfig(name=str(folder)), policy, engine) for _ in range(2)]
    yield made
    for replica in made:
        replica.close()


async def ask(handle: MortalReplicas, path: str, body: dict[str, Any]) -> Any:
    settings = HttpSettings(
        model_id="tiny", created=1, request_timeout_s=300, max_body_bytes=100_000
    )
    app = build_app(ServeBackend(handle, handle, PATIENT, pauses_s=(0.0,)), settings)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        response = await http.post(path, json=body)
    assert response.status_code == 200, response.text
    return told(response) if body.get("stream") else whole(response.json())


def whole(answer: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in answer.items() if key not in ("id", "created")}


def told(response: httpx.Response) -> dict[Any, Any]:
    """Return all that the events of a stream say of each choice, whatever was joined."""
    *lines, done = [line for line in response.text.split("\n") if line]
    assert done == "data: [DONE]"
    said: dict[Any, Any] = {}
    for line in lines:
        chunk = json.loads(line.removeprefix("data: "))
        said["usage"] = chunk.get("usage") or said.get("usage")
        for choice in chunk["choices"]:
            own = said.setdefault(choice["index"], {"text": "", "tokens": [], "reason": None})
            own["text"] += choice.get("text") or choice.get("delta", {}).get("content") or ""
            own["tokens"] += tokens_of(choice.get("logprobs") or {})
            own["reason"] = choice["finish_reason"] or own["reason"]
    return said


def tokens_of(logprobs: dict[str, Any]) -> list[Any]:
    if "content" in logprobs:
        return list(logprobs["content"])
    return list(zip(*[logprobs[key] for key in sorted(logprobs)], strict=True))


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("name", REQUESTS)
async def test_the_answer_is_that_of_one_replica(replicas, name, stream):
    path, body = REQUESTS[name]
    if stream:
        body = {**body, "stream": True, "stream_options": {"include_usage": True}}
    expected = await ask(MortalReplicas(replicas, life=10_000), path, body)
    resumed = []
    for life in range(12):
        handle = MortalReplicas(replicas, life=life)
        assert await ask(handle, path, body) == expected, life
        resumed += handle.resumed
    async with asyncio.timeout(120):  # the engines outlive this test's event loop
        while sum([(await replica.stats()).engine.slots_used for replica in replicas]):
            await asyncio.sleep(0.005)
    assert 0 in resumed
    assert max(resumed) > 1, "some died in the middle of an answer"
