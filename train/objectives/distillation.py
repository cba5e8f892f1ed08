"""Distillation from the dense model: cross-entropy and the divergence from what it predicts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llamahome.attention import HybridAttention, build_policy
from llamahome.config import PolicyConfig
from train.data import Batch
from train.objectives.cross_entropy import predictions
from train.objectives.label_loss import label_loss

_DENSE = HybridAttention(build_policy(PolicyConfig.dense()))


@dataclass(frozen=True)
class Distillation:
    """Cross-entropy + `kl_weight` x KL(dense || under the policy).

    The dense model is the trained one without its adapters and without eviction, so there is no
    second model in memory (Hinton et al. 2015, arXiv 1503.02531, with itself as the teacher).
    """

    kl_weight: float

    def __call__(self, engine: Any, batch: Batch, attention: HybridAttention) -> dict[str, Tensor]:
        """Return `loss` and its parts `ce` and `kl`, summed over the labels of `batch`.

        Args:
            engine: wraps a PeftModel in `module`.
        """
        with torch.no_grad(), engine.module.disable_adapter():
            dense, _ = predictions(engine, batch, _DENSE)
        logits, targets = predictions(engine, batch, attention)
        loss, ce, kl = label_loss(logits, targets, dense, self.kl_weight)
        return {"loss": loss, "ce": ce, "kl": kl}
