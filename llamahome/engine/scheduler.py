"""A scheduler: which requests a step runs, and how many tokens of each. No tensors here."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count

from llamahome.engine.pace import Pace
from llamahome.engine.request import Request
from llamahome.requests import QueueFullError, RequestError

# Prompt tokens of later requests that are read before each token of an earlier one, at most.
OVERTAKEN = 32
# Due step, and the number of the arrival, so that ties go first come first served.
_Turn = tuple[int, int]


@dataclass(frozen=True)
class Batch:
    """Requests of one step, in the order of their slots, and how many tokens of each to compute.

    Attributes:
        decoding: how many of the requests decode; the others read their prompts.
    """

    requests: list[Request]
    tokens: list[int]
    decoding: int


class Scheduler:
    """Continuous batching over a fixed number of slots.

    A request gets a slot as soon as one is free and keeps it to its end. Its length does not
    matter, since slots are of constant size. Each step computes one token of every request that
    decodes, and chunks of prompts, as many as `Pace` allows.

    The prompt with the fewest tokens left is read first, so short prompts do not wait for long
    ones. A prompt ages with each prompt token that is read: at most `OVERTAKEN` tokens of later
    requests go before each of its own. (Bender et al. 1998, "Flow and stretch metrics for
    scheduling continuous job streams": deadlines in proportion to length.) A chunk is read whole,
    so the pieces of a prompt, and the rounding of its answer, do not depend on other requests.

    Waiting requests go by priority and age: one of priority `p` that arrives at step `t` is due at
    step `t + p * ageing`, and the first due goes first. So later requests overtake it only for a
    limited time. The queue never needs sorting again, since all that wait age at the same rate.

    Args:
        num_slots: requests that run at once.
        max_queued: requests that may wait beyond the free slots.
        max_queued_tokens: prompt tokens that may wait; a single longer prompt may, too.
        prefill_tokens: most prompt tokens of one step.
        chunk: tokens in a slot's chunk; a step reads at most one of each prompt.
        pace: says how many of them a step may read.
        ageing: steps of waiting that make up for one level of priority.
    """

    def __init__(
        self,
        num_slots: int,
        *,
        max_queued: int,
        max_queued_tokens: int,
        prefill_tokens: int,
        chunk: int,
        pace: Pace,
        ageing: int = 256,
    ) -> None:
        self.num_slots = num_slots
        self.max_queued = max_queued
        self.max_queued_tokens = max_queued_tokens
        self.prefill_tokens = prefill_tokens
        self.chunk = min(chunk, prefill_tokens)
        self.read_tokens = 0
        self.ageing = ageing
        self._pace = pace
        self.waiting: dict[str, Request] = {}
        self.waiting_tokens = 0
        self.running: dict[str, Request] = {}
        self._free = list(range(num_slots))
        self._queue: list[tuple[_Turn, Request]] = []  # a heap; it may hold some that left
        self._arrivals = count()
        self._steps = 0

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
            request.read_before = self.read_tokens
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
        prompts = sorted((r for r in running if r.prefilling), key=self._turn)
        pieces = {r: min(r.wanted, room(_slot(r)), self.chunk) for r in prompts}
        decoding = len(tokens)
        left = self._share(decoding, pieces) if pieces else 0
        for request, piece in pieces.items():
            if piece <= left:
                tokens[request] = piece
                left -= piece
                self.read_tokens += piece
        requests = sorted(tokens, key=_slot)
        return Batch(requests, [tokens[r] for r in requests], decoding) if requests else None

    def _turn(self, request: Request) -> int:
        """Return the sort key of a prompt, the first to be read being the least."""
        return request.read_before + OVERTAKEN * request.left

    def _share(self, decoding: int, pieces: Mapping[Request, int]) -> int:
        """Return how many prompt tokens the step may hold."""
        whole = sum(piece == self.chunk for piece in pieces.values())
        ready = min(whole, self.prefill_tokens // self.chunk)
        return self.chunk * self._pace.chunks(decoding, ready)

    def took(self, batch: Batch, seconds: float) -> None:
        """Take in the time of a step."""
        reading = len(batch.requests) - batch.decoding
        whole = all(count == self.chunk for count in batch.tokens)
        self._pace.took(
            seconds,
            decoding=batch.decoding,
            reading=reading > 0,
            chunks=reading if whole else 0,
        )

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
