"""A real endpoint in a process of its own, and clients that time its answers."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

STOP_PATIENCE_S = 120
# Ray gives workers a niceness of 15, with which they starve next to anything else.
ENVIRONMENT = {"RAY_worker_niceness": "0", "HF_HUB_OFFLINE": "1"}


@contextmanager
def endpoint(*overrides: str) -> Iterator[str]:
    """Run `python -m serve` with these overrides; yield its URL once it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "serve", f"serve.port={port}", *overrides],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **ENVIRONMENT},
    )
    assert process.stdout is not None
    try:
        if not any("ready:" in line for line in process.stdout):
            raise RuntimeError("the endpoint ended before it was ready")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(STOP_PATIENCE_S)
        process.stdout.close()


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One streamed answer.

    Attributes:
        begin: when it was asked for, on `time.perf_counter`'s clock.
        ttft_s, seconds: time to the first chunk with text, and to the end.
        status: HTTP's; 0 for a stream that was cut or held an error.
        prompt_tokens, cached_tokens: tokens of the prompt, and those from a prefix snapshot.
    """

    begin: float
    ttft_s: float
    seconds: float
    status: int
    text: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0


async def chat(client: httpx.AsyncClient, messages: list[dict[str, str]], **fields: Any) -> Answer:
    """Ask for one answer, which ends at `max_tokens` and no earlier."""
    body = {
        "model": (await _model(client)),
        "messages": messages,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        **fields,
    }
    begin = time.perf_counter()
    first, text, usage, done = 0.0, "", None, False
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            waited = time.perf_counter() - begin
            return Answer(begin=begin, ttft_s=waited, seconds=waited, status=response.status_code)
        try:
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    done = True
                elif line.startswith("data: "):
                    event = json.loads(line.removeprefix("data: "))
                    choices = event.get("choices") or []
                    added = "".join(choice["delta"].get("content") or "" for choice in choices)
                    first = first or (time.perf_counter() if added else 0.0)
                    text += added
                    usage = event.get("usage") or usage
        except httpx.HTTPError:
            done = False
    now = time.perf_counter()
    counts = usage or {}
    return Answer(
        begin=begin,
        ttft_s=(first or now) - begin,
        seconds=now - begin,
        status=200 if done else 0,
        text=text,
        prompt_tokens=counts.get("prompt_tokens", 0),
        cached_tokens=(counts.get("prompt_tokens_details") or {}).get("cached_tokens", 0),
    )


async def _model(client: httpx.AsyncClient) -> str:
    models = (await client.get("/v1/models")).json()["data"]
    return str(models[0]["id"])


async def metrics(client: httpx.AsyncClient) -> dict[str, float]:
    """Return the sums of the endpoint's metrics over their labels, and `replicas`."""
    sums: dict[str, float] = {}
    replicas = 0
    for line in (await client.get("/metrics")).text.splitlines():
        if not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            sums[name.partition("{")[0]] = sums.get(name.partition("{")[0], 0.0) + float(value)
            replicas += name.startswith("llamahome_slots{")
    return {**sums, "replicas": replicas}
