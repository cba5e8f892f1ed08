"""A replica's end of the lines on which its answers go to the ingresses (see `mailbox`)."""

from __future__ import annotations

import asyncio
import pickle
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from serve.wire import LENGTH_BYTES, Reply, ReplyTo

CONNECT_TIMEOUT_S = 5.0
# After so long without a confirmation of its bytes a line is lost: the ingress's machine has gone.
UNHEARD_MS = 10_000


class Line(asyncio.Protocol):
    """A connection to one ingress."""

    def __init__(self) -> None:
        self._waiting: list[tuple[int, Reply | None]] = []
        self._users: set[asyncio.Task[object]] = set()
        self._loop = asyncio.get_running_loop()
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if sys.platform == "linux":  # elsewhere the system's own limit is minutes
            line = transport.get_extra_info("socket")
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNHEARD_MS)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel who writes to it: the ingress has ended, and nobody waits for the answers."""
        self.lost = True
        for task in self._users:
            task.cancel()

    def greet(self, secret: bytes) -> None:
        self._transport.write(secret)

    @contextmanager
    def used(self) -> Iterator[None]:
        """Cancel this task if the line is lost before the end of the `with` block."""
        task = asyncio.current_task()
        assert task is not None
        self._users.add(task)
        try:
            yield
        finally:
            self._users.discard(task)

    def send(self, number: int, reply: Reply | None) -> None:
        """Send a reply, or None for the end, together with what others send at the same time."""
        if not self._waiting:
            self._loop.call_soon(self._flush)
        self._waiting.append((number, reply))

    def _flush(self) -> None:
        message = pickle.dumps(self._waiting, pickle.HIGHEST_PROTOCOL)
        self._waiting = []
        if not self.lost:
            self._transport.write(len(message).to_bytes(LENGTH_BYTES) + message)


class Lines:
    """The lines of one replica; one is made when the first answer goes to an ingress."""

    def __init__(self) -> None:
        self._lines: dict[tuple[str, int], asyncio.Task[Line]] = {}

    async def to(self, to: ReplyTo) -> Line:
        """Return the line to an ingress.

        Raises:
            OSError: when the ingress does not answer.
        """
        address = (to.host, to.port)
        made = self._lines.get(address)
        if made is None or (made.done() and (made.exception() or made.result().lost)):
            made = self._lines[address] = asyncio.create_task(_connect(to))
        return await asyncio.shield(made)


async def _connect(to: ReplyTo) -> Line:
    connecting = asyncio.get_running_loop().create_connection(Line, to.host, to.port)
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            _, line = await connecting
    except OSError as error:  # TimeoutError is one
        where = f"the ingress at {to.host}:{to.port}"
        raise OSError(f"cannot connect to {where}; open the ports between the nodes") from error
    line.greet(to.secret)
    return line
