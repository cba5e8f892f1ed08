"""Distillation from the dense model: cross-entropy and the divergence from what it predicts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llamahome.attention import HybridAttention, build_policy
from llamahome.config import PolicyConfig
from llamahome.data import IGNORED
from train.data import Batch
from train.objectives.cross_entropy import predictions

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
            dense, _ = predictions(engine.module, batch, _DENSE)
        logits, targets = predictions(engine, batch, attention)
        labelled = targets != IGNORED
        log_probs = F.log_softmax(logits[labelled].float(), dim=-1)
        dense_log_probs = F.log_softmax(dense[labelled].float(), dim=-1)
        ce = F.nll_loss(log_probs, targets[labelled], reduction="sum")
        kl = F.kl_div(log_probs, dense_log_probs, reduction="sum", log_target=True)
        return {"loss": ce + self.kl_weight * kl, "ce": ce, "kl": kl}
