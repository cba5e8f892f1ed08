from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayTaskError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RayServeException,
)

from llamahome.requests import Progress, SamplingParams
from serve.http.errors import ApiError
from serve.ray.backend import ServeBackend
from serve.ray.recovery import Deadlines
from serve.wire import Accepted, Delta, EmbedRequest, Failure, GenerateRequest, Origin

FIRST = Delta(text="a", token_count=1, ids=(7,))
SECOND = Delta(text="", token_count=2, ids=(8, 9), held=((-0.5, ((9, -0.5),)),))
LAST = Delta(text="b", token_count=1, ids=(4,), finish_reason="stop")
HELD = Accepted()
GONE = Failure(kind="unavailable", message="stopped before")
CRASHED = Failure(kind="crashed", message="RuntimeError in a step")
ENGINE_FULL = Failure(kind="full", message="full")
HANGS = 600.0
PATIENT = Deadlines(first_token_s=600.0, token_s=600.0)
DIED = ActorDiedError()
UNAVAILABLE = DeploymentUnavailableError("EngineReplica")
FULL = BackPressureError(num_queued_requests=9, max_queued_requests=9)
BROKEN = RayTaskError("process_input", "traceback", ValueError("inside"))

REQUEST = GenerateRequest(request_id="a", params=SamplingParams(), prompt="x")


@dataclass
class FakeHandle:
    """Stands in for a Serve handle and its calls: each attempt plays the next script."""

    attempts: list[list[Any]] = field(default_factory=list)
    requests: list[Any] = field(default_factory=list)
    origins: list[Origin | None] = field(default_factory=list)
    broadcasts: list[Any] = field(default_factory=list)
    cancelled: int = 0
    asked: int = 0

    def remote(self, request: GenerateRequest, origin: Origin | None) -> FakeReplies:
        self.origins.append(origin)
        self.requests.append(request)
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

    async def next(self, limit_s: float) -> Any:
        async with asyncio.timeout(limit_s):
            return await self._next()

    async def _next(self) -> Any:
        if not self.script:
            raise StopAsyncIteration
        item = self.script.pop(0)
        if isinstance(item, RayServeException):
            self.unassigned = item
        if isinstance(item, float):
            await asyncio.sleep(item)
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


async def run(*attempts: list[Any], deadlines: Deadlines = PATIENT, request: Any = REQUEST) -> Run:
    result = Run(FakeHandle(attempts=[list(attempt) for attempt in attempts]))
    backend = ServeBackend(result.handle, result.handle, deadlines, pauses_s=(0.0, 0.0))
    try:
        async for delta in backend.stream(request):
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


@pytest.mark.parametrize("loss", [DIED, CRASHED, None], ids=["died", "crashed", "ended early"])
async def test_a_replica_lost_after_the_first_token_is_followed_by_another(loss):
    lost = [] if loss is None else [loss]
    result = await run([FIRST, SECOND, *lost], [HELD, LAST])
    assert (result.deltas, result.error) == ([FIRST, SECOND, LAST], None)
    first, second = result.handle.requests
    assert first.progress is None
    assert second.progress == Progress(tokens=(7, 8, 9), held=SECOND.held)
    assert replace(second, progress=None) == first
    assert result.handle.cancelled == 2


async def test_a_lost_answer_waits_for_as_long_as_it_takes():
    full, none = [HELD, ENGINE_FULL], [UNAVAILABLE]
    result = await run([FIRST, DIED], *[full, none, [FULL]] * 5, [HELD, LAST])
    assert (result.deltas, result.error) == ([FIRST, LAST], None)


async def test_nothing_follows_the_last_delta():
    result = await run([FIRST, LAST, DIED])
    assert (result.deltas, result.error) == ([FIRST, LAST], None)


async def test_a_request_that_crashes_two_engines_is_an_error():
    result = await run([FIRST, CRASHED], [HELD, CRASHED], [HELD, LAST])
    assert (result.deltas, result.error.status) == ([FIRST], 500)
    assert "2 engines crashed" in result.error.message
    assert (await run([CRASHED], [HELD, CRASHED], [LAST])).error.status == 500


async def test_a_request_takes_at_most_three_replicas_with_it():
    result = await run([FIRST, DIED], [DIED], [HELD, DIED], [FIRST, DIED], [HELD, LAST])
    assert (result.deltas, result.error.status) == ([FIRST, FIRST], 500)
    assert "3 engine replicas died" in result.error.message


@pytest.mark.parametrize(
    ("begin", "key"),
    [([], "serve.first_token_timeout_s"), ([FIRST], "serve.token_timeout_s")],
    ids=["before the first token", "between two"],
)
async def test_a_replica_that_hangs_is_left_for_another(begin, key):
    hasty = Deadlines(first_token_s=0.01, token_s=0.01)
    result = await run([*begin, HANGS], [HELD, LAST], deadlines=hasty)
    assert (result.deltas, result.error) == ([*begin, LAST], None)
    assert result.handle.cancelled == 2
    error = (await run([*begin, HANGS], [*begin, HANGS], deadlines=hasty)).error
    assert (error.status, error.code) == (504, "timeout")
    assert key in error.message


async def test_an_embedding_begins_again():
    request = EmbedRequest(request_id="a", prompt="x")
    result = await run([DIED], [CRASHED], [LAST], request=request)
    assert (result.deltas, result.error) == ([LAST], None)
    assert [sent is request for sent in result.handle.requests] == [True] * 3


@pytest.mark.parametrize(
    ("reply", "status", "param"),
    [
        (Failure(kind="invalid", message="too long", field="max_tokens"), 400, "max_tokens"),
        (ENGINE_FULL, 429, None),
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
    answer = ServeBackend(handle, handle, PATIENT).stream(REQUEST)
    await anext(answer)
    await answer.aclose()
    assert handle.cancelled == 1


async def test_replicas_that_answer_are_listed_and_remembered_for_a_second(make_stats):
    handle = FakeHandle(broadcasts=[[make_stats("r1"), DIED]])
    backend = ServeBackend(handle, handle, PATIENT)
    assert [r.replica for r in await backend.replicas()] == ["r1"]
    assert [r.replica for r in await backend.replicas()] == ["r1"]
    assert handle.asked == 1


@pytest.mark.parametrize("trouble", [TimeoutError(), UNAVAILABLE], ids=["hangs", "none"])
async def test_no_answering_replica_is_an_empty_list(trouble):
    assert (
        await ServeBackend(FakeHandle(broadcasts=[trouble]), FakeHandle(), PATIENT).replicas() == ()
    )
