"""Which request runs next. No tensors here."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from llamahome.engine.params import QueueFullError, SamplingParams


@dataclass(eq=False)
class Request:
    """One request on its way: `tokens` is the prompt and, after it, what was generated."""

    request_id: str
    tokens: list[int]
    prompt_length: int
    params: SamplingParams
    slot: int | None = None
    computed: int = 0

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt_length

    @property
    def prefilling(self) -> bool:
        """Whether prompt tokens are left beyond the one that gives the next token."""
        return len(self.tokens) - self.computed > 1


@dataclass(frozen=True)
class Batch:
    """Requests of one forward, each with how many of its tokens to compute."""

    requests: list[Request] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)


class Scheduler:
    """First come, first served, over a fixed number of slots."""

    def __init__(self, num_slots: int, max_queued: int) -> None:
        self.num_slots = num_slots
        self.max_queued = max_queued
        self.waiting: deque[Request] = deque()
        self.running: dict[str, Request] = {}
        self._free = list(range(num_slots))

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises:
            QueueFullError: when `max_queued` requests wait beyond the free slots.
        """
        if len(self.waiting) >= self.max_queued + len(self._free):
            raise QueueFullError(
                f"all {self.num_slots} slots are taken and {len(self.waiting)} requests wait "
                f"(engine.max_queued={self.max_queued}); try again later"
            )
        self.waiting.append(request)

    def find(self, request_id: str) -> Request | None:
        if request_id in self.running:
            return self.running[request_id]
        return next((r for r in self.waiting if r.request_id == request_id), None)

    def admit(self) -> list[Request]:
        """Give free slots, lowest first, to those who wait longest; returns the newly admitted."""
        admitted = []
        while self.waiting and self._free:
            request = self.waiting.popleft()
            request.slot = heapq.heappop(self._free)
            self.running[request.request_id] = request
            admitted.append(request)
        return admitted

    def batches(self, room: Callable[[int], int]) -> list[Batch]:
        """The forwards of one step: a chunk for every prompt, then a token for everyone else.

        So a long prompt holds the others up by one chunk at a time. `room(slot)` is how many
        tokens fit into a slot's current chunk.
        """
        prefill, decode = Batch(), Batch()
        for request in sorted(self.running.values(), key=_slot):
            batch = prefill if request.prefilling else decode
            batch.requests.append(request)
            left = len(request.tokens) - request.computed
            batch.tokens.append(min(left, room(_slot(request))))
        return [batch for batch in (prefill, decode) if batch.requests]

    def remove(self, request: Request) -> None:
        """Forget a request and free its slot, if it has one."""
        if request.slot is None:
            self.waiting.remove(request)
            return
        del self.running[request.request_id]
        heapq.heappush(self._free, request.slot)
        request.slot = None


def _slot(request: Request) -> int:
    assert request.slot is not None, f"request {request.request_id} runs without a slot"
    return request.slot
