"""A real `python -m serve`: its processes, and what it says of itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil

from benchmarks.chaos.clients import PATIENCE_S

ROOT = Path(__file__).parents[2]


@contextmanager
def endpoint(overrides: list[str]) -> Iterator[tuple[psutil.Process, str, str]]:
    """Run `python -m serve`; yield its process, its URL and the model's name."""
    with tempfile.TemporaryDirectory(prefix="c", dir="/tmp") as folder:
        process = subprocess.Popen(
            [sys.executable, "-m", "serve", *overrides],
            cwd=ROOT,
            env={**os.environ, "TMPDIR": folder},
            stdout=subprocess.PIPE,
            start_new_session=True,  # so that a signal can reach the group, as from a terminal
            text=True,
        )
        assert process.stdout is not None
        try:
            ready = next((line for line in process.stdout if line.startswith("ready: ")), None)
            if ready is None:
                raise SystemExit("the endpoint did not start")
            _, model, _, url, *_ = ready.split()
            yield psutil.Process(process.pid), url.rstrip(","), model
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE_S)
            process.stdout.close()


def parts(owner: psutil.Process, title: str) -> list[psutil.Process]:
    """Return the processes of one part of the endpoint, the oldest first."""
    found = []
    for child in owner.children(recursive=True):
        try:
            if title in "".join(child.cmdline()) and child.status() != psutil.STATUS_STOPPED:
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return sorted(found, key=lambda child: child.create_time())


async def replicas(url: str) -> int:
    """Return the number of engine replicas that answer."""
    try:
        async with httpx.AsyncClient(timeout=PATIENCE_S) as http:
            answer = await http.get(f"{url}/health")
    except httpx.HTTPError:
        return 0
    return int(answer.json()["replicas"])


async def slots_used(url: str) -> int | None:
    """Return the slots in use, as /metrics counts them; None while no ingress answers."""
    by_replica = await slots_by_replica(url)
    return None if by_replica is None else sum(by_replica)


async def slots_by_replica(url: str) -> list[int] | None:
    """Return the slots in use of each replica, as `slots_used`."""
    try:
        async with httpx.AsyncClient(timeout=PATIENCE_S) as http:
            lines = (await http.get(f"{url}/metrics")).text.splitlines()
    except httpx.HTTPError:
        return None
    used = [line for line in lines if line.startswith("llamahome_slots_used")]
    return [int(float(line.split()[-1])) for line in used]
