"""Preference learning: DPO and ORPO, with both answers of a pair under the policy.

Axes: B sequences, T tokens, S answers, in pairs of chosen and rejected.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llamahome.attention import HybridAttention
from train.data import Batch
from train.objectives.chunked_head import (
    ChunkedHead,
    Columns,
    at_labels,
    label_places,
    label_tokens,
)


@dataclass(frozen=True)
class DPO:
    """Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290, equation 7).

    The reference is the trained model without its adapters, under the same policy.

    Attributes:
        beta: weight of the distance to the reference.
    """

    beta: float

    def __call__(self, engine: Any, batch: Batch, attention: HybridAttention) -> dict[str, Tensor]:
        """Return `loss`, `accuracy` and `margin` of the rewards, summed over the pairs of `batch`.

        Args:
            engine: wraps a PeftModel in `module`.
        """
        with torch.no_grad(), engine.module.disable_adapter():
            reference, _ = answer_log_probs(engine, batch, attention)
        log_probs, _ = answer_log_probs(engine, batch, attention)
        rewards = self.beta * (log_probs - reference)
        margin = rewards[0::2] - rewards[1::2]
        return {
            "loss": -F.logsigmoid(margin).sum(),
            "accuracy": (margin > 0).sum().to(margin.dtype),
            "margin": margin.detach().sum(),
        }


@dataclass(frozen=True)
class ORPO:
    """Odds ratio preference optimisation (Hong et al. 2024, arXiv 2403.07691, equations 6 and 7).

    Attributes:
        weight: lambda, of the odds ratio next to the cross-entropy of the chosen answer.
    """

    weight: float

    def __call__(self, engine: Any, batch: Batch, attention: HybridAttention) -> dict[str, Tensor]:
        """Return `loss`, `ce`, `accuracy` and `margin`, summed over the pairs of `batch`."""
        log_probs, tokens = answer_log_probs(engine, batch, attention)
        means = log_probs / tokens
        log_odds = means - torch.log1p(-means.exp())
        margin = log_odds[0::2] - log_odds[1::2]
        ce = -means[0::2].sum()
        return {
            "loss": ce - self.weight * F.logsigmoid(margin).sum(),
            "ce": ce.detach(),
            "accuracy": (margin > 0).sum().to(margin.dtype),
            "margin": margin.detach().sum(),
        }


def answer_log_probs(
    engine: Callable[..., Any], batch: Batch, attention: HybridAttention
) -> tuple[Tensor, Tensor]:
    """Return the log-probability of each answer, and how many tokens it has: (S,) both.

    Args:
        batch: `documents` tells the answers apart.
    """
    targets = label_tokens(batch)

    def log_probs(states: Tensor, head: ChunkedHead) -> Tensor:
        def one(logits: Tensor, part: slice) -> Columns:
            wide = torch.promote_types(logits.dtype, torch.float32)
            return (-F.cross_entropy(logits.to(wide), targets[part], reduction="none"),)

        return torch.cat([each for (each,) in head.over(states, one)])

    each = at_labels(engine, batch, attention, log_probs)
    row, position = label_places(batch)
    number = answer_numbers(batch)[row, position + 1]
    answers = 2 * count_pairs(batch)
    sums = each.new_zeros(answers).index_add(0, number, each)
    return sums, each.new_zeros(answers).index_add(0, number, torch.ones_like(each))


def answer_numbers(batch: Batch) -> Tensor:
    """Return the number of each token's answer in the batch, (B, T); padding has that before it."""
    documents = batch["documents"]
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = (documents[:, 1:] != documents[:, :-1]) & (documents[:, 1:] >= 0)
    return begins.flatten().cumsum(0).view_as(documents) - 1


def count_pairs(batch: Batch) -> int:
    """Return the pairs of a batch."""
    return (int(answer_numbers(batch).max()) + 1) // 2
