"""Cross-entropy: the log-probability of each labelled token, under the policy.

Axes: B sequences, T tokens, P positions that predict a label, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from llamahome.attention import Documents, HybridAttention
from llamahome.data import IGNORED
from train.data import Batch
from train.objectives.label_loss import label_loss


def cross_entropy(
    model: Callable[..., Any], batch: Batch, attention: HybridAttention
) -> dict[str, Tensor]:
    """Return `loss`, summed over the labels of `batch`."""
    logits, targets = predictions(model, batch, attention)
    return {"loss": label_loss(logits, targets)[0]}


def predictions(
    model: Callable[..., Any], batch: Batch, attention: HybridAttention
) -> tuple[Tensor, Tensor]:
    """Return logits (B, P, V) and their targets (B, P), where any sequence has a label.

    Only these positions reach the vocabulary projection, which is most of a small model's cost
    and memory.
    """
    if "documents" in batch:
        attention = attention.over(Documents.of(batch["documents"]))
    targets = batch["labels"][:, 1:]  # token t is predicted at t - 1
    predicting = (targets != IGNORED).any(dim=0).nonzero().squeeze(1)
    logits = model(
        input_ids=batch["input_ids"],
        position_ids=attention.position_ids(batch["input_ids"]),
        use_cache=False,
        logits_to_keep=predicting,
        hybrid=attention,
    ).logits
    return logits, targets[:, predicting]
