"""Objectives: what a run minimises, one file each.

An objective maps (engine, batch, attention) to the columns that a run reports, each summed over the
labels of the batch; `loss` is the one that is minimised. Sums, so that the mean over a global batch
is exact however many labels each worker and micro-batch holds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from llamahome.attention import HybridAttention
from llamahome.config import TrainerConfig
from train.data import Batch
from train.objectives.cross_entropy import cross_entropy
from train.objectives.distillation import Distillation

Objective = Callable[[Any, Batch, HybridAttention], dict[str, Tensor]]

__all__ = ["Distillation", "Objective", "build_objective", "cross_entropy"]


def build_objective(trainer: TrainerConfig) -> Objective:
    """Return the objective that a run's config asks for."""
    return Distillation(trainer.kl_weight) if trainer.kl_weight else cross_entropy
