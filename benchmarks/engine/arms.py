"""Who takes part: every engine in the settings in which it is measured."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.engine.measure import Arm
from benchmarks.engine.peers import PEERS, Peer, PeerError, Process, environment
from benchmarks.engine.results import DENSE, FIFTH, TENTH

ROOT = Path(__file__).parents[2]
KVPRESS_SHARE = 0.1
# GiB that vLLM reserves at once; 32 requests x 2,048 tokens take 3.1 in float32.
VLLM_KV = 4


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all arms share.

    Attributes:
        model: name of ours, for us; `folder` is the same as Hugging Face files, `gguf` as it ships.
        probe: a prompt for peers that choose between their own means.
        engine: fields of EngineConfig for ours, beyond the defaults.
        work: where environments, logs and requantised weights lie.
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
    """The python of each peer that installs, and of each that does not, why."""
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
    """Ours at one budget, a process per context."""
    return {n: our_arm(f"ours flat {n}", setting, share=None, budget=budget) for n in contexts}


def peer_arms(setting: Setting, pythons: dict[str, Path]) -> list[Arm]:
    """Every peer that is installed, in each of its settings."""
    arms = []
    for peer in PEERS:
        if peer.name in pythons:
            python = pythons[peer.name]
            for name, load, env, crowd in _settings_of(peer.name, python, setting):
                start = _starter(name, python, [peer.command], setting, env)
                arms.append(Arm(name=name, start=start, load=load, crowd=crowd))
    return arms


def _settings_of(
    peer: str, python: Path, setting: Setting
) -> list[tuple[str, dict[str, Any], dict[str, str], bool]]:
    """(arm, arguments of load, environment, whether it joins a crowd)."""
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
    """bfloat16 halves the traffic, but only with the processor's own instructions for it."""
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
    # Its own advice for the best speed.
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

    def start() -> Process:
        log.parent.mkdir(parents=True, exist_ok=True)
        return Process(python, arguments, log, own)

    return start
