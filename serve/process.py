"""Answers from Python, without Ray: `await process_input(text, config, cache_manager)`."""

from __future__ import annotations

import asyncio
import atexit
import threading
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from llamahome.config import ConfigError, ServeRoot
from llamahome.engine import EngineError
from llamahome.requests import EngineStats, SamplingParams, Usage
from serve.compose import compose_root
from serve.replica import Replica
from serve.wire import Delta, Failure, GenerateRequest

# Parameters that a model's authors may recommend, for callers that ask for nothing.
RECOMMENDED = frozenset(("temperature", "top_p", "top_k", "min_p", "repetition_penalty"))


class InputError(EngineError):
    """A text, or a parameter, that the engine refuses."""


@dataclass(frozen=True, kw_only=True)
class ProcessedInput:
    """An answer.

    Attributes:
        text: the whole answer.
        finish_reason: `stop`, or `length` where `max_tokens` or the context cut it.
    """

    text: str
    finish_reason: str
    usage: Usage


class CacheManager:
    """Engines of this process, each with its prefix snapshots; one engine for each config.

    Texts that begin the same start from a snapshot of an earlier one. Use it as `async with`, or
    call `close` at the end.

    Args:
        memory_bytes: memory for each engine's snapshots; None is `engine.snapshot_bytes`.
        folder: keeps snapshots for the next process; None is `engine.snapshot_dir`.
    """

    def __init__(
        self, *, memory_bytes: int | None = None, folder: str | Path | None = None
    ) -> None:
        self._own: dict[str, Any] = {
            name: value
            for name, value in (
                ("snapshot_bytes", memory_bytes),
                ("snapshot_dir", None if folder is None else str(folder)),
            )
            if value is not None
        }
        self._replicas: dict[str, Replica] = {}
        self._closed = False
        self._lock = threading.Lock()  # not asyncio's: calls may come from several event loops

    def replica(self, root: ServeRoot) -> Replica:
        """Return the engine of a config; load it if it is the first call.

        Raises:
            ConfigError: when this manager is closed, or the config cannot be had.
            ModelError: when the model cannot be loaded.
        """
        engine = replace(root.engine, **self._own)
        key = repr((root.model, root.policy, engine))
        with self._lock:
            if self._closed:
                raise ConfigError("this CacheManager is closed; make another")
            if key not in self._replicas:
                self._replicas[key] = Replica(root.model, root.policy, engine)
            return self._replicas[key]

    async def stats(self) -> list[EngineStats]:
        """Return the figures of each engine; `prefix_*` are the snapshots'."""
        return [(await replica.stats()).engine for replica in self._replicas.values()]

    def close(self) -> None:
        """End all engines and write their snapshots to the folder, if there is one.

        Answers that still run end with an EngineError.
        """
        with self._lock:
            self._closed = True
            while self._replicas:
                self._replicas.popitem()[1].close()

    async def __aenter__(self) -> CacheManager:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await asyncio.to_thread(self.close)


# Shared by all calls without a manager of their own, for the length of the process.
_SHARED = CacheManager()
atexit.register(_SHARED.close)


async def process_input(
    text: str,
    config: ServeRoot | Sequence[str] = (),
    cache_manager: CacheManager | None = None,
    *,
    params: SamplingParams | None = None,
) -> ProcessedInput:
    """Answer a text as a chat's user says it, in an engine of this process.

    Calls that run at once share the engine's steps. A task that is cancelled frees its slot.

    Args:
        text: the user's message.
        config: an endpoint's config, or overrides of conf/serve.yaml, as `python -m serve` takes
            them; `serve` and `cluster` are not used.
        cache_manager: holds the engine and its prefix snapshots; None is one that all such calls
            share until the process ends.
        params: how to sample; None is the model's own recommendation, or else greedy.

    Raises:
        InputError: for a text or parameter that the engine refuses.
        EngineError: when the queue is full, or the engine fails.
        ConfigError, ModelError: as `CacheManager.replica`.
    """
    if isinstance(config, str):
        raise ConfigError(f"config={config!r} is one text; give a list of overrides")
    root = config if isinstance(config, ServeRoot) else compose_root(config)
    replica = await asyncio.to_thread((cache_manager or _SHARED).replica, root)
    request = GenerateRequest(
        request_id=uuid.uuid4().hex,
        params=params or SamplingParams(),
        messages=[{"role": "user", "content": text}],
        left_out=RECOMMENDED if params is None else frozenset(),
    )
    deltas = [delta async for delta in _deltas(replica, request)]
    last = deltas[-1]
    assert last.finish_reason is not None
    assert last.usage is not None
    return ProcessedInput(
        text="".join(delta.text for delta in deltas),
        finish_reason=last.finish_reason,
        usage=last.usage,
    )


async def _deltas(replica: Replica, request: GenerateRequest) -> AsyncGenerator[Delta, None]:
    async with aclosing(replica.process_input(request)) as replies:
        async for reply in replies:
            if isinstance(reply, Failure):
                kind = InputError if reply.kind == "invalid" else EngineError
                raise kind(reply.message)
            if isinstance(reply, Delta):
                yield reply
