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

from llamahome.attention import HybridAttention, build_policy
from llamahome.config import PolicyConfig
from llamahome.data import IGNORED

Batch = Mapping[str, Tensor]
_DENSE = HybridAttention(build_policy(PolicyConfig(name="full", budget=None)))


def label_loss(model: Callable[..., Any], batch: Batch, attention: HybridAttention) -> Tensor:
    """Cross-entropy summed over the labelled tokens of `batch`, under `attention`'s policy."""
    logits, targets = _predictions(model, batch, attention)
    return F.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )


def distillation_losses(
    engine: Any, batch: Batch, attention: HybridAttention
) -> tuple[Tensor, Tensor]:
    """Cross-entropy, and KL(dense || under `attention`'s policy), each summed over the labels.

    The dense model is `engine.module` without its adapters and without eviction, so there is no
    second model in memory (Hinton et al. 2015, arXiv 1503.02531, with itself as the teacher).

    Args:
        engine: wraps a PeftModel in `module`.
    """
    with torch.no_grad(), engine.module.disable_adapter():
        dense, _ = _predictions(engine.module, batch, _DENSE)
    logits, targets = _predictions(engine, batch, attention)
    labelled = targets != IGNORED
    log_probs = F.log_softmax(logits[labelled].float(), dim=-1)
    dense_log_probs = F.log_softmax(dense[labelled].float(), dim=-1)
    ce = F.nll_loss(log_probs, targets[labelled], reduction="sum")
    kl = F.kl_div(log_probs, dense_log_probs, reduction="sum", log_target=True)
    return ce, kl


def _predictions(
    model: Callable[..., Any], batch: Batch, attention: HybridAttention
) -> tuple[Tensor, Tensor]:
    """Logits (B, P, V) and what they should predict (B, P), where any sequence has a label.

    Only these positions reach the vocabulary projection, which is most of a small model's cost
    and memory.
    """
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
