"""An HTTP server of one ingress process: uvicorn, with the limits that a public port needs.

Several processes listen on one port, and the kernel gives each of them a share of the connections.
One that dies takes its own connections along; new ones go to the others at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from serve.http.errors import ACCESS, ApiError

access = logging.getLogger(ACCESS)

BACKLOG = 2048
# How long the rest of a body is read and dropped after an early answer. A connection that is
# closed at once is reset, and the client might never see the answer.
LINGER_S = 1.0


class ServerStoppedError(Exception):
    """The HTTP server has ended."""


@dataclass(frozen=True, kw_only=True)
class EdgeLimits:
    """Limits of a connection, in one process.

    Attributes:
        header_bytes: size of a request's line and headers.
        header_timeout_s: seconds in which they must arrive, and an idle connection is kept.
        connections_per_client: connections of one address at once.
    """

    header_bytes: int
    header_timeout_s: float
    connections_per_client: int


class HttpServer:
    """A server of `app` on a port that other processes may listen on, too.

    Args:
        app: the application.
        host, port: address to listen on.
        limits: limits of its connections.
        grace_s: seconds for unfinished answers when it stops.
        tls: paths of a certificate and its key; None serves plain HTTP.

    Raises:
        OSError: for an address that cannot be listened on.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        host: str,
        port: int,
        limits: EdgeLimits,
        grace_s: float,
        tls: tuple[str, str] | None = None,
    ) -> None:
        certificate, key = tls or (None, None)
        self._socket = listening_socket(host, port)
        self._server = _Server(
            uvicorn.Config(
                app,
                http=edge_protocol(limits),
                h11_max_incomplete_event_size=limits.header_bytes,
                timeout_keep_alive=limits.header_timeout_s,  # type: ignore[arg-type]
                timeout_graceful_shutdown=grace_s,  # type: ignore[arg-type]
                ssl_certfile=certificate,
                ssl_keyfile=key,
                lifespan="off",
                log_config=None,
                access_log=False,  # serve/http/door.py writes the one line of each request
                server_header=False,
            )
        )
        self._serving: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        return int(self._socket.getsockname()[1])

    async def start(self) -> None:
        """Return once connections are answered."""
        self._serving = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        while not self._server.started:
            self.check()
            await asyncio.sleep(0.01)

    def check(self) -> None:
        """Raise ServerStoppedError unless the server runs."""
        if self._serving is None or self._serving.done():
            raise ServerStoppedError("the HTTP server has stopped")

    async def stop(self) -> None:
        """Take no more connections, and return when the open requests are answered."""
        self._server.should_exit = True
        if self._serving is not None:
            await self._serving


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the process that the server is a part of."""
        yield


def listening_socket(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=BACKLOG, reuse_port=True)


class EdgeProtocol(H11Protocol):
    """One connection. uvicorn itself waits for headers, and drops surplus bodies, for ever."""

    limits: ClassVar[EdgeLimits]
    per_client: ClassVar[Counter[str]]  # connections of all that share the limits

    _deadline: asyncio.TimerHandle | None = None  # for headers, or for the rest of a body
    _host: str | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        host = self.client[0] if self.client else ""
        if self.per_client[host] >= self.limits.connections_per_client:
            self._refuse(
                429,
                f"more than {self.limits.connections_per_client} connections of one client "
                "(serve.max_connections_per_client)",
            )
            return
        self._host = host
        self.per_client[host] += 1
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_deadline()
        if self._host is not None:
            self.per_client[self._host] -= 1
            if not self.per_client[self._host]:
                del self.per_client[self._host]
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self.conn.their_state is h11.IDLE and self._deadline is None:
            self._expect_headers()
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE and not self._answered_early():
            self._cancel_deadline()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._answered_early() and not self.transport.is_closing():
            self._unset_keepalive_if_required()
            self._cancel_deadline()
            self._deadline = self.loop.call_later(LINGER_S, self.transport.abort)

    def _answered_early(self) -> bool:
        """Return whether the answer is complete, but the request's body is not."""
        return self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY

    def send_400_response(self, msg: str) -> None:
        head = f"a malformed request, or headers of more than {self.limits.header_bytes} bytes"
        self._refuse(400, f"{head} (serve.max_header_bytes)")

    def _expect_headers(self) -> None:
        self._deadline = self.loop.call_later(self.limits.header_timeout_s, self._too_slow)

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        limit = f"{self.limits.header_timeout_s:g} s (serve.header_timeout_s)"
        self._refuse(408, f"the headers did not arrive within {limit}")

    def _refuse(self, status: int, message: str) -> None:
        """Answer without the application, and close the connection."""
        client = self.client[0] if self.client else None
        access.info("refused", extra={"status": status, "client": client, "reason": message})
        body = json.dumps(ApiError(status, message).body()).encode()
        head = (
            f"HTTP/1.1 {status} \r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        if not self.transport.is_closing():
            self.transport.write(head.encode() + body)
            self.transport.close()


def edge_protocol(limits: EdgeLimits) -> type[EdgeProtocol]:
    """Return the protocol with `limits`; its connections are counted together."""
    return type("LimitedProtocol", (EdgeProtocol,), {"limits": limits, "per_client": Counter()})
