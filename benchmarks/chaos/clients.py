"""Clients that stream seeded answers, and how each answer ended."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from itertools import pairwise

import httpx

PAUSE_S = 1.0
PATIENCE_S = 120.0
PROMPTS = ("Name three rivers.", "Tell me a story.", "What is rain?", "Count to ten.")


@dataclass(kw_only=True)
class Outcome:
    """One request: when it was sent, when it stood still, and how it ended."""

    prompt: str
    sent: float
    ended: float = 0.0
    result: str = "refused"  # completed, differs, error or cut, once its status was 200
    text: str = ""
    bytes_at: list[float] = field(default_factory=list)

    def paused_until(self) -> float:
        """Return the end of the last pause before a chunk; 0 without one."""
        times = [self.sent, *self.bytes_at]
        return max((b for a, b in pairwise(times) if b - a > PAUSE_S), default=0)


class Client:
    """A client that streams seeded answers, until it is stopped."""

    def __init__(
        self, url: str, model: str, expected: dict[str, str], max_tokens: int = 96
    ) -> None:
        self._url = url
        self._model = model
        self._expected = expected
        self._max_tokens = max_tokens
        self.outcomes: list[Outcome] = []

    async def run(self, first: int, stop: asyncio.Event) -> None:
        turn = first
        while not stop.is_set():
            await self.ask(PROMPTS[turn % len(PROMPTS)])
            turn += 1
            if self.outcomes[-1].result == "refused":
                await asyncio.sleep(0.1)

    async def ask(self, prompt: str) -> Outcome:
        """Ask once, on a connection of its own, as a new client would."""
        outcome = Outcome(prompt=prompt, sent=time.monotonic())
        self.outcomes.append(outcome)
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": self._max_tokens,
            "temperature": 1.0,
            "seed": 7,
            "ignore_eos": True,
            "stream": True,
        }
        try:
            async with (
                httpx.AsyncClient(timeout=PATIENCE_S) as http,
                http.stream("POST", f"{self._url}/v1/chat/completions", json=body) as response,
            ):
                if response.status_code == 200:
                    outcome.result = "cut"
                    await self._read(response, outcome)
        except httpx.HTTPError:
            pass
        outcome.ended = time.monotonic()
        return outcome

    async def _read(self, response: httpx.Response, outcome: Outcome) -> None:
        async for line in response.aiter_lines():
            if not line:
                continue
            outcome.bytes_at.append(time.monotonic())
            if line == "data: [DONE]":
                same = self._expected.get(outcome.prompt, outcome.text) == outcome.text
                outcome.result = "completed" if same else "differs"
                return
            chunk = json.loads(line.removeprefix("data: "))
            if "error" in chunk:
                outcome.result = "error"
                outcome.text = chunk["error"]["message"]
                return
            outcome.text += "".join(c["delta"].get("content") or "" for c in chunk["choices"])
