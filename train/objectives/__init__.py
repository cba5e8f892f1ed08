"""Objectives: what a run minimises, one file each.

An objective maps (engine, batch, attention) to the columns that a run reports, each a sum over what
it counts in the batch, labels or pairs; `loss` is the one that is minimised. Sums, so that the mean
over a global batch is exact however many of them each worker and micro-batch holds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from llamahome.attention import HybridAttention
from llamahome.config import TrainerConfig
from llamahome.data import IGNORED
from train.data import Batch
from train.objectives.cross_entropy import CrossEntropy, cross_entropy
from train.objectives.distillation import Distillation
from train.objectives.preference import DPO, ORPO, count_pairs

Sums = Callable[[Any, Batch, HybridAttention], dict[str, Tensor]]

__all__ = [
    "DPO",
    "ORPO",
    "CrossEntropy",
    "Distillation",
    "Objective",
    "build_objective",
    "cross_entropy",
]


def count_labels(batch: Batch) -> int:
    """Return the predicted labels of a batch."""
    return int((batch["labels"][:, 1:] != IGNORED).sum())


@dataclass(frozen=True)
class Objective:
    """Columns of a run, and what they are means over.

    Attributes:
        sums: the columns of a batch.
        held_out: those of a held-out batch, of which `loss` is reported.
        count: what both are sums over.
    """

    sums: Sums
    held_out: Sums = cross_entropy
    count: Callable[[Batch], int] = count_labels


def build_objective(trainer: TrainerConfig) -> Objective:
    """Return the objective that a run's config asks for."""
    if trainer.objective == "dpo":
        preference: Sums = DPO(trainer.beta)
        return Objective(preference, preference, count_pairs)
    if trainer.objective == "orpo":
        preference = ORPO(trainer.beta)
        return Objective(preference, preference, count_pairs)
    smoothing = trainer.label_smoothing
    if trainer.kl_weight:
        return Objective(Distillation(trainer.kl_weight, smoothing))
    return Objective(CrossEntropy(smoothing))
