from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayTaskError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RayServeException,
)

from llamahome.requests import SamplingParams
from serve.http.errors import ApiError
from serve.ray.backend import ServeBackend
from serve.wire import Delta, Failure, GenerateRequest

FIRST = Delta(text="a", token_count=1)
LAST = Delta(text="b", token_count=1, finish_reason="stop")
GONE = Failure(kind="unavailable", message="stopped before")
DIED = ActorDiedError()
UNAVAILABLE = DeploymentUnavailableError("EngineReplica")
FULL = BackPressureError(num_queued_requests=9, max_queued_requests=9)
BROKEN = RayTaskError("process_input", "traceback", ValueError("inside"))

REQUEST = GenerateRequest(request_id="a", params=SamplingParams(), prompt="x")


@dataclass
class FakeHandle:
    """Stands in for a Serve handle: each attempt plays the next script."""

    attempts: list[list[Any]] = field(default_factory=list)
    broadcasts: list[Any] = field(default_factory=list)
    cancelled: int = 0
    asked: int = 0

    @property
    def process_input(self) -> FakeHandle:
        return self

    def options(self, *, stream: bool) -> FakeHandle:
        assert stream
        return self

    def remote(self, _request: GenerateRequest) -> FakeReplies:
        return FakeReplies(self, self.attempts.pop(0))

    def broadcast(self, method: str) -> FakeHandle:
        assert method == "stats"
        self.asked += 1
        return self

    async def results_async(self, *, timeout_s: float, return_exceptions: bool) -> Any:
        answer = self.broadcasts.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@dataclass
class FakeReplies:
    handle: FakeHandle
    script: list[Any]
    unassigned: RayServeException | None = None

    def __aiter__(self) -> FakeReplies:
        return self

    async def __anext__(self) -> Any:
        if not self.script:
            raise StopAsyncIteration
        item = self.script.pop(0)
        if isinstance(item, RayServeException):
            self.unassigned = item
        if isinstance(item, Exception):
            raise item
        return item

    def cancel(self) -> None:
        """Like Serve's: raises once more why no replica was found."""
        self.handle.cancelled += 1
        if self.unassigned is not None:
            raise self.unassigned


@dataclass
class Run:
    """One request: what it gave, and how it ended."""

    handle: FakeHandle
    deltas: list[Delta] = field(default_factory=list)
    error: Any = None


async def run(*attempts: list[Any]) -> Run:
    result = Run(FakeHandle(attempts=[list(attempt) for attempt in attempts]))
    backend = ServeBackend(result.handle, retry_pauses_s=(0.0, 0.0))
    try:
        async for delta in backend.stream(REQUEST):
            result.deltas.append(delta)
    except ApiError as error:
        result.error = error
    return result


async def test_replies_are_passed_on_and_the_call_is_always_cancelled():
    result = await run([FIRST, LAST])
    assert (result.deltas, result.error) == ([FIRST, LAST], None)
    assert result.handle.cancelled == 1


@pytest.mark.parametrize("loss", [DIED, UNAVAILABLE, GONE], ids=["died", "no replica", "stopped"])
async def test_a_replica_lost_before_the_first_token_costs_nothing(loss):
    result = await run([loss], [loss], [FIRST, LAST])
    assert (result.deltas, result.error) == ([FIRST, LAST], None)
    assert result.handle.cancelled == 3


async def test_no_replica_at_all_is_503():
    error = (await run([DIED], [DIED], [DIED])).error
    assert (error.status, error.code) == (503, "no_replica")
    assert error.response().headers["retry-after"]


async def test_a_replica_lost_after_the_first_token_is_not_asked_again():
    result = await run([FIRST, DIED], [FIRST, LAST])
    assert (result.deltas, result.error.status) == ([FIRST], 500)
    assert "died in the middle" in result.error.message
    assert result.handle.cancelled == 1


@pytest.mark.parametrize(
    ("reply", "status", "param"),
    [
        (Failure(kind="invalid", message="too long", field="max_tokens"), 400, "max_tokens"),
        (Failure(kind="full", message="full"), 429, None),
        (Failure(kind="failed", message="broke"), 500, None),
        (FULL, 429, None),
        (BROKEN, 500, None),
    ],
    ids=["invalid", "engine full", "failed", "router full", "bug"],
)
async def test_other_failures_are_final(reply, status, param):
    error = (await run([reply], [FIRST, LAST])).error
    assert (error.status, error.param) == (status, param)
    assert "inside" not in error.message


async def test_leaving_early_cancels_the_call():
    handle = FakeHandle(attempts=[[FIRST, LAST]])
    answer = ServeBackend(handle).stream(REQUEST)
    await anext(answer)
    await answer.aclose()
    assert handle.cancelled == 1


async def test_replicas_that_answer_are_listed_and_remembered_for_a_second(make_stats):
    handle = FakeHandle(broadcasts=[[make_stats("r1"), DIED]])
    backend = ServeBackend(handle)
    assert [r.replica for r in await backend.replicas()] == ["r1"]
    assert [r.replica for r in await backend.replicas()] == ["r1"]
    assert handle.asked == 1


@pytest.mark.parametrize("trouble", [TimeoutError(), UNAVAILABLE], ids=["hangs", "none"])
async def test_no_answering_replica_is_an_empty_list(trouble):
    assert await ServeBackend(FakeHandle(broadcasts=[trouble])).replicas() == ()
