"""LlamaHome of some checkout, for benchmarks/before_after.py: prefill, decode, training steps.

PYTHONPATH says which checkout. Outside of `distill` only names that a user imports appear here,
since two checkouts may differ in all others; policies arrive as fields of PolicyConfig.
"""

from __future__ import annotations

import hashlib
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from protocol import Reply, serve, timed_steps

import llamahome
from llamahome.attention import HybridAttention, build_policy
from llamahome.config import EngineConfig, LoraConfig, ModelConfig, PolicyConfig
from llamahome.engine import Engine, SamplingParams
from llamahome.models import EMBEDDED_MODEL, load_model

ROOM = 2048  # tokens of an answer that are never reached


class Checkout:
    def __init__(self, root: str, threads: int) -> None:
        found = Path(llamahome.__file__).resolve()
        if not found.is_relative_to(root):
            raise RuntimeError(f"imports {found}, not the llamahome of {root}")
        torch.set_num_threads(threads)
        self.threads = threads
        self.model = load_model(ModelConfig()).model
        self._engine: Engine | None = None
        self._names: list[str] = []
        self._digest = hashlib.sha256()
        self._adapted: Any = None

    def open(self, policy: dict[str, Any], requests: int, length: int) -> Reply:
        """Open an engine for so many requests of `length` tokens, its weights packed."""
        # A chunk in every step, so that the first to decode do not end before the last begin.
        steady: dict[str, Any] = {"slowdown": 1e6} if hasattr(EngineConfig, "slowdown") else {}
        config = EngineConfig(
            slots=requests,
            max_length=length + ROOM,
            max_queued=requests,
            max_queued_tokens=requests * length,
            num_threads=self.threads,
            draft_tokens=0,
            snapshot_bytes=0,
            **steady,
        )
        self._engine = Engine(self.model, build_policy(PolicyConfig(**policy)), config)
        return {"runner": self._engine.stats().runner}

    def fill(self, prompts: list[list[int]]) -> Reply:
        """Cancel all requests, and read these prompts until each has its first token."""
        assert self._engine is not None
        for name in self._names:
            self._engine.cancel(name)
        self._names = [str(number) for number in range(len(prompts))]
        params = SamplingParams(max_tokens=ROOM, ignore_eos=True)
        started = time.perf_counter()
        for name, prompt in zip(self._names, prompts, strict=True):
            self._engine.submit(name, prompt, params)
        begun: set[str] = set()
        while len(begun) < len(prompts):
            begun |= self._step()
        return {"seconds": time.perf_counter() - started}

    def decode(self, steps: int) -> Reply:
        """Decode so many steps; the mean, since one of them compacts."""
        return {"seconds": statistics.fmean(timed_steps(self._decode, steps, float("inf")))}

    def drop(self) -> Reply:
        """Close the engine; the digest is of every token that it gave."""
        assert self._engine is not None
        self._engine.close()
        self._engine = None
        self._names = []
        digest, self._digest = self._digest.hexdigest()[:16], hashlib.sha256()
        return {"digest": digest}

    def train(self, policy: dict[str, Any], prompt: list[int]) -> Reply:
        """Compute one loss and its gradients with hybrid attention."""
        ids = torch.tensor([prompt])
        attention = HybridAttention(build_policy(PolicyConfig(**policy)), self.model)
        attention.attach(self.model)
        started = time.perf_counter()
        loss = self.model(
            input_ids=ids,
            position_ids=attention.position_ids(ids),
            labels=ids,
            use_cache=False,
            hybrid=attention,
        ).loss
        loss.backward()
        seconds = time.perf_counter() - started
        self.model.zero_grad(set_to_none=True)
        return {"seconds": seconds, "digest": float(loss).hex()}

    def distill(self, policy: dict[str, Any], prompt: list[int]) -> Reply:
        """Compute loss and gradients of `trainer=distill`, every token with a label.

        The digest is the loss to five digits: sums may be taken in another order.
        """
        from train.lora import add_adapters
        from train.objectives import Distillation

        if self._adapted is None:
            HybridAttention.attach(self.model)
            self._adapted = add_adapters(self.model, LoraConfig(), EMBEDDED_MODEL).train()
        ids = torch.tensor([prompt])
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
        attention = HybridAttention(build_policy(PolicyConfig(**policy)), self.model)
        started = time.perf_counter()
        loss = Distillation(kl_weight=1.0)(_Engine(self._adapted), batch, attention)["loss"]
        loss.backward()
        seconds = time.perf_counter() - started
        self._adapted.zero_grad(set_to_none=True)
        return {"seconds": seconds, "digest": f"{loss.item():.5g}"}

    def _decode(self) -> None:
        given = self._step()
        if len(given) != len(self._names):
            raise RuntimeError(f"a step gave {len(given)} of {len(self._names)} requests a token")

    def _step(self) -> set[str]:
        assert self._engine is not None
        deltas = self._engine.step()
        for delta in deltas:
            self._digest.update(f"{delta.request_id}:{delta.token} ".encode())
        return {delta.request_id for delta in deltas}


class _Engine:
    """A stand-in for DeepSpeed's engine: callable, with the model inside."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def __call__(self, **arguments: Any) -> Any:
        return self.module(**arguments)


if __name__ == "__main__":
    serve(Checkout)
