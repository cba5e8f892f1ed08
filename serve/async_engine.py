"""An asynchronous face for the synchronous engine: one thread steps it while it has work."""

from __future__ import annotations

import asyncio
import logging
import queue
import struct
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from functools import partial

from llamahome.engine import (
    EngineError,
    EngineStats,
    Progress,
    RequestError,
    SamplingParams,
    TextDelta,
    TextEngine,
)
from llamahome.engine.sampling.grammar import GrammarMask
from llamahome.lens import joined
from serve.wire import Delta

logger = logging.getLogger(__name__)

STOP_TIMEOUT_S = 5.0

Event = TextDelta | EngineError


class AnswerError(EngineError):
    """The engine could not continue this one request."""


class EngineStoppedError(EngineError):
    """The engine's thread has ended, by a crash or because it was closed."""


@dataclass(frozen=True)
class _Inbox:
    """The destination of one request's deltas: a queue of the event loop that waits for them."""

    loop: asyncio.AbstractEventLoop
    queue: asyncio.Queue[Event]

    def put(self, event: Event) -> None:
        self.loop.call_soon_threadsafe(self.queue.put_nowait, event)


@dataclass(frozen=True)
class _Submit:
    """A request to start, and the context of whoever sent it, for log lines."""

    request_id: str
    call: Callable[[], None]
    inbox: _Inbox
    context: Context = field(default_factory=copy_context)


class AsyncEngine:
    """An engine in a thread of its own, which alone may touch it from then on."""

    def __init__(self, engine: TextEngine) -> None:
        self._engine = engine
        # A request to start, the id of one to cancel, or None to end.
        self._commands: queue.SimpleQueue[_Submit | str | None] = queue.SimpleQueue()
        self._inboxes: dict[str, _Inbox] = {}
        self._stats = engine.stats()
        self._idle = False
        self._progressed = time.monotonic()  # when a step or command last ended, or work came
        self.running = True
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def stats(self) -> EngineStats:
        """Return the statistics as of the latest step."""
        return self._stats

    @property
    def idle_s(self) -> float:
        """Return for how many seconds the engine has had nothing to do; 0 while it has."""
        return time.monotonic() - self._progressed if self._waits else 0.0

    @property
    def stalled_s(self) -> float:
        """Return for how many seconds the step or command in progress has run."""
        return 0.0 if self._waits else time.monotonic() - self._progressed

    @property
    def _waits(self) -> bool:
        return self._idle and self._commands.empty()

    def generate(
        self,
        request_id: str,
        prompt: list[int],
        params: SamplingParams,
        grammar: GrammarMask | None = None,
        progress: Progress | None = None,
    ) -> AsyncGenerator[Delta, None]:
        """Yield the answer to a prompt, or what follows after `progress`.

        Args:
            grammar: `params.grammar`, compiled.
        """
        submit = partial(self._engine.submit, request_id, prompt, params, grammar, progress)
        return self._answer(request_id, submit)

    def embed(
        self, request_id: str, prompt: list[int], adapter: str | None
    ) -> AsyncGenerator[Delta, None]:
        """Yield the embedding of a prompt, in one delta."""
        return self._answer(
            request_id,
            partial(self._engine.submit_embedding, request_id, prompt, adapter=adapter),
        )

    async def _answer(
        self, request_id: str, submit: Callable[[], None]
    ) -> AsyncGenerator[Delta, None]:
        """Yield the answer as it grows; deltas that wait together are joined to one.

        Leaving early, by `aclose` or cancellation, frees the request's slot at once.

        Raises:
            RequestError, QueueFullError: as the engine's `submit` does; RequestError also where the
                request's own rules leave no way on.
            AnswerError: when the engine gives this request up.
            EngineStoppedError: when the engine crashes or has crashed.
        """
        inbox = _Inbox(asyncio.get_running_loop(), asyncio.Queue())
        self._put(_Submit(request_id, submit, inbox))
        # Checked after the put: a stopping thread answers what is in the queue.
        if not self.running:
            raise EngineStoppedError("the engine is not running")
        try:
            finished = False
            while not finished:
                deltas, error = await _arrived(inbox.queue)
                if deltas:
                    finished = deltas[-1].finish_reason is not None
                    yield _joined(deltas)
                if error is not None:
                    raise error
        finally:
            self._put(request_id)

    def _put(self, command: _Submit | str | None) -> None:
        if self._idle:
            self._progressed = time.monotonic()
        self._commands.put(command)

    def close(self) -> None:
        """End the thread; requests that still run end with EngineStoppedError."""
        self._put(None)
        self._thread.join(STOP_TIMEOUT_S)

    def _run(self) -> None:
        """Step the engine until it is closed; `threading.excepthook` shows a fatal error."""
        try:
            while self._obey():
                deltas = self._engine.step()
                self._stats = self._engine.stats()
                self._progressed = time.monotonic()
                self._send(deltas)
            self._engine.close()
        finally:
            self._fail_all(sys.exception())

    def _send(self, deltas: list[TextDelta]) -> None:
        """Wake each event loop once for all deltas of a step."""
        found: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Queue[Event], TextDelta]]] = {}
        for delta in deltas:
            inbox = self._inboxes[delta.request_id]
            found.setdefault(inbox.loop, []).append((inbox.queue, delta))
            if delta.finish_reason is not None:
                del self._inboxes[delta.request_id]
        for loop, own in found.items():
            loop.call_soon_threadsafe(_put_all, own)

    def _obey(self) -> bool:
        """Carry out waiting commands, or wait for one while idle; return False to end."""
        while not self._commands.empty() or not self._engine.has_work:
            self._idle = self._commands.empty()
            command = self._commands.get()
            self._idle, self._progressed = False, time.monotonic()
            if command is None:
                return False
            if isinstance(command, _Submit):
                self._submit(command)
            else:
                self._inboxes.pop(command, None)
                self._engine.cancel(command)
            self._stats = self._engine.stats()
        return True

    def _submit(self, command: _Submit) -> None:
        try:
            command.context.run(command.call)
        except EngineError as refusal:
            command.inbox.put(refusal)
        except BaseException as error:
            command.inbox.put(EngineStoppedError(f"the engine stopped: {type(error).__name__}"))
            raise
        else:
            self._inboxes[command.request_id] = command.inbox

    def _fail_all(self, cause: BaseException | None) -> None:
        self.running = False
        reason = "it was closed" if cause is None else f"{type(cause).__name__} in a step"
        logger.log(logging.INFO if cause is None else logging.ERROR, "engine ended: %s", reason)
        waiting = list(self._inboxes.values())
        while not self._commands.empty():
            command = self._commands.get()
            if isinstance(command, _Submit):
                waiting.append(command.inbox)
        for inbox in waiting:
            inbox.put(EngineStoppedError(f"the engine stopped: {reason}"))


def _put_all(deltas: list[tuple[asyncio.Queue[Event], TextDelta]]) -> None:
    for inbox, delta in deltas:
        inbox.put_nowait(delta)


async def _arrived(inbox: asyncio.Queue[Event]) -> tuple[list[TextDelta], EngineError | None]:
    """Wait for one event, and take those that have arrived with it; an error is the last."""
    events = [await inbox.get()]
    while not inbox.empty():
        events.append(inbox.get_nowait())
    errors = [event for event in events if isinstance(event, EngineError)]
    return [event for event in events if isinstance(event, TextDelta)], next(iter(errors), None)


def _joined(deltas: list[TextDelta]) -> Delta:
    last = deltas[-1]
    if last.finish_reason == "error" and last.error_field is not None:
        raise RequestError(last.error_field, None, last.error or "")
    if last.finish_reason == "error":
        raise AnswerError(last.error)
    embedding = last.embedding
    return Delta(
        text="".join(delta.text for delta in deltas),
        token_count=sum(delta.token_count for delta in deltas),
        tokens=tuple(token for delta in deltas for token in delta.tokens),
        ids=tuple(token for delta in deltas for token in delta.ids),
        held=last.held,
        lens=joined([delta.lens for delta in deltas if delta.lens is not None]),
        embedding=None if embedding is None else struct.pack(f"<{len(embedding)}f", *embedding),
        finish_reason=last.finish_reason,
        usage=last.usage,
        stop_text=last.stop_text,
    )
