"""Cross-entropy: the log-probability of each labelled token, under the policy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from llamahome.attention import HybridAttention
from llamahome.data import IGNORED
from train.data import Batch
from train.objectives.predictions import predictions


def cross_entropy(
    model: Callable[..., Any], batch: Batch, attention: HybridAttention
) -> dict[str, Tensor]:
    """Return `loss`, summed over the labels of `batch`."""
    logits, targets = predictions(model, batch, attention)
    loss = F.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return {"loss": loss}
