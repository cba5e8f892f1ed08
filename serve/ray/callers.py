"""The processes that requests come from: when one dies, nobody waits for its answers any more."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import ray
from ray.exceptions import RayError

logger = logging.getLogger(__name__)

PERIOD_S = 1.0
# Ray Serve names its processes there, whatever the namespace of the driver is.
NAMESPACE = "serve"


def own_name() -> str | None:
    """Return the name by which others find this process; None if Ray does not know it."""
    name: str | None = ray.get_runtime_context().get_actor_name()
    return name if name is not None and is_alive(name) else None


def is_alive(name: str) -> bool:
    """Ask Ray, in a few milliseconds, whether an actor lives; if it cannot say, it may."""
    try:
        ray.get_actor(name, namespace=NAMESPACE)
    except ValueError:
        return False
    except RayError:
        return True
    return True


class Callers:
    """The tasks that answer each caller; those of one that has died are cancelled.

    Ray cancels a call when its caller asks for it, which one that is killed cannot. Ray's record of
    the process counts, so a caller that is only slow is never taken for dead.

    Args:
        alive: whether the actor of a name lives; may block.
        period_s: seconds between two looks.
    """

    def __init__(self, alive: Callable[[str], bool] = is_alive, period_s: float = PERIOD_S) -> None:
        self._alive = alive
        self._period_s = period_s
        self._tasks: dict[str, set[asyncio.Task[object]]] = defaultdict(set)
        self._watch: asyncio.Task[None] | None = None

    @contextmanager
    def answering(self, caller: str | None) -> Iterator[None]:
        """Cancel the task that runs the block if its caller dies meanwhile."""
        task = asyncio.current_task()
        if caller is None or task is None:
            yield
            return
        self._tasks[caller].add(task)
        if self._watch is None or self._watch.done():
            self._watch = asyncio.create_task(self._look())
        try:
            yield
        finally:
            self._tasks[caller].discard(task)
            if not self._tasks[caller]:
                del self._tasks[caller]

    async def _look(self) -> None:
        """Look at all callers until there are none."""
        while self._tasks:
            await asyncio.sleep(self._period_s)
            for caller in list(self._tasks):
                if not await asyncio.to_thread(self._alive, caller):
                    left = self._tasks.get(caller, set())
                    logger.warning("%s has died; its %d answers end here", caller, len(left))
                    for task in left:
                        task.cancel()
