"""The ingress's way to the engine replicas."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Sequence
from typing import Any, cast

from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from serve.http.errors import ApiError, invalid_request, no_replica, queue_full
from serve.wire import Delta, ReplicaStats, Reply, Request

logger = logging.getLogger(__name__)

# Serve replaces a dead replica within seconds; until then the router may still pick it.
RETRY_PAUSES_S = (0.1, 0.5, 1.0, 2.0, 4.0)
STATS_TIMEOUT_S = 2.0
STATS_FRESH_S = 1.0


class ServeBackend:
    """Engine replicas behind a Ray Serve handle."""

    def __init__(
        self, handle: DeploymentHandle[Any], retry_pauses_s: Sequence[float] = RETRY_PAUSES_S
    ) -> None:
        self._handle = handle
        self._streaming = handle.options(stream=True)
        self._retry_pauses_s = retry_pauses_s
        self._stats: Sequence[ReplicaStats] = ()
        self._stats_until = 0.0
        self._stats_lock = asyncio.Lock()

    async def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        """Yield the answer; retry on another replica if one dies before its first delta."""
        for pause in (*self._retry_pauses_s, None):
            started = False
            replies = cast(
                "DeploymentResponseGenerator[Reply]", self._streaming.process_input.remote(request)
            )
            try:
                async for reply in replies:
                    delta = delta_of(reply)
                    started = True
                    yield delta
                return
            except (RayActorError, DeploymentUnavailableError, _Unavailable) as error:
                logger.warning("request %s lost its replica: %s", request.request_id, error)
                if started:
                    raise ApiError(
                        500, "the engine replica died in the middle of this answer", code="engine"
                    ) from error
                if pause is None:
                    raise no_replica() from error
            except BackPressureError as error:
                raise queue_full("too many requests wait for a replica; try again later") from error
            except RayTaskError as error:
                logger.error("request %s failed in its replica", request.request_id, exc_info=error)
                raise ApiError(500, "the engine replica failed", code="engine") from error
            finally:
                # Needed where a client's header turned Serve's own watch for disconnects off. A
                # call that found no replica raises its error once more here.
                with contextlib.suppress(RayError, RayServeException):
                    replies.cancel()  # type: ignore[no-untyped-call]
            await asyncio.sleep(pause)

    async def replicas(self) -> Sequence[ReplicaStats]:
        """Return the stats of every replica that answers within 2 s; ask at most once a second."""
        async with self._stats_lock:
            now = asyncio.get_running_loop().time()
            if now >= self._stats_until:
                self._stats = await self._ask_replicas()
                self._stats_until = now + STATS_FRESH_S
        return self._stats

    async def _ask_replicas(self) -> Sequence[ReplicaStats]:
        try:
            answers = await self._handle.broadcast("stats").results_async(
                timeout_s=STATS_TIMEOUT_S, return_exceptions=True
            )
        except (TimeoutError, DeploymentUnavailableError):
            return ()
        return [answer for answer in answers if isinstance(answer, ReplicaStats)]


class _Unavailable(Exception):
    """A replica whose engine has stopped, before Serve replaces it."""


def delta_of(reply: Reply) -> Delta:
    """Return the text of a reply, or raise the failure that it is."""
    if isinstance(reply, Delta):
        return reply
    if reply.kind == "invalid":
        raise invalid_request(reply.message, reply.field)
    if reply.kind == "full":
        raise queue_full(reply.message)
    if reply.kind == "failed":
        raise ApiError(500, reply.message, code="engine")
    raise _Unavailable(reply.message)
