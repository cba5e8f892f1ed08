"""The loss of a global batch: the mean over its labelled tokens, whoever computes them.

Axes: B sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from llamahome.attention import HybridAttention
from llamahome.data import IGNORED

Batch = Mapping[str, Tensor]


def label_loss(model: Callable[..., Any], batch: Batch, attention: HybridAttention) -> Tensor:
    """Cross-entropy summed over the labelled tokens of `batch`, under `attention`'s policy.

    Only positions that predict a label in some sequence reach the vocabulary projection, which is
    most of a small model's cost and memory.
    """
    targets = batch["labels"][:, 1:]  # token t is predicted at t - 1
    predicting = (targets != IGNORED).any(dim=0).nonzero().squeeze(1)
    logits = model(
        input_ids=batch["input_ids"],
        use_cache=False,
        logits_to_keep=predicting,
        hybrid=attention,
    ).logits
    return F.cross_entropy(
        logits.flatten(0, 1).float(),
        targets[:, predicting].flatten(),
        ignore_index=IGNORED,
        reduction="sum",
    )


def count_tokens(batches: Sequence[Batch], device: torch.device) -> tuple[int, int]:
    """Labels that are predicted, and tokens read, in the batches of all workers."""
    labels = sum(int((batch["labels"][:, 1:] != IGNORED).sum()) for batch in batches)
    tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
    counts = torch.tensor([labels, tokens], dtype=torch.int64, device=device)
    dist.all_reduce(counts)
    return int(counts[0]), int(counts[1])


def gradient_scale(labels: int) -> float:
    """Factor on a worker's summed loss, given the labels of the whole global batch.

    DeepSpeed averages gradients over the workers; multiplied by their number that is a sum again,
    and a sum over labels divided by all labels is the mean that one process would have computed.
    """
    return dist.get_world_size() / max(labels, 1)
