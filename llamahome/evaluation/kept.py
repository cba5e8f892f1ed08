"""Which tokens a KV head keeps, chunk by chunk."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llamahome.attention import HybridAttention, build_policy
from llamahome.cache import Slots
from llamahome.config import PolicyConfig
from llamahome.evaluation.tasks.perplexity import log_probs


@torch.inference_mode()
def kept_positions(
    model: PreTrainedModel, ids: Tensor, policy: PolicyConfig, *, layer_idx: int, head: int
) -> list[list[int]]:
    """Positions of the text `ids` (N,) that a KV head holds after each chunk."""
    HybridAttention.attach(model)
    built = build_policy(policy)
    slots = Slots.for_model(model, built, num_slots=1, max_length=len(ids))
    plane = next(p for p in slots.layers[layer_idx].planes if head in p.heads)
    row = plane.heads.index(head)
    kept = []
    for start in range(0, len(ids), policy.interval):
        log_probs(model, ids[start : start + policy.interval].to(model.device), slots)
        count = plane.shape.policy.held(slots.lengths[0])
        kept.append(plane.kv.positions[0, row, :count].tolist())
    return kept
