"""A simulated engine around a scheduler, without a model; its clock is the number of steps."""

from __future__ import annotations

from llamahome.engine import SamplingParams
from llamahome.engine.request import Request
from llamahome.engine.scheduler import Batch, Scheduler

INTERVAL = 16


class Simulation:
    """Requests through a scheduler; each gets as many tokens as it asks for."""

    def __init__(
        self,
        slots: int = 4,
        *,
        max_queued: int = 1_000_000,
        max_queued_tokens: int = 10**9,
        prefill_tokens: int = 32,
        ageing: int = 50,
    ) -> None:
        self.scheduler = Scheduler(
            slots,
            max_queued=max_queued,
            max_queued_tokens=max_queued_tokens,
            prefill_tokens=prefill_tokens,
            ageing=ageing,
        )
        self.now = 0
        self.lengths = [0] * slots
        self.admitted: list[str] = []
        self.first_token: dict[str, int] = {}
        self.finished: dict[str, int] = {}

    def room(self, slot: int) -> int:
        return INTERVAL - self.lengths[slot] % INTERVAL

    def add(self, name: str, prompt: int = 1, max_tokens: int = 1, priority: int = 0) -> Request:
        params = SamplingParams(max_tokens=max_tokens, priority=priority)
        request = Request(name, [0] * prompt, prompt, params)
        self.scheduler.add(request)
        return request

    def step(self) -> Batch | None:
        for request in self.scheduler.admit():
            self.lengths[slot_of(request)] = 0
            self.admitted.append(request.request_id)
        batch = self.scheduler.batch(self.room)
        self.now += 1
        if batch is not None:
            for request, count in zip(batch.requests, batch.tokens, strict=True):
                self._advance(request, count)
        return batch

    def _advance(self, request: Request, count: int) -> None:
        slot = slot_of(request)
        assert 1 <= count <= self.room(slot)
        self.lengths[slot] += count
        request.computed += count
        if request.computed < len(request.tokens):
            return
        self.first_token.setdefault(request.request_id, self.now)
        request.tokens.append(0)
        if request.generated == request.params.max_tokens:
            self.scheduler.remove(request)
            self.finished[request.request_id] = self.now

    def drain(self) -> None:
        while self.scheduler.waiting or self.scheduler.running:
            self.step()


def slot_of(request: Request) -> int:
    assert request.slot is not None
    return request.slot


def counts(batch: Batch | None) -> dict[str, int]:
    assert batch is not None
    return {r.request_id: n for r, n in zip(batch.requests, batch.tokens, strict=True)}
