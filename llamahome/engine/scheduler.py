"""A scheduler: which requests a step runs, and how many tokens of each. No tensors here."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from llamahome.engine.request import Request
from llamahome.requests import QueueFullError, RequestError

# Due step, and the number of the arrival, so that ties go first come first served.
_Turn = tuple[int, int]


@dataclass(frozen=True)
class Batch:
    """Requests of one step, in the order of their slots, and how many tokens of each to compute."""

    requests: list[Request]
    tokens: list[int]


class Scheduler:
    """Continuous batching over a fixed number of slots.

    A request gets a slot as soon as one is free and keeps it to its end. Its length does not
    matter, since slots are of constant size. Each step computes one token of every request that
    decodes, and up to `prefill_tokens` prompt tokens: a chunk of each prompt, beginning with the
    one whose last chunk is the oldest. So a long prompt delays decoding by no more than
    `prefill_tokens` a step, and short prompts by no more than their turn.

    Waiting requests go by priority and age: one of priority `p` that arrives at step `t` is due at
    step `t + p * ageing`, and the first due goes first. So later requests overtake it only for a
    limited time. The queue never needs sorting again, since all that wait age at the same rate.

    Args:
        num_slots: requests that run at once.
        max_queued: requests that may wait beyond the free slots.
        max_queued_tokens: prompt tokens that may wait; a single longer prompt may, too.
        prefill_tokens: most prompt tokens of one step.
        ageing: steps of waiting that make up for one level of priority.
    """

    def __init__(
        self,
        num_slots: int,
        *,
        max_queued: int,
        max_queued_tokens: int,
        prefill_tokens: int,
        ageing: int = 256,
    ) -> None:
        self.num_slots = num_slots
        self.max_queued = max_queued
        self.max_queued_tokens = max_queued_tokens
        self.prefill_tokens = prefill_tokens
        self.ageing = ageing
        self.waiting: dict[str, Request] = {}
        self.waiting_tokens = 0
        self.running: dict[str, Request] = {}
        self._free = list(range(num_slots))
        self._queue: list[tuple[_Turn, Request]] = []  # a heap; it may hold some that left
        self._arrivals = count()
        self._steps = 0
        self._chunks = count(1)

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises:
            RequestError: for an id that is in use.
            QueueFullError: when `max_queued` requests or `max_queued_tokens` tokens wait already
                and no slot is free.
        """
        if self.find(request.request_id) is not None:
            raise RequestError("request_id", request.request_id, "a request of this id is running")
        if len(self.waiting) >= len(self._free):
            self._check_limits(request)
        self.waiting[request.request_id] = request
        self.waiting_tokens += request.prompt_length
        due = self._steps + request.params.priority * self.ageing
        heapq.heappush(self._queue, ((due, next(self._arrivals)), request))

    def _check_limits(self, request: Request) -> None:
        if len(self.waiting) >= self.max_queued + len(self._free):
            raise QueueFullError(
                f"all {self.num_slots} slots are taken and {len(self.waiting)} requests wait "
                f"(engine.max_queued={self.max_queued}); try again later"
            )
        tokens = self.waiting_tokens + request.prompt_length
        if self.waiting and tokens > self.max_queued_tokens:
            raise QueueFullError(
                f"all {self.num_slots} slots are taken and prompts of {self.waiting_tokens} tokens "
                f"wait; {request.prompt_length} more exceed "
                f"engine.max_queued_tokens={self.max_queued_tokens}; try again later"
            )

    @property
    def unread_tokens(self) -> int:
        """Prompt tokens that are still to be computed, of waiting and of running requests."""
        reading = (r for r in self.running.values() if r.prefilling)
        return self.waiting_tokens + sum(len(r.tokens) - r.computed for r in reading)

    def find(self, request_id: str) -> Request | None:
        return self.running.get(request_id) or self.waiting.get(request_id)

    def admit(self) -> list[Request]:
        """Give free slots, lowest first, to the requests that are due first; return those."""
        admitted = []
        while self.waiting and self._free:
            _, request = heapq.heappop(self._queue)
            if self.waiting.get(request.request_id) is not request:
                continue  # it was cancelled
            self._leave_queue(request)
            request.slot = heapq.heappop(self._free)
            self.running[request.request_id] = request
            request.last_chunk = next(self._chunks)
            admitted.append(request)
        return admitted

    def batch(self, room: Callable[[int], int]) -> Batch | None:
        """Return the batch of this step, or None when no request runs.

        Args:
            room: gives the tokens that fit into a slot's current chunk, at least 1.
        """
        self._steps += 1
        running = self.running.values()
        tokens = {request: 1 for request in running if not request.prefilling}
        left = self.prefill_tokens
        prefilling = [request for request in running if request.prefilling]
        for request in sorted(prefilling, key=lambda request: request.last_chunk):
            if left == 0:
                break
            tokens[request] = min(request.wanted, room(_slot(request)), left)
            left -= tokens[request]
            request.last_chunk = next(self._chunks)
        requests = sorted(tokens, key=_slot)
        return Batch(requests, [tokens[r] for r in requests]) if requests else None

    def remove(self, request: Request) -> None:
        """Forget a request, waiting or running, and free its slot if it has one."""
        if request.slot is None:
            self._leave_queue(request)
            return
        del self.running[request.request_id]
        heapq.heappush(self._free, request.slot)
        request.slot = None

    def _leave_queue(self, request: Request) -> None:
        del self.waiting[request.request_id]
        self.waiting_tokens -= request.prompt_length
        # A cancelled request stays in the heap until its turn, unless too many do.
        if len(self._queue) > 2 * len(self.waiting) + self.num_slots:
            waiting = self.waiting
            self._queue = [e for e in self._queue if waiting.get(e[1].request_id) is e[1]]
            heapq.heapify(self._queue)


def _slot(request: Request) -> int:
    assert request.slot is not None, f"request {request.request_id} runs without a slot"
    return request.slot
