"""Small stand-ins for what lies below the part under test, and a tiny model for what does not."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Collection,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from llamahome.engine import TextDelta
from llamahome.lens import CacheShape
from llamahome.requests import (
    EngineStats,
    Grammar,
    Progress,
    QueueFullError,
    RequestError,
    SamplingParams,
    Usage,
)
from serve.http.api import build_app
from serve.http.settings import HttpSettings
from serve.wire import Delta, GenerateRequest, ModelStats, ReplicaStats

CRASH, GIVE_UP = 13, 14  # prompt tokens that make FakeEngine do so
CHAT_TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


@dataclass
class FakeEngine:
    """Counts: a request's n-th token is the text "n ". Same face and limits as TextEngine."""

    slots: int = 2
    max_queued: int = 1
    max_length: int = 64
    step_s: float = 0.0
    hangs: threading.Event | None = None  # a step waits for it
    broken: bool = False  # gives up whatever it is asked for
    finished: int = 0
    running: dict[str, list[int]] = field(default_factory=dict)
    waiting: deque[str] = field(default_factory=deque)
    requests: dict[str, tuple[list[int], SamplingParams]] = field(default_factory=dict)
    begun: dict[str, list[int]] = field(default_factory=dict)
    cancelled: list[str] = field(default_factory=list)
    prepared: bool = False
    embedding: dict[str, list[int]] = field(default_factory=dict)
    endings: list[tuple[bool, bool]] = field(default_factory=list)
    defaults: dict[str, Any] = field(default_factory=dict)
    closed: bool = False
    cache_shape: CacheShape | None = None

    @property
    def has_work(self) -> bool:
        return bool(self.running or self.waiting)

    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(i) for i in ids)

    def prepare(self) -> None:
        self.prepared = True

    def compile(self, grammar: Grammar) -> str:
        if grammar.text == "(":
            raise RequestError("grammar", "(", "no valid regex")
        return f"compiled {grammar.text}"

    def encode_chat(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[dict[str, Any]] = (),
        options: Mapping[str, Any] | None = None,
    ) -> list[int]:
        self.endings.append((add_generation_prompt, continue_final_message))
        if messages[-1]["role"] == "system":
            raise RequestError("messages", "system", "the last message must be the user's")
        return self.encode("".join(message["content"] for message in messages))

    def with_defaults(
        self, params: SamplingParams, left_out: Collection[str], prompt_length: int
    ) -> SamplingParams:
        return replace(params, **{k: v for k, v in self.defaults.items() if k in left_out})

    def system_length(
        self,
        messages: Sequence[dict[str, Any]],
        ids: Sequence[int],
        *,
        tools: Sequence[dict[str, Any]] = (),
        options: Mapping[str, Any] | None = None,
    ) -> int:
        return len(messages[0]["content"]) if messages[0]["role"] == "system" else 0

    def submit(
        self,
        request_id: str,
        prompt: list[int],
        params: SamplingParams,
        grammar: str | None = None,
        progress: Progress | None = None,
    ) -> None:
        assert (grammar is None) == (params.grammar is None)
        if params.max_tokens is None:
            params = replace(params, max_tokens=max(1, self.max_length - len(prompt)))
        assert params.max_tokens is not None
        if len(prompt) + params.max_tokens > self.max_length:
            raise RequestError("max_tokens", params.max_tokens, f"context of {self.max_length}")
        if len(self.waiting) >= self.max_queued + self.slots - len(self.running):
            raise QueueFullError(f"{len(self.waiting)} requests wait")
        self.requests[request_id] = (prompt, params)
        self.begun[request_id] = list(progress.tokens) if progress else []
        self.waiting.append(request_id)

    def submit_embedding(
        self, request_id: str, prompt: list[int], *, adapter: str | None = None
    ) -> None:
        if not prompt:
            raise RequestError("prompt", "", "it must hold at least one token")
        self.embedding[request_id] = prompt
        self.submit(request_id, prompt, SamplingParams(max_tokens=1, adapter=adapter))

    def close(self) -> None:
        self.closed = True

    def step(self) -> list[TextDelta]:
        time.sleep(self.step_s)
        if self.hangs is not None:
            assert self.hangs.wait(120)
        while self.waiting and len(self.running) < self.slots:
            request_id = self.waiting.popleft()
            self.running[request_id] = self.begun[request_id]
        return [self._next(request_id) for request_id in list(self.running)]

    def _next(self, request_id: str) -> TextDelta:
        prompt, params = self.requests[request_id]
        if CRASH in prompt:
            raise RuntimeError("out of memory")
        tokens = self.running[request_id]
        tokens.append(len(tokens))
        reason = "length" if len(tokens) == params.max_tokens else None
        error = None
        if GIVE_UP in prompt or self.broken:
            reason, error = "error", "logits are not finite"
        if reason:
            del self.running[request_id]
            self.finished += 1
        embedding = self.embedding.get(request_id)
        return TextDelta(
            request_id=request_id,
            text="" if embedding else f"{tokens[-1]} ",
            token_count=0 if embedding else 1,
            ids=() if embedding else (tokens[-1],),
            embedding=embedding,
            finish_reason=reason,
            error=error,
            usage=usage(len(prompt), len(tokens)) if reason else None,
        )

    def cancel(self, request_id: str) -> None:
        if self.running.pop(request_id, None) is not None or request_id in self.waiting:
            self.cancelled.append(request_id)
        if request_id in self.waiting:
            self.waiting.remove(request_id)

    def stats(self) -> EngineStats:
        return EngineStats(
            slots=self.slots,
            kv_bytes=1024,
            slots_used=len(self.running),
            queued=len(self.waiting),
            requests_finished=self.finished,
        )


def usage(prompt: int, completion: int) -> Usage:
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        kept_tokens=3,
        evicted_tokens=2,
        peak_tokens=4,
        cached_tokens=1,
        kv_bytes=100,
        kv_bytes_dense=400,
    )


def replica_stats(
    name: str = "r1", *, running: bool = True, max_length: int | None = None
) -> ReplicaStats:
    engine = EngineStats(
        slots=2,
        slots_used=1,
        kv_bytes=1024,
        drafted_tokens=8,
        accepted_tokens=5,
        prefix_hits=3,
        prefix_misses=1,
        prefix_hit_tokens=96,
        prefix_bytes=512,
    )
    model = ModelStats(name="tiny", engine=engine, max_length=max_length)
    return ReplicaStats(
        replica=name, running=running, max_length=max_length, engine=engine, models=(model,)
    )


ANSWER = (
    Delta(text="Hel", token_count=1),
    Delta(text="", token_count=1),
    Delta(text="lo", token_count=1, finish_reason="stop", usage=usage(5, 3)),
)


@dataclass
class FakeBackend:
    """Plays a script: deltas are given, errors raised, numbers slept."""

    script: Sequence[Delta | BaseException | float] = ANSWER
    stats: Sequence[ReplicaStats] = (replica_stats(),)
    requests: list[GenerateRequest] = field(default_factory=list)
    closed: int = 0

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[Delta, None]:
        self.requests.append(request)
        try:
            for item in self.script:
                if isinstance(item, BaseException):
                    raise item
                if isinstance(item, float):
                    await asyncio.sleep(item)
                else:
                    yield item
        finally:
            self.closed += 1

    async def replicas(self) -> Sequence[ReplicaStats]:
        return self.stats


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def make_engine() -> type[FakeEngine]:
    return FakeEngine


@pytest.fixture
def make_stats() -> Callable[..., ReplicaStats]:
    return replica_stats


@pytest.fixture
def make_usage() -> Callable[..., Usage]:
    return usage


@pytest.fixture
def connect(backend: FakeBackend) -> Callable[..., Any]:
    """`async with connect(key=..., ...) as client`: an HTTP client of the app over `backend`."""

    @asynccontextmanager
    async def client(**settings: Any) -> AsyncIterator[httpx.AsyncClient]:
        defaults: dict[str, Any] = {
            "model_id": "tiny",
            "created": 1,
            "request_timeout_s": 60.0,
            "max_body_bytes": 4096,
        }
        app = build_app(backend, HttpSettings(**{**defaults, **settings}))
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            yield http

    return client


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Llama, a byte-level tokenizer and a chat template."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    special = ["<pad>", "<s>", "</s>"]
    names = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocab = {name: index for index, name in enumerate(names)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocab),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
