"""Servers under the mix: our engine, now and with prompts in turns, and llama.cpp's server."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch

from benchmarks.engine.load import Timeline, replay
from benchmarks.mixed.load import Arrival, Form
from benchmarks.process import SCRIPTS, Process
from benchmarks.turns import read_in_turns
from benchmarks.workload import evicting
from llamahome.attention import build_policy
from llamahome.config import EngineConfig, ModelConfig
from llamahome.engine import Engine
from llamahome.models import EMBEDDED_MODEL, load_model
from llamahome.models.embedded import embedded_gguf

BUDGET = 256
SLOTS = 16
WARM = list(range(10, 74))


class Server(Protocol):
    """A server that answers requests as they arrive."""

    def run(self, requests: Sequence[Arrival]) -> list[Timeline]: ...


class Ours:
    """Our engine at a budget of 256.

    Args:
        turns: read prompts in turns.
    """

    def __init__(self, form: Form, threads: int, slowdown: float, *, turns: bool) -> None:
        torch.set_num_threads(threads)
        self._config = EngineConfig(
            slots=SLOTS,
            max_length=form.long_tokens + form.long_answer,
            max_queued=10_000,
            max_queued_tokens=10**9,
            num_threads=threads,
            draft_tokens=0,
            snapshot_bytes=0,
            slowdown=slowdown,
        )
        model = load_model(ModelConfig(name=EMBEDDED_MODEL)).model
        self._engine = Engine(model, build_policy(evicting(BUDGET)), self._config)
        if turns:
            read_in_turns(self._engine, self._config)
        replay(self._engine, [WARM], [0.0], [8])

    def run(self, requests: Sequence[Arrival]) -> list[Timeline]:
        return replay(self._engine, *_columns(requests))


class LlamaCpp:
    """llama.cpp's server with the weights as they ship, in a process of its own."""

    def __init__(self, form: Form, threads: int, work: Path) -> None:
        env = {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(sys.path)}
        script = [str(SCRIPTS / "llama_server_peer.py")]
        log = work.resolve() / "logs" / "llama-server.log"
        self._process = Process(Path(sys.executable), script, log, env)
        length = form.long_tokens + form.long_answer
        gguf = str(embedded_gguf())
        self._process.ask("load", gguf=gguf, threads=threads, slots=SLOTS, length=length)
        self._process.ask("replay", prompts=[WARM], times=[0.0], answers=[8])

    def run(self, requests: Sequence[Arrival]) -> list[Timeline]:
        prompts, times, answers = _columns(requests)
        reply = self._process.ask("replay", prompts=prompts, times=times, answers=answers)
        pairs = zip(times, reply["tokens"], strict=True)
        return [Timeline(arrived=at, tokens=tokens) for at, tokens in pairs]

    def close(self) -> None:
        self._process.close()


def _columns(requests: Sequence[Arrival]) -> tuple[list[list[int]], list[float], list[int]]:
    prompts = [own.prompt for own in requests]
    return prompts, [own.at for own in requests], [own.answer for own in requests]
