"""Ray sessions: start or join a cluster. Below `train/` and `serve/` only this imports Ray."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import IO, Any

import psutil

from cluster.relay import relayed_output
from llamahome.config import ClusterConfig, ConfigError, checkout
from llamahome.config.checks import require
from llamahome.config.writable import check_writable

logger = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 100 * 1024**2
# Ray adds about 65 characters below its temp dir, and a unix socket's path ends at 107.
LONGEST_TEMP_DIR = 40
STOP_TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 5.0


@contextlib.contextmanager
def ray_session(
    cluster: ClusterConfig,
    *,
    min_cpus: float = 1,
    env: Mapping[str, str] | None = None,
    relay: str | None = None,
) -> Iterator[None]:
    """Connect to Ray for the length of a `with` block.

    `local` starts a cluster that listens on loopback and asks every client for a token. It ends
    with the block and removes its temp dir, also after errors, Ctrl-C and SIGTERM. Any other
    address is joined, with a token if there is one, and only left again. Workers import `train` and
    `serve` from this repository's path, which is the same on every node that `ray up` prepares.

    Args:
        min_cpus: logical CPUs that the caller will ask for; a local cluster without `num_cpus` has
            at least these. Ray counts them; it does not check that the machine has them.
        env: environment variables for the workers; for all of Ray if the cluster is local.
        relay: `text` or `json` shows what workers write to standard error, see `relayed_output`.

    Raises:
        ConfigError: when no Ray runs at `cluster.address`, or `cluster.temp_dir` is too long.
        RuntimeError: inside another session, since a process has one Ray connection.
    """
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        raise RuntimeError("this process is connected to Ray already; leave that session first")
    worker_env = {**(env or {}), "PYTHONPATH": _python_path()}
    session = (
        _own_cluster(cluster, min_cpus, worker_env, relayed=relay is not None)
        if cluster.address == "local"
        else _joined_cluster(cluster.address, worker_env, relayed=relay is not None)
    )
    output = contextlib.nullcontext() if relay is None else relayed_output(relay)
    with _sigterm_unwinds(), session, output:
        yield


@contextlib.asynccontextmanager
async def manage_resources(
    cluster: ClusterConfig, *, min_cpus: float = 1, env: Mapping[str, str] | None = None
) -> AsyncIterator[None]:
    """Open `ray_session` for `async with`: Ray starts and stops in a thread, the loop runs on.

    The loop's owner handles SIGTERM, since only the main thread may handle signals.
    """
    session = ray_session(cluster, min_cpus=min_cpus, env=env)
    start = asyncio.create_task(asyncio.to_thread(session.__enter__))
    try:
        await asyncio.shield(start)
        yield
    finally:
        await asyncio.wait({start})  # a cancelled caller must not leave a cluster that is starting
        if start.exception() is None:
            await asyncio.to_thread(session.__exit__, None, None, None)


@contextlib.contextmanager
def _own_cluster(
    cluster: ClusterConfig, min_cpus: float, env: Mapping[str, str], *, relayed: bool
) -> Iterator[None]:
    with _private_dir() as private:
        temp_dir = private / "ray" if cluster.temp_dir is None else _checked(cluster.temp_dir)
        token = private / "auth_token"
        token.write_text(secrets.token_hex(32))
        # Not "disabled": other users of the machine could connect, and Ray Serve's replicas open a
        # port to every network whatever Ray itself does.
        auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        with _environment({**env, **auth}, loopback=True):
            import ray

            try:
                with _failed_start_is_one_line():
                    context = ray.init(
                        address="local",
                        num_cpus=cluster.num_cpus or max(os.cpu_count() or 1, math.ceil(min_cpus)),
                        object_store_memory=OBJECT_STORE_BYTES,
                        include_dashboard=cluster.dashboard,
                        log_to_driver=relayed,
                        logging_level=logging.ERROR,
                        _temp_dir=str(temp_dir),
                    )
                _on_sigterm(_raise_exit)  # ray.init has put its own handler in place
                if cluster.dashboard:
                    url = context.dashboard_url
                    logger.info("dashboard at http://%s, its token in %s", url, token)
                yield
            finally:
                started = _processes(temp_dir)
                ray.shutdown()
                _end(started)


@contextlib.contextmanager
def _failed_start_is_one_line() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # Ray raises no narrower one
        reason = str(error).strip().partition("\n")[0].partition(". ")[0]
        raise ConfigError(
            f"cluster.address=local: Ray did not start ({reason}); free CPUs and memory of this "
            "machine and try again, or join a Ray that runs with cluster.address=auto"
        ) from error


@contextlib.contextmanager
def _joined_cluster(address: str, env: Mapping[str, str], *, relayed: bool) -> Iterator[None]:
    _check_reachable(address)
    with _environment({"RAY_AUTH_MODE": _auth_mode()}):
        import ray

        try:
            ray.init(
                address=address,
                runtime_env={
                    "env_vars": dict(env),
                    "worker_process_setup_hook": "cluster.session.use_the_nodes_interface",
                },
                log_to_driver=relayed,
                logging_level=logging.ERROR,
            )
        except ConnectionError as error:
            raise _no_ray(address) from error
        _on_sigterm(_raise_exit)
        try:
            yield
        finally:
            ray.shutdown()


def _check_reachable(address: str) -> None:
    """Refuse a dead host:port at once; Ray itself tries it for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        try:
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
        except OSError as error:
            raise _no_ray(address) from error


def _no_ray(address: str) -> ConfigError:
    return ConfigError(
        f"cluster.address={address!r}: no Ray answers there; start one with `ray up` or "
        "`ray start --head`, or use cluster=local"
    )


def use_the_nodes_interface() -> None:
    """Make Gloo use, in each worker, the network interface that Ray uses.

    By default it takes the address of the machine's own name, on Debian and Ubuntu 127.0.1.1, which
    no other machine reaches.
    """
    import ray

    address = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    for interface, addresses in psutil.net_if_addrs().items():
        if any(known.address == address for known in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)


def _auth_mode() -> str:
    """Ask for a token wherever one exists; Ray's own clients send none by default."""
    has_token = (
        "RAY_AUTH_TOKEN" in os.environ
        or "RAY_AUTH_TOKEN_PATH" in os.environ
        or (Path.home() / ".ray" / "auth_token").exists()
    )
    return os.environ.get("RAY_AUTH_MODE", "token" if has_token else "disabled")


@contextlib.contextmanager
def _environment(variables: Mapping[str, str], *, loopback: bool = False) -> Iterator[None]:
    """Set `variables` for Ray and its processes, and restore everything afterwards.

    Ray reads them when it is first imported, perhaps before this call, so the values it keeps are
    refreshed by hand. `loopback` makes every port listen on 127.0.0.1. Ray has this for laptops
    whose firewall asks about each port; on Linux it listens on all interfaces.
    """
    variables = {**variables, "RAY_USAGE_STATS_ENABLED": "0"}
    if loopback:
        variables["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    before = {name: os.environ[name] for name in variables if name in os.environ}
    os.environ.update(variables)
    from ray._private import ray_constants
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  # compiled

    reachable = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = reachable and not loopback
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
    try:
        yield
    finally:
        for name in variables:
            os.environ.pop(name, None)
        os.environ.update(before)
        ray_constants.ENABLE_RAY_CLUSTER = reachable
        Config.initialize("")
        AuthenticationTokenLoader.instance().reset_cache()


def _python_path() -> str:
    return os.pathsep.join(filter(None, (str(checkout()), os.environ.get("PYTHONPATH"))))


@contextlib.contextmanager
def _private_dir() -> Iterator[Path]:
    """Create a folder that only this user can enter, around Ray's temp dir, which is open to all.

    It is in the system's folder for temporary files if sockets fit below that, else in /tmp.
    """
    usual = tempfile.gettempdir()
    parent = usual if len(os.fsencode(usual)) + 25 <= LONGEST_TEMP_DIR else "/tmp"
    with _reaper() as reaper, tempfile.TemporaryDirectory(prefix="llamahome-", dir=parent) as name:
        folder = Path(name).resolve()
        reaper.write(f"{folder}\n")
        reaper.flush()
        yield folder


@contextlib.contextmanager
def _reaper() -> Iterator[IO[str]]:
    """Start the program that ends Ray and removes the folder when this process is killed."""
    program = Path(__file__).with_name("reaper.py")
    with subprocess.Popen(
        [sys.executable, str(program)], stdin=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdin is not None
        yield process.stdin


def _checked(configured: str) -> Path:
    folder = Path(configured).resolve()
    require(
        len(os.fsencode(folder)) <= LONGEST_TEMP_DIR,
        "cluster.temp_dir",
        str(folder),
        f"Ray puts unix sockets below it, so it has at most {LONGEST_TEMP_DIR} characters",
    )
    check_writable(folder, "cluster.temp_dir")
    return folder


def _processes(temp_dir: Path) -> list[psutil.Process]:
    """Return Ray's processes: services that name the temp dir, and the workers below them."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if any(str(temp_dir) in argument for argument in child.cmdline()):
                found += [child, *child.children(recursive=True)]
    return found


def _end(processes: list[psutil.Process]) -> None:
    """Wait for Ray's processes to end, and kill those that hang."""
    _, alive = psutil.wait_procs(processes, timeout=STOP_TIMEOUT_S)
    for process in alive:
        logger.warning("killing process %d of the local Ray cluster: it did not stop", process.pid)
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=STOP_TIMEOUT_S)


@contextlib.contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """Turn SIGTERM into an exception, so that every `finally` runs, as after Ctrl-C."""
    before = signal.getsignal(signal.SIGTERM)
    _on_sigterm(_raise_exit)
    try:
        yield
    finally:
        _on_sigterm(before or signal.SIG_DFL)


def _on_sigterm(handler: Callable[[int, FrameType | None], Any] | int) -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _raise_exit(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)
