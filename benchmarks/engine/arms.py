"""Arms: every engine, in each of the settings in which it is measured."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.engine.measure import Arm
from benchmarks.engine.peers import PEERS, Peer, environment
from benchmarks.engine.results import DENSE, FIFTH, TENTH
from benchmarks.process import SCRIPTS, PeerError, Process

ROOT = Path(__file__).parents[2]
KVPRESS_SHARE = 0.1
# GiB that vLLM reserves at once; 32 requests x 2,048 tokens take 3.1 in float32.
VLLM_KV = 4


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Values that all arms share.

    Attributes:
        model: name of the model; `folder` holds its Hugging Face files, `gguf` is as it ships.
        probe: a prompt on which a peer may try its own options.
        engine: fields of our EngineConfig that are no defaults.
        work: folder for environments, logs and requantised weights.
    """

    model: str
    folder: Path
    gguf: Path
    threads: int
    probe: list[int]
    engine: dict[str, Any]
    work: Path

    @property
    def envs(self) -> Path:
        return self.work.resolve() / "envs"


def install(
    peers: Sequence[Peer], envs: Path, say: Callable[[str], None]
) -> tuple[dict[str, Path], dict[str, str]]:
    """Return the python of each peer that installs, and the reason of each that does not."""
    pythons, missing = {}, {}
    for peer in peers:
        try:
            pythons[peer.name] = environment(peer, envs)
            say(f"{peer.name}: {' '.join(peer.packages) or 'in our own environment'}")
        except PeerError as error:
            missing[peer.name] = str(error)
            say(f"{peer.name} does not install: {error}")
    return pythons, missing


def our_arm(name: str, setting: Setting, *, share: float | None, budget: int | None) -> Arm:
    load = {
        "model": setting.model,
        "threads": setting.threads,
        "share": share,
        "budget": budget,
        "settings": setting.engine,
    }
    python, arguments = Path(sys.executable), ["-m", "benchmarks.engine.ours"]
    start = _starter(name, python, arguments, setting, {})
    return Arm(name=name, start=start, load=load, ours=True)


def our_arms(setting: Setting) -> list[Arm]:
    shares = {DENSE: None, FIFTH: 0.2, TENTH: 0.1}
    return [our_arm(name, setting, share=s, budget=None) for name, s in shares.items()]


def flat_arms(setting: Setting, contexts: Sequence[int], budget: int) -> dict[int, Arm]:
    """Return our engine at one budget, in a process for each context."""
    return {n: our_arm(f"ours flat {n}", setting, share=None, budget=budget) for n in contexts}


def peer_arms(setting: Setting, pythons: dict[str, Path]) -> list[Arm]:
    """Return every installed peer in each of its settings."""
    arms = []
    for peer in PEERS:
        if peer.name in pythons:
            python = pythons[peer.name]
            for name, load, env, crowd in _settings_of(peer.name, python, setting):
                start = _starter(name, python, [str(SCRIPTS / peer.script)], setting, env)
                arms.append(Arm(name=name, start=start, load=load, crowd=crowd))
    return arms


def _settings_of(
    peer: str, python: Path, setting: Setting
) -> list[tuple[str, dict[str, Any], dict[str, str], bool]]:
    """Return (arm, arguments of load, environment, whether it takes part in a crowd)."""
    folder, threads = {"model": str(setting.folder)}, {"threads": setting.threads}
    if peer == "transformers":
        return [(peer, {**folder, **threads}, {}, True)]
    if peer == "kvpress":
        name = f"kvpress {100 * KVPRESS_SHARE:.0f} %"
        return [(name, {**folder, **threads, "share": KVPRESS_SHARE}, {}, False)]
    if peer == "vllm_cpu":
        return [(peer, {**folder, "dtype": _vllm_dtype()}, _vllm_env(python), True)]
    assert peer == "llama_cpp"
    load = {"gguf": str(setting.gguf), **threads, "probe": setting.probe}
    q8_0 = str(setting.work.resolve() / f"{setting.gguf.stem}.Q8_0.gguf")
    return [
        ("llama_cpp Q4_1", {**load, "q8_0": None}, {}, True),
        ("llama_cpp Q8_0", {**load, "q8_0": q8_0}, {}, False),
    ]


def _vllm_dtype() -> str:
    """Choose bfloat16, which halves the traffic, where the processor has instructions for it."""
    cpuinfo = Path("/proc/cpuinfo")
    known = cpuinfo.read_text() if cpuinfo.is_file() else ""
    return "bfloat16" if "avx512_bf16" in known or "amx_bf16" in known else "float32"


def _vllm_env(python: Path) -> dict[str, str]:
    env = {
        "VLLM_CPU_KVCACHE_SPACE": str(VLLM_KV),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in the process that steps it
        "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    # vLLM's documentation advises this for speed.
    openmp = python.parents[1] / "lib" / "libiomp5.so"
    return {**env, "LD_PRELOAD": str(openmp)} if openmp.is_file() else env


def _starter(
    name: str, python: Path, arguments: list[str], setting: Setting, env: dict[str, str]
) -> Callable[[], Process]:
    log = setting.work.resolve() / "logs" / f"{name.replace(' ', '-').replace('%', 'pc')}.log"
    own = {
        "OMP_NUM_THREADS": str(setting.threads),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
        **env,
    }

    return lambda: Process(python, arguments, log, own)
