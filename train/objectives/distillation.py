"""Distillation from the dense model: cross-entropy and the divergence from what it predicts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llamahome.attention import HybridAttention, build_policy
from llamahome.config import PolicyConfig
from train.data import Batch
from train.objectives.chunked_head import ChunkedHead, Columns, at_labels, label_tokens, summed
from train.objectives.label_loss import label_loss

_DENSE = HybridAttention(build_policy(PolicyConfig.dense()))


@dataclass(frozen=True)
class Distillation:
    """Cross-entropy + `kl_weight` x KL(dense || under the policy).

    The dense model is the trained one without its adapters and without eviction, so there is no
    second model in memory (Hinton et al. 2015, arXiv 1503.02531, with itself as the teacher).

    Attributes:
        label_smoothing: of the cross-entropy, as `CrossEntropy` has it.
    """

    kl_weight: float
    label_smoothing: float = 0.0

    def __call__(self, engine: Any, batch: Batch, attention: HybridAttention) -> dict[str, Tensor]:
        """Return `loss` and its parts `ce` and `kl`, summed over the labels of `batch`.

        Args:
            engine: wraps a PeftModel in `module`.
        """
        targets = label_tokens(batch)
        with torch.no_grad(), engine.module.disable_adapter():
            dense = at_labels(engine, batch, _DENSE, lambda states, _: states)

        def sums(states: Tensor, head: ChunkedHead) -> list[Tensor]:
            def one(logits: Tensor, part: slice) -> Columns:
                with torch.no_grad(), engine.module.disable_adapter():
                    teacher = head.logits(dense[part])
                return label_loss(
                    logits, targets[part], teacher, self.kl_weight, self.label_smoothing
                )

            return summed(head.over(states, one))

        loss, ce, kl = at_labels(engine, batch, attention, sums)
        return {"loss": loss, "ce": ce, "kl": kl}
