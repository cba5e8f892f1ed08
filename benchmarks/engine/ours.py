"""Our engine under measurement, through its public class, in a process of its own.

    python -m benchmarks.engine.ours      # speaks benchmarks/peers/protocol.py; engine.py starts it

Every request is submitted and read as a user's would be; a decode step is `Engine.step`, scheduling
and sampling included.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import torch

from benchmarks.engine.load import LoadShape, poisson_load
from benchmarks.engine.quality import perplexity_ratio
from benchmarks.peers.protocol import Reply, serve, timed_steps
from llamahome.attention import build_policy
from llamahome.config import EngineConfig, ModelConfig, PolicyConfig
from llamahome.engine import Engine, SamplingParams
from llamahome.models import load_model

DENSE = PolicyConfig(name="full", budget=None)
ROOM = 256  # tokens of an answer that are never reached


def evicting(budget: int) -> PolicyConfig:
    """H2O as it serves: half the entries for the recent ones, compacted every 64 tokens."""
    return PolicyConfig(budget=budget, recent=budget // 2, interval=min(64, budget // 2))


class Ours:
    """
    Args:
        share: of a prompt's entries that are kept; None is dense.
        budget: entries that are kept, whatever the prompt, in place of `share`.
        settings: of EngineConfig, beyond the size of the slots.
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
        # One engine for prompts of one length, so that packing weights is not counted.
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
        # The scheduler reads prompts in turns, a chunk each; the first to end decodes a little.
        length = context + ROOM
        self._engine = self._open(len(prompts), context, length)
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
        del seconds  # always as many steps, so that every compaction is counted
        assert self._engine is not None
        return {"steps": timed_steps(self._step, max_steps, float("inf"))}

    def drop(self) -> Reply:
        self._engine = None
        return {}

    def slot_bytes(self, context: int) -> Reply:
        """Bytes of one request of `context` tokens, as allocated, mass and positions included."""
        stats = self._open(1, context, context).stats()
        return {"slot_bytes": stats.kv_bytes, "runner": stats.runner}

    def load_test(self, prompts: list[list[int]], shape: dict[str, Any]) -> Reply:
        """Latencies under Poisson arrivals, see benchmarks/engine/load.py."""
        own = LoadShape(**shape)
        engine = self._open(own.slots, own.longest, own.longest + own.answer, queued=len(prompts))
        return {"latency": asdict(poisson_load(engine, prompts, own))}

    def int8_quality(self, windows: list[list[int]]) -> Reply:
        """Perplexity with int8 weights over that with float32, with dense attention."""
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
