"""Our engine under measurement, through its public class, in a process of its own.

    python -m benchmarks.engine.ours      # speaks benchmarks/peers/protocol.py

Requests are submitted and answered as a user's are; a decode step is `Engine.step`, which includes
scheduling and sampling.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import torch

from benchmarks.engine.load import LoadShape, poisson_load
from benchmarks.engine.quality import perplexity_ratio
from benchmarks.peers.protocol import Reply, serve, timed_steps
from benchmarks.turns import read_in_turns
from benchmarks.workload import DENSE, evicting
from llamahome.attention import build_policy
from llamahome.config import EngineConfig, ModelConfig, PolicyConfig
from llamahome.engine import Engine, SamplingParams
from llamahome.models import load_model

ROOM = 256  # more tokens of an answer than any cell decodes


class Ours:
    """Our engine, dense or under h2o.

    Args:
        share: budget as a share of the prompt; None is dense.
        budget: a fixed budget, which replaces `share`.
        settings: fields of EngineConfig other than the size of the slots.
    """

    def __init__(
        self,
        model: str,
        threads: int,
        share: float | None,
        budget: int | None,
        settings: dict[str, Any],
    ) -> None:
        torch.set_num_threads(threads)
        self.model = load_model(ModelConfig(name=model)).model
        self.share, self.budget = share, budget
        self.settings = {"num_threads": threads, **settings}
        self._engine: Engine | None = None
        self._single: tuple[int, Engine] | None = None

    def prefill(self, prompt: list[int]) -> Reply:
        # Prompts of one length share an engine: packing the weights is not part of a prefill.
        if self._single is None or self._single[0] != len(prompt):
            self._single = None
            self._single = (len(prompt), self._open(1, len(prompt), len(prompt) + 1))
        engine = self._single[1]
        engine.submit("prefill", prompt, SamplingParams(max_tokens=1, ignore_eos=True))
        started = time.perf_counter()
        while engine.has_work:
            engine.step()
        return {"seconds": time.perf_counter() - started}

    def fill(self, prompts: list[list[int]]) -> Reply:
        self._single = None
        context = len(prompts[0])
        # In turns, a chunk each, so that all begin to decode at about the same time.
        length = context + ROOM
        config = EngineConfig(**self._settings_of(len(prompts), length, 1))
        engine = Engine(self.model, build_policy(self._policy(context)), config)
        self._engine = read_in_turns(engine, config)
        params = SamplingParams(max_tokens=length - context, ignore_eos=True)
        for number, prompt in enumerate(prompts):
            self._engine.submit(str(number), prompt, params)
        begun: set[str] = set()
        generated = 0
        while len(begun) < len(prompts):
            deltas = self._engine.step()
            begun |= {delta.request_id for delta in deltas}
            generated += len(deltas)
        return {
            "kv_bytes": self._engine.stats().kv_bytes,
            "mean_context": context + generated / len(prompts),
        }

    def decode(self, max_steps: int, seconds: float) -> Reply:
        del seconds  # always `max_steps`, so that each turn has its share of compactions
        assert self._engine is not None
        return {"steps": timed_steps(self._step, max_steps, float("inf"))}

    def drop(self) -> Reply:
        self._engine = None
        return {}

    def slot_bytes(self, context: int) -> Reply:
        """Return the bytes allocated for a request of `context` tokens, mass and positions too."""
        stats = self._open(1, context, context).stats()
        return {"slot_bytes": stats.kv_bytes, "runner": stats.runner}

    def load_test(self, prompts: list[list[int]], shape: dict[str, Any]) -> Reply:
        """Return latencies under Poisson arrivals, see benchmarks/engine/load.py."""
        own = LoadShape(**shape)
        engine = self._open(own.slots, own.longest, own.longest + own.answer, queued=len(prompts))
        return {"latency": asdict(poisson_load(engine, prompts, own))}

    def int8_quality(self, windows: list[list[int]]) -> Reply:
        """Return the dense perplexity with int8 weights over that with float32."""
        own = self._settings_of(len(windows), len(windows[0]), queued=1)
        measured, reference = (
            Engine(self.model, build_policy(DENSE), EngineConfig(**{**own, "weights": weights}))
            for weights in ("int8", "fp32")
        )
        return {"ratio": perplexity_ratio(measured, reference, windows)}

    def _step(self) -> None:
        assert self._engine is not None
        given = len(self._engine.step())
        used = self._engine.stats().slots_used
        if given != used:
            raise RuntimeError(f"a step gave {given} of {used} requests a token")

    def _open(self, slots: int, context: int, length: int, *, queued: int = 1) -> Engine:
        config = EngineConfig(**self._settings_of(slots, length, queued))
        return Engine(self.model, build_policy(self._policy(context)), config)

    def _settings_of(self, slots: int, length: int, queued: int) -> dict[str, Any]:
        return {
            "slots": slots,
            "max_length": length,
            "max_queued": queued,
            "max_queued_tokens": queued * length,
            **self.settings,
        }

    def _policy(self, context: int) -> PolicyConfig:
        if self.budget is not None:
            return evicting(self.budget)
        return DENSE if self.share is None else evicting(int(self.share * context))


if __name__ == "__main__":
    serve(Ours)
