"""The ingress's way to the engine replicas."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RayServeException,
)
from ray.serve.handle import DeploymentHandle

from serve.catalog import Served
from serve.http.errors import ApiError, invalid_request, no_replica, queue_full
from serve.ray.mailbox import Calls
from serve.ray.recovery import PAUSES_S, Deadlines, Loss, Recovery
from serve.security.call import CALL
from serve.wire import Accepted, Delta, ReplicaStats, Reply, Request

logger = logging.getLogger(__name__)

STATS_TIMEOUT_S = 2.0
STATS_FRESH_S = 1.0


class ServeBackend:
    """Engine replicas behind a Ray Serve handle.

    Args:
        calls: start the calls that are answered in parts.
    """

    def __init__(
        self,
        handle: DeploymentHandle[Any],
        calls: Calls,
        deadlines: Deadlines,
        pauses_s: Sequence[float] = PAUSES_S,
    ) -> None:
        self._handle = handle
        self._calls = calls
        self._deadlines = deadlines
        self._pauses_s = pauses_s
        self._stats: Sequence[ReplicaStats] = ()
        self._stats_until = 0.0
        self._stats_lock = asyncio.Lock()

    async def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        """Yield the answer; if its replica is lost, another one goes on where it ended.

        Raises:
            ApiError: when the request cannot run, or `Recovery` gives it up.
        """
        recovery = Recovery(request, self._pauses_s)
        while True:
            try:
                async with aclosing(self._replies(recovery.request())) as replies:
                    async for reply in replies:
                        recovery.note(reply)
                        if isinstance(reply, Delta):
                            yield reply
                            if reply.finish_reason is not None:
                                return
                raise Loss("its answer ended early")
            except Loss as loss:
                reason = str(loss).partition("\n")[0]  # Ray adds a page
                logger.warning("request %s lost its replica: %s", request.request_id, reason)
                pause = recovery.after(loss)
            await asyncio.sleep(pause)

    async def _replies(self, request: Request) -> AsyncGenerator[Delta | Accepted, None]:
        """Yield what one replica replies.

        Raises:
            Loss: when the replica is dead, hangs, refuses because it is full or has crashed.
            ApiError: when the request cannot run.
        """
        call = CALL.get()
        replies = self._calls.remote(request, None if call is None else call.origin)
        started = False
        try:
            while True:
                limit = self._deadlines.token_s if started else self._deadlines.first_token_s
                try:
                    reply = await replies.next(limit)
                except StopAsyncIteration:
                    return
                except TimeoutError as error:
                    raise Loss(self._deadlines.passed(started), hung=True) from error
                started = started or isinstance(reply, Delta)
                yield _checked(reply)
        except BackPressureError as error:
            full = queue_full("too many requests wait for a replica; try again later")
            raise Loss(str(error), refusal=full) from error
        except RayTaskError as error:
            logger.error("request %s failed in its replica", request.request_id, exc_info=error)
            raise ApiError(500, "the engine replica failed", code="engine") from error
        except (RayError, DeploymentUnavailableError, ConnectionError) as error:
            raise Loss(str(error)) from error
        finally:
            # Needed where a client's header turned Serve's own watch for disconnects off. A
            # call that found no replica raises its error once more here.
            with contextlib.suppress(RayError, RayServeException):
                replies.cancel()

    async def replicas(self) -> Sequence[ReplicaStats]:
        """Return the stats of every replica that answers within 2 s; ask at most once a second."""
        async with self._stats_lock:
            now = asyncio.get_running_loop().time()
            if now >= self._stats_until:
                self._stats = await self._ask_replicas()
                self._stats_until = now + STATS_FRESH_S
        return self._stats

    async def hold(self, served: Served) -> str | None:
        """Load a model in every replica; return the first reason why one cannot, or None.

        Raises:
            ApiError: when no replica answers.
        """
        try:
            # The first wakes a replica where none runs.
            reasons = [await self._handle.hold.remote(served)]
            if reasons == [None]:
                reasons = await self._handle.broadcast("hold", served).results_async()
        except (RayError, RayServeException) as error:
            raise no_replica() from error
        return next((reason for reason in reasons if reason is not None), None)

    async def retire(self, name: str, revision: int) -> None:
        """Drop older versions of a model in every replica, once they are idle."""
        # A replica that has just been lost holds nothing any more.
        with contextlib.suppress(RayError, RayServeException):
            await self._handle.broadcast("retire", name, revision).results_async(
                return_exceptions=True
            )

    async def _ask_replicas(self) -> Sequence[ReplicaStats]:
        try:
            answers = await self._handle.broadcast("stats").results_async(
                timeout_s=STATS_TIMEOUT_S, return_exceptions=True
            )
        except (TimeoutError, DeploymentUnavailableError):
            return ()
        return [answer for answer in answers if isinstance(answer, ReplicaStats)]


def delta_of(reply: Reply) -> Delta:
    """Return the text of a reply, or raise the failure that it is."""
    checked = _checked(reply)
    assert isinstance(checked, Delta), "a first try is not acknowledged"
    return checked


def _checked(reply: Reply) -> Delta | Accepted:
    """Return a reply, or raise the failure that it is."""
    if isinstance(reply, Delta | Accepted):
        return reply
    if reply.kind == "invalid":
        raise invalid_request(reply.message, reply.field)
    if reply.kind == "failed":
        raise ApiError(500, reply.message, code="engine")
    refusal = queue_full(reply.message) if reply.kind == "full" else None
    raise Loss(reply.message, crashed=reply.kind == "crashed", refusal=refusal)
