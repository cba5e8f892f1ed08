"""The ingress's end of the lines on which answers come from the engine replicas.

A request goes through Ray Serve, which routes, counts, cancels and drains it: that is one call,
which ends with the answer. The answer itself takes a line: a connection of the replica to this
ingress, one for each such pair. An item of a streamed call of Ray costs both sides some 400
microseconds of CPU; on a line, all tokens of an engine's step are one message.

A line is as trusted as Ray itself, whose messages are pickled, too: whoever connects has to show a
secret first, which only travels inside Ray's calls.
"""

from __future__ import annotations

import asyncio
import hmac
import itertools
import pickle
import secrets
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, cast

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from serve.wire import LENGTH_BYTES, Delta, Origin, Reply, ReplyTo, Request

SECRET_BYTES = 32
SECRET_TIMEOUT_S = 10.0
Numbered = tuple[int, Reply | None]


class Mailbox:
    """The answers that one ingress waits for."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(SECRET_BYTES)
        self._numbers = itertools.count()
        self._waiting: dict[int, Answer] = {}
        self._server: asyncio.Server | None = None
        self._lines: set[_Line] = set()
        self._address = ("", 0)

    async def start(self, host: str) -> None:
        """Listen on a free port of this node's address."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Line(self), host, 0)
        self._address = (host, self._server.sockets[0].getsockname()[1])

    def close(self) -> None:
        """Hang up; replicas end what they still compute for this ingress."""
        if self._server is not None:
            self._server.close()
        for line in self._lines:
            line.hang_up()

    def open(self) -> Answer:
        """Return a new answer to wait for."""
        host, port = self._address
        to = ReplyTo(host=host, port=port, secret=self._secret, number=next(self._numbers))
        answer = self._waiting[to.number] = Answer(self, to)
        return answer

    def forget(self, number: int) -> None:
        """Drop what may still come of an answer."""
        self._waiting.pop(number, None)

    def opens_for(self, secret: bytes) -> bool:
        return hmac.compare_digest(secret, self._secret)

    def deliver(self, replies: list[Numbered], line: object) -> None:
        """Take in a message of a line; None is an answer's end."""
        for number, reply in replies:
            answer = self._waiting.get(number)
            if answer is not None:
                answer.line = line
                answer.put(StopAsyncIteration() if reply is None else reply)

    def made(self, line: _Line) -> None:
        self._lines.add(line)

    def lost(self, line: _Line) -> None:
        """End the answers that were coming on a line."""
        self._lines.discard(line)
        for answer in list(self._waiting.values()):
            if answer.line is line:
                answer.put(ConnectionResetError("its replica closed the connection"))


class Answer:
    """The replies to one request as they arrive; iterating raises what ended them."""

    def __init__(self, mailbox: Mailbox, to: ReplyTo) -> None:
        self.to = to
        self.line: object | None = None  # on which replies have come
        self._mailbox = mailbox
        self._arrived: deque[Reply | Exception] = deque()
        self._more: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0

    def put(self, item: Reply | Exception) -> None:
        self._arrived.append(item)
        if self._more is not None and not self._more.done():
            self._more.set_result(None)

    async def next(self, limit_s: float) -> Reply:
        """Return the next reply.

        One timer serves the whole answer: it looks when the latest wait is over.

        Raises:
            TimeoutError: when none comes for `limit_s`.
            StopAsyncIteration: after the last.
            ConnectionResetError: when the line is lost.
            Exception: what was `put`.
        """
        if not self._arrived:
            loop = asyncio.get_running_loop()
            self._more = loop.create_future()
            self._due = loop.time() + limit_s
            if self._timer is None or self._timer.when() > self._due:
                self._arm(loop)
            await self._more
        item = self._arrived.popleft()
        if isinstance(item, Exception):
            raise item
        return item

    def _arm(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_at(self._due, self._check, loop)

    def _check(self, loop: asyncio.AbstractEventLoop) -> None:
        """End the wait if it is over; else look again when it is."""
        self._timer = None
        if self._more is None or self._more.done():
            return
        if loop.time() >= self._due:
            self._more.set_exception(TimeoutError())
        else:
            self._arm(loop)

    def close(self) -> None:
        self._mailbox.forget(self.to.number)
        if self._timer is not None:
            self._timer.cancel()


class _Line(asyncio.Protocol):
    """One replica's connection: the secret, then messages with their length before them."""

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox
        self._buffer = bytearray()
        self._known = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(SECRET_TIMEOUT_S, self.hang_up)
        self._mailbox.made(self)

    def hang_up(self) -> None:
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._known and not self._check_secret():
            return
        while len(self._buffer) >= LENGTH_BYTES:
            end = LENGTH_BYTES + int.from_bytes(self._buffer[:LENGTH_BYTES])
            if len(self._buffer) < end:
                return
            message = bytes(self._buffer[LENGTH_BYTES:end])
            del self._buffer[:end]
            self._mailbox.deliver(pickle.loads(message), self)

    def _check_secret(self) -> bool:
        """Return whether the secret has come; hang up on a wrong one."""
        if len(self._buffer) < SECRET_BYTES:
            return False
        secret = bytes(self._buffer[:SECRET_BYTES])
        del self._buffer[:SECRET_BYTES]
        self._known = self._mailbox.opens_for(secret)
        self._deadline.cancel()
        if not self._known:
            self.hang_up()
        return self._known

    def connection_lost(self, exc: Exception | None) -> None:
        self._deadline.cancel()
        self._mailbox.lost(self)


class Replies(Protocol):
    """The replies of one replica to one request."""

    async def next(self, limit_s: float) -> Reply: ...

    def cancel(self) -> None: ...


class Calls(Protocol):
    """Starts calls that are answered in parts."""

    def remote(self, request: Request, origin: Origin | None) -> Replies: ...


class DirectCalls:
    """Calls of a deployment handle's method `answer`, whose replies come into a mailbox."""

    def __init__(self, method: Any, mailbox: Mailbox) -> None:
        self._method = method
        self._mailbox = mailbox
        self._open: set[asyncio.Task[None]] = set()

    def remote(self, request: Request, origin: Origin | None = None) -> DirectCall:
        """Send a request to a replica that Serve chooses."""
        answer = self._mailbox.open()
        response = self._method.remote(request, answer.to, origin)
        watch = asyncio.create_task(_watch(response, answer.put))
        self._open.add(watch)  # the loop alone would not keep it
        watch.add_done_callback(self._open.discard)
        return DirectCall(answer, response)


class DirectCall:
    """One call: the replies as they come, then the error that ended it, if one did."""

    def __init__(self, answer: Answer, response: Any) -> None:
        self._answer = answer
        self._response = response
        self._ended = False

    async def next(self, limit_s: float) -> Reply:
        """Return the next reply, as `Answer.next` does."""
        try:
            reply = await self._answer.next(limit_s)
        except (StopAsyncIteration, RayServeException):
            self._ended = True
            raise
        self._ended = isinstance(reply, Delta) and reply.finish_reason is not None
        return reply

    def cancel(self) -> None:
        """Tell the replica that nobody waits for more, unless it has ended."""
        self._answer.close()
        if not self._ended:
            self._response.cancel()


async def _watch(response: Any, put: Callable[[Exception], None]) -> None:
    """Pass on how a call fails; one that ends well has said so on the line."""
    try:
        await response
    except (RayError, RayServeException) as error:
        put(error)
