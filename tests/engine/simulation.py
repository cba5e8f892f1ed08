"""A simulated engine around a scheduler, without a model; the cost of its steps is given."""

from __future__ import annotations

from dataclasses import dataclass

from llamahome.engine import SamplingParams
from llamahome.engine.pace import Pace
from llamahome.engine.request import Request
from llamahome.engine.scheduler import Batch, Scheduler

INTERVAL = 16


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Milliseconds of a step: as such, for each request that decodes, and for each prompt token."""

    step: float = 1.0
    row: float = 0.0
    token: float = 0.0


FREE = Cost()  # more prompt tokens cost nothing, as on a GPU with little to do
CPU = Cost(step=4.0, row=0.5, token=0.5)  # two cores: a chunk takes as long as two steps more


class Simulation:
    """Requests through a scheduler; each gets as many tokens as it asks for.

    Attributes:
        now: steps so far.
        ms: their cost.
        first_token, finished: milliseconds, by request.
    """

    def __init__(
        self,
        slots: int = 4,
        *,
        max_queued: int = 1_000_000,
        max_queued_tokens: int = 10**9,
        prefill_tokens: int = 32,
        ageing: int = 50,
        slowdown: float = 2.0,
        cost: Cost = FREE,
    ) -> None:
        self.scheduler = Scheduler(
            slots,
            max_queued=max_queued,
            max_queued_tokens=max_queued_tokens,
            prefill_tokens=prefill_tokens,
            chunk=INTERVAL,
            pace=Pace(slowdown),
            ageing=ageing,
        )
        self.cost = cost
        self.now = 0
        self.ms = 0.0
        self.lengths = [0] * slots
        self.admitted: list[str] = []
        self.first_token: dict[str, float] = {}
        self.finished: dict[str, float] = {}

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
            self._spend(batch)
            for request, count in zip(batch.requests, batch.tokens, strict=True):
                self._advance(request, count)
        return batch

    def _spend(self, batch: Batch) -> None:
        read = sum(batch.tokens) - batch.decoding
        ms = self.cost.step + self.cost.row * batch.decoding + self.cost.token * read
        self.scheduler.took(batch, ms / 1000)
        self.ms += ms

    def _advance(self, request: Request, count: int) -> None:
        slot = slot_of(request)
        assert 1 <= count <= self.room(slot)
        self.lengths[slot] += count
        request.computed += count
        if request.computed < len(request.tokens):
            return
        self.first_token.setdefault(request.request_id, self.ms)
        request.tokens.append(0)
        if request.generated == request.params.max_tokens:
            self.scheduler.remove(request)
            self.finished[request.request_id] = self.ms

    def drain(self) -> None:
        while self.scheduler.waiting or self.scheduler.running:
            self.step()


def slot_of(request: Request) -> int:
    assert request.slot is not None
    return request.slot


def counts(batch: Batch | None) -> dict[str, int]:
    assert batch is not None
    return {r.request_id: n for r, n in zip(batch.requests, batch.tokens, strict=True)}
