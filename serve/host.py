"""Several models in one process: loaded on demand, dropped when others need their room."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path

from llamahome.config import ConfigError
from llamahome.engine import EngineError, EngineStats, QueueFullError
from llamahome.models import ModelError, read_adapter_policy
from serve.catalog import Served
from serve.replica import STALL_S, Replica
from serve.wire import Failure, ModelStats, Origin, ReplicaStats, Reply, Request

logger = logging.getLogger(__name__)

# How long a request waits for a model in memory to become idle, where there is no room for its own.
ROOM_WAIT_S = 10.0


@dataclass
class _Held:
    """A model in memory, or on its way there, and how many requests use it now."""

    served: Served
    loading: Future[Replica]
    users: int = 0

    @property
    def replica(self) -> Replica | None:
        """The loaded model; None while it loads, or if it could not be loaded."""
        done = self.loading.done() and self.loading.exception() is None
        return self.loading.result() if done else None


class Host:
    """Models of one replica process, each with an engine of its own.

    A model that answers a request is never dropped. Two versions of one model, an earlier one that
    ends its answers and its successor, count as one.

    Args:
        first: the model that is loaded on construction, and that requests without one get.
        max_models: models that are kept in memory; the least recently used leaves first.
        load: makes the replica of a model.
        room_wait_s: how long a request waits where all models in memory are in use.
    """

    def __init__(
        self,
        first: Served,
        *,
        name: str = "replica",
        max_models: int = 1,
        stall_s: float = STALL_S,
        load: Callable[..., Replica] = Replica,
        room_wait_s: float = ROOM_WAIT_S,
    ) -> None:
        self._first = first
        self._name = name
        self._stall_s = stall_s
        self._load = load
        self._max_models = max_models
        self._room_wait_s = room_wait_s
        # One thread: what is dropped frees its memory before the next model takes it.
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="models")
        self._retired: dict[str, int] = {}  # by name, the revision before which models have to go
        self._freed = asyncio.Event()
        loaded: Future[Replica] = Future()
        loaded.set_result(self._loaded(first))
        self._held = OrderedDict({first.key: _Held(first, loaded)})

    async def process_input(
        self, request: Request, origin: Origin | None = None
    ) -> AsyncGenerator[Reply, None]:
        """Yield the deltas of one input's answer by its model, or the failure that ends it."""
        try:
            async with (
                self._use(request.model or self._first) as replica,
                aclosing(replica.process_input(request, origin)) as replies,
            ):
                async for reply in replies:
                    yield reply
        except QueueFullError as error:
            yield Failure(kind="full", message=str(error))
        except _LoadError as error:
            logger.error("%s", error)
            message = f"the model {error.name!r} could not be loaded; the server's log has why"
            yield Failure(kind="failed", message=message)

    async def hold(self, served: Served) -> str | None:
        """Load a model ahead of its first request; return None, or why it cannot be served."""
        try:
            self._check_adapters(served)
            async with self._use(served):
                return None
        except (EngineError, ModelError) as error:
            return str(error)

    async def retire(self, name: str, revision: int) -> None:
        """Drop the versions of a model that are older than `revision`, each once it is idle."""
        self._retired[name] = max(revision, self._retired.get(name, 0))
        self._drop_retired()

    @asynccontextmanager
    async def _use(self, served: Served) -> AsyncIterator[Replica]:
        held = await self._reserved(served)
        try:
            yield await self._ready(held)
        finally:
            held.users -= 1
            self._drop_retired()
            self._freed.set()

    async def _reserved(self, served: Served) -> _Held:
        """Return a model's place, with one user more.

        Raises:
            QueueFullError: when there is no room, and none is made in time.
        """
        end = time.monotonic() + self._room_wait_s
        while (held := self._held.get(served.key)) is None:
            if self._has_room(served):
                loading = self._worker.submit(self._loaded, served)
                held = self._held[served.key] = _Held(served, loading)
                break
            self._freed.clear()
            try:
                await asyncio.wait_for(self._freed.wait(), end - time.monotonic())
            except TimeoutError:
                limit = f"{self._max_models} models (serve.max_models)"
                raise QueueFullError(f"all {limit} in memory are in use; try again") from None
        self._held.move_to_end(served.key)
        held.users += 1
        return held

    async def _ready(self, held: _Held) -> Replica:
        try:
            return await asyncio.shield(asyncio.wrap_future(held.loading))
        except (ModelError, ConfigError) as error:
            self._forget(held)
            raise _LoadError(held.served.name, str(error)) from error
        except Exception as error:
            self._forget(held)
            raise _LoadError(held.served.name, f"{type(error).__name__}: {error}") from error

    def _forget(self, held: _Held) -> None:
        if self._held.get(held.served.key) is held:
            del self._held[held.served.key]

    def _loaded(self, served: Served) -> Replica:
        return self._load(
            served.model,
            served.policy,
            served.engine,
            name=self._name,
            stall_s=self._stall_s,
        )

    def _has_room(self, served: Served) -> bool:
        """Make room for a model, if that takes no model in use; tell whether there is."""
        others = [held for held in self._held.values() if held.served.name != served.name]
        names = dict.fromkeys(held.served.name for held in others)
        if len(names) < self._max_models:
            return True
        idle = (name for name in names if not any(h.users for h in others if h.served.name == name))
        least = next(idle, None)  # they are in the order of their use
        if least is None:
            return False
        for held in others:
            if held.served.name == least:
                self._drop(held)
        return len(names) - 1 < self._max_models

    def _drop_retired(self) -> None:
        for held in list(self._held.values()):
            if held.served.revision < self._retired.get(held.served.name, 0) and not held.users:
                self._drop(held)

    def _drop(self, held: _Held) -> None:
        logger.info("replica %s drops the model %s", self._name, held.served.name)
        del self._held[held.served.key]
        self._worker.submit(_close, held.loading)

    def _check_adapters(self, served: Served) -> None:
        """Check that adapters were trained under the policy that they would be served under.

        Raises:
            ModelError: for the first that was not.
        """
        known = [held.replica for held in self._held.values() if held.served.name == served.name]
        policy = next((replica.policy for replica in known if replica is not None), None)
        for name, folder in served.engine.adapters.items():
            own = read_adapter_policy(Path(folder)) if Path(folder).is_dir() else None
            if own is not None and policy is not None and own != policy:
                raise ModelError(
                    f"the adapter {name!r} was trained under {own}, and {served.name!r} is served "
                    f"under {policy}; train it under that policy, or serve it as a model of its own"
                )

    def _replicas(self) -> list[tuple[Served, Replica]]:
        """Return the models that are loaded; of the versions of one, the latest."""
        found: dict[str, tuple[Served, Replica]] = {}
        for held in sorted(self._held.values(), key=lambda held: held.served.revision):
            if (replica := held.replica) is not None:
                found[held.served.name] = held.served, replica
        return list(found.values())

    async def stats(self) -> ReplicaStats:
        every = [(served.name, await replica.stats()) for served, replica in self._replicas()]
        return ReplicaStats(
            replica=self._name,
            running=all(stats.running for _, stats in every),
            engine=self._sum(),
            max_length=next(
                (stats.max_length for name, stats in every if name == self._first.name), None
            ),
            models=tuple(
                ModelStats(name=name, engine=stats.engine, max_length=stats.max_length)
                for name, stats in every
            ),
        )

    def _sum(self) -> EngineStats:
        """Return the figures of all engines together."""
        loaded = [held.replica for held in self._held.values()]
        engines = [replica.engine_stats() for replica in loaded if replica is not None]
        total = engines[0] if engines else EngineStats(slots=0, kv_bytes=0)
        for engine in engines[1:]:
            total = replace(
                total,
                **{
                    each.name: getattr(total, each.name) + getattr(engine, each.name)
                    for each in fields(EngineStats)
                    if each.name != "runner"
                },
            )
        return total

    async def check_health(self) -> None:
        """Check each engine as `Replica` does; raises as it does."""
        for held in list(self._held.values()):
            if (replica := held.replica) is not None:
                await replica.check_health()

    def close(self) -> None:
        """Close all engines."""
        for held in self._held.values():
            self._worker.submit(_close, held.loading)
        self._worker.shutdown()


class _LoadError(EngineError):
    """A model that cannot be loaded.

    Args:
        name: the client's name for it.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(reason)
        self.name = name


def _close(loading: Future[Replica]) -> None:
    if loading.exception() is None:
        loading.result().close()
