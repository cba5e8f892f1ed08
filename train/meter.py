"""Speed, utilisation, memory and time left of a run, in step with all workers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import psutil
import torch
import torch.distributed as dist

from llamahome.attention import Policy
from llamahome.attention.shape import ModelShape
from llamahome.config import TrainerConfig
from train.data import Batch
from train.flops import FlopCounter, LinearWeights
from train.model import bare_model
from train.peak import device_peak


class Meter:
    """Measures a run's steps from here on; all workers take part.

    Args:
        engine: a DeepSpeed engine.
        step: optimiser steps done before.
    """

    def __init__(self, engine: Any, trainer: TrainerConfig, step: int) -> None:
        bare = bare_model(engine.module)
        teacher = "dense" if trainer.kl_weight else None
        experts = getattr(bare.config, "num_experts_per_tok", None) or 1
        self._counter = FlopCounter(
            LinearWeights.of(engine.module, bare.get_output_embeddings(), experts),
            ModelShape.of(bare),
            "policy" if trainer.objective == "dpo" else teacher,
        )
        self._device: torch.device = engine.device
        self._peak = device_peak(self._device, trainer.precision)
        self._peak_of_all = float(self._gathered(self._peak.flops).sum())
        self._steps, self._first = trainer.steps, step
        self._started = time.perf_counter()

    @property
    def hardware(self) -> dict[str, Any]:
        """The peak that MFU refers to: operations a second of all workers, and its source."""
        workers = dist.get_world_size()
        return {"peak_flops": self._peak_of_all, "peak": f"{workers} x {self._peak.source}"}

    def after_step(
        self, step: int, batches: Sequence[Batch], policy: Policy, tokens: int, seconds: float
    ) -> dict[str, Any]:
        """Return a step's figures.

        Args:
            step: its number, from 1.
            batches: this worker's.
            policy: of this step.
            tokens: read by all workers.
            seconds: that the step took.

        Returns:
            `tokens_per_second` of all workers; `mfu`, their share of the peak (PaLM, appendix B);
            `memory_gb` of each worker, on a GPU the most that torch has reserved so far, else the
            process's resident memory; `seconds_left` at the pace since the run's start, with
            evaluations and checkpoints.
        """
        flops, memory = self._gathered(self._counter.step(batches, policy), self._memory()).T
        elapsed = time.perf_counter() - self._started
        pace = elapsed / (step - self._first)
        return {
            "tokens_per_second": tokens / seconds,
            "mfu": float(flops.sum()) / (seconds * self._peak_of_all),
            "memory_gb": [round(n / 1e9, 3) for n in memory.tolist()],
            "seconds_left": pace * (self._steps - step),
        }

    def _memory(self) -> int:
        """Return this worker's bytes."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_reserved(self._device)
        resident: int = psutil.Process().memory_info().rss
        return resident

    def _gathered(self, *values: float) -> torch.Tensor:
        """Return the values of each worker: (workers, values) in float64, on the CPU."""
        own = torch.tensor(values, dtype=torch.float64, device=self._device)
        every = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(every, own)
        return torch.stack(every).cpu()
