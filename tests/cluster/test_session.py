"""Real Ray clusters, each with its own temp dir; a test ends only its own processes."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.session import manage_resources, ray_session
from llamahome.config import ClusterConfig, ConfigError
from tests.ports import free_ports

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(1200)


@pytest.fixture
def short_dir(monkeypatch) -> Iterator[Path]:
    """A temp dir for all files, short enough for Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", None)  # forget the cached one
        yield Path(folder)


def descendants() -> Any:
    return psutil.Process().children(recursive=True)


def ray_processes(temp_dir: Path) -> list[psutil.Process]:
    """Return our processes that name `temp_dir`."""
    return [p for p in descendants() if str(temp_dir) in " ".join(p.cmdline())]


def until(condition: Callable[[], bool]) -> None:
    """Wait for as long as the test may run: Ray takes minutes to start on a busy machine."""
    while not condition():
        time.sleep(0.1)


def look_around() -> dict[str, str | None]:
    """Return what a worker sees."""
    import serve

    assert serve.__file__ is not None
    names = ("GREETING", "RAY_AUTH_MODE", "RAY_USAGE_STATS_ENABLED")
    return {"serve": serve.__file__, **{name: os.environ.get(name) for name in names}}


@pytest.mark.ray
def test_a_local_cluster_is_private_and_leaves_nothing(short_dir):
    names = ("GREETING", "PYTHONPATH", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")
    before = {name: os.environ.get(name) for name in names}
    others = descendants()  # left by earlier tests
    started: list[psutil.Process] = []
    with (  # noqa: PT012
        pytest.raises(ZeroDivisionError),
        ray_session(ClusterConfig(), min_cpus=7, env={"GREETING": "hi"}),
    ):
        import ray

        seen = ray.get(ray.remote(look_around).remote())
        assert seen["GREETING"] == "hi"
        assert seen["RAY_AUTH_MODE"] == "token"
        assert seen["RAY_USAGE_STATS_ENABLED"] == "0"
        assert Path(str(seen["serve"])).is_relative_to(ROOT)
        assert ray.cluster_resources()["CPU"] >= 7
        (folder,) = short_dir.iterdir()
        assert folder.stat().st_mode & 0o777 == 0o700
        started += [process for process in descendants() if process not in others]
        listening = [
            connection.laddr.ip
            for process in [psutil.Process(), *started]
            for connection in process.net_connections(kind="tcp")
            if connection.status == psutil.CONN_LISTEN
        ]
        assert len(listening) > 5
        assert {ip.removeprefix("::ffff:") for ip in listening} == {"127.0.0.1"}
        with pytest.raises(RuntimeError, match="already"), ray_session(ClusterConfig()):
            pass
        raise ZeroDivisionError
    assert [process for process in started if process.is_running()] == []
    assert list(short_dir.iterdir()) == []
    assert {name: os.environ.get(name) for name in before} == before


@pytest.mark.ray
async def test_manage_resources_keeps_the_loop_running_and_a_named_temp_dir(short_dir):
    kept = short_dir / "kept"
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.05)
            ticks += 1

    ticking = asyncio.create_task(tick())
    async with manage_resources(ClusterConfig(num_cpus=1, temp_dir=str(kept))):
        import ray

        assert ticks > 10
        assert ray.cluster_resources()["CPU"] == 1
    ticking.cancel()
    assert list(short_dir.iterdir()) == [kept]
    assert (kept / "session_latest" / "logs").is_dir()


@pytest.mark.ray
async def test_cancelling_a_start_ends_what_it_started(short_dir):
    async def session() -> None:
        async with manage_resources(ClusterConfig(num_cpus=1)):
            raise AssertionError("entered in spite of the cancellation")

    starting = asyncio.create_task(session())
    while not ray_processes(short_dir):
        await asyncio.sleep(0.05)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert ray_processes(short_dir) == []
    assert list(short_dir.iterdir()) == []


@pytest.mark.ray
def test_sigterm_during_the_start_leaves_nothing(short_dir):
    code = (
        "from cluster.session import ray_session; from llamahome.config import ClusterConfig\n"
        "with ray_session(ClusterConfig()): raise AssertionError('it came up too early')"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    until(lambda: process.poll() is not None or bool(ray_processes(short_dir)))
    started = ray_processes(short_dir)
    assert started
    process.send_signal(signal.SIGTERM)
    assert process.wait() in (128 + signal.SIGTERM, signal.SIGTERM)
    until(lambda: not any(p.is_running() for p in started))
    assert list(short_dir.iterdir()) == []


def test_a_temp_dir_too_long_for_sockets_is_refused(tmp_path):
    config = ClusterConfig(temp_dir=str(tmp_path / ("x" * 60)))
    with pytest.raises(ConfigError, match=r"cluster\.temp_dir"), ray_session(config):
        pass


def test_a_ray_that_does_not_start_ends_in_one_line(monkeypatch):
    """A machine with too much to do starts Ray's processes later than Ray waits."""

    def init(**_: Any) -> None:
        raise Exception("The current node timed out during startup. This could happen because")

    monkeypatch.setattr("ray.init", init)
    with pytest.raises(ConfigError) as refused, ray_session(ClusterConfig()):
        pass
    assert "did not start (The current node timed out during startup); free" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_cluster_that_is_not_there_is_refused_at_once():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        for named in (address, f"ray://{address}"):
            config = ClusterConfig(address=named)
            with pytest.raises(ConfigError, match="no Ray answers"), ray_session(config):
                pass


@pytest.fixture
def other_cluster(short_dir, monkeypatch) -> Iterator[str]:
    """A running Ray of another owner, with a token."""
    token = short_dir / "token"
    token.write_text("0123456789" * 4)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    ports = free_ports(3)
    head = subprocess.Popen(
        [
            *(str(Path(sys.executable).parent / "ray"), "start", "--head", "--block"),
            *("--num-cpus=1", "--object-store-memory=80000000", "--include-dashboard=false"),
            *(f"--port={ports[0]}", f"--ray-client-server-port={ports[1]}"),
            *(f"--dashboard-agent-listen-port={ports[2]}", f"--temp-dir={short_dir}/ray"),
        ],
        env={**os.environ, "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert head.stdout is not None
    try:
        assert any("Ray runtime started" in line for line in head.stdout)
        yield f"127.0.0.1:{ports[0]}"
    finally:
        family = [head, *psutil.Process(head.pid).children(recursive=True)]
        head.send_signal(signal.SIGTERM)
        head.wait()
        for process in family[1:]:
            if process.is_running():
                process.kill()
        head.stdout.close()


@pytest.mark.ray
def test_a_cluster_that_runs_is_joined_and_only_left(other_cluster, short_dir):
    for _ in range(2):  # a second time, since it is still there
        with ray_session(ClusterConfig(address=other_cluster), env={"GREETING": "hi"}):
            import ray

            seen = ray.get(ray.remote(look_around).remote())
            assert seen["GREETING"] == "hi"
            assert Path(str(seen["serve"])).is_relative_to(ROOT)
    assert "RAY_AUTH_MODE" not in os.environ
