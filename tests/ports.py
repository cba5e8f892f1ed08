"""Ports for the servers that tests start."""

from __future__ import annotations

import random
import socket


def free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 on which nothing listens.

    They lie between those of Ray's workers and those that the kernel gives to clients, so that
    nothing takes one before the server does.
    """
    ports = random.Random().sample(range(20_000, 32_000), k=500)
    return [port for port in ports if _is_free(port)][:count]


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
