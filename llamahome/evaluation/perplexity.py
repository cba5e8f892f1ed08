"""Perplexity of a text, read through the same slots that serve."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from llamahome.attention import HybridAttention, build_policy
from llamahome.cache import Slots
from llamahome.config import PolicyConfig


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """exp of the mean negative log likelihood per token, and what the cache took.

    Attributes:
        tokens: predicted.
        kv_bytes: of one slot.
        kv_bytes_dense: keys and values of one window without eviction.
    """

    perplexity: float
    tokens: int
    kv_bytes: int
    kv_bytes_dense: int


def perplexity(
    model: PreTrainedModel,
    ids: Tensor,
    policy: PolicyConfig,
    *,
    window: int,
    on_window: Callable[[], None] = lambda: None,
) -> Perplexity:
    """Perplexity over consecutive windows of a text.

    Args:
        ids: (N,) token ids, at least one window.
        window: tokens per window; each starts from an empty cache.
        on_window: called after each, for a progress bar.

    Raises:
        ValueError: for a text shorter than a window.
    """
    count = len(ids) // window
    if count == 0 or window < 2:
        raise ValueError(f"the text has {len(ids)} tokens; a window of {window} does not fit")
    slots = _slots(model, policy, window)
    total = 0.0
    for start in range(0, count * window, window):
        slots.reset(0)
        total += float(token_losses(model, ids[start : start + window], slots).double().sum())
        on_window()
    tokens = count * (window - 1)
    return Perplexity(
        perplexity=math.exp(total / tokens),
        tokens=tokens,
        kv_bytes=slots.slot_nbytes,
        kv_bytes_dense=slots.dense_nbytes(window),
    )


@torch.inference_mode()
def token_losses(model: PreTrainedModel, ids: Tensor, slots: Slots) -> Tensor:
    """Negative log likelihood in nats of each token but the first: (N - 1,).

    Args:
        ids: (N,), teacher-forced chunk by chunk through slot 0, which must be empty.
    """
    losses = []
    at = 0
    while at < len(ids) - 1:
        count = min(slots.room(0), len(ids) - 1 - at)
        step = slots.begin([0], [count])
        chunk = ids[at : at + count].to(model.device)
        logits = model(
            input_ids=chunk[None],
            position_ids=step.position_ids,
            use_cache=False,
            hybrid=step,
        ).logits[0]
        slots.commit(step)
        target = ids[at + 1 : at + count + 1].to(model.device)
        losses.append(F.cross_entropy(logits.float(), target, reduction="none"))
        at += count
    return torch.cat(losses).cpu()


def _slots(model: PreTrainedModel, policy: PolicyConfig, window: int) -> Slots:
    HybridAttention.attach(model)
    return Slots.for_model(model, build_policy(policy), num_slots=1, max_length=window)
