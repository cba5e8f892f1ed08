"""Perplexity of a text, and how far a policy is from dense attention, token by token.

The text is teacher-forced through the slots that serve. Axes: N tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from llamahome.attention import HybridAttention, build_policy
from llamahome.cache import Slots, SlotStep
from llamahome.config import PolicyConfig
from llamahome.evaluation.memory import KVBytes, kv_bytes

BLOCK = 256


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """What a text is to a model under one policy.

    Attributes:
        nll: per window, mean negative log likelihood of its tokens in nats.
        kl: per window, mean KL(dense || policy) of the next-token distributions in nats.
        tokens: predicted, in all windows.
        kv: of one window.
    """

    nll: list[float]
    kl: list[float]
    tokens: int
    kv: KVBytes

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log likelihood per token."""
        return math.exp(sum(self.nll) / len(self.nll))


def perplexity(
    model: PreTrainedModel,
    ids: Tensor,
    policies: Sequence[PolicyConfig],
    *,
    window: int,
    on_window: Callable[[], None] = lambda: None,
) -> list[Perplexity]:
    """Perplexity and KL to dense of several policies, over consecutive windows of a text.

    Dense attention runs once for all of them, so measuring policies together is cheaper.

    Args:
        ids: (N,) token ids, at least one window.
        policies: one result each; `full` among them is dense attention itself.
        window: tokens per window; each starts from an empty cache.
        on_window: called after each, for a progress bar.

    Raises:
        ValueError: for a text shorter than a window.
    """
    count = len(ids) // window
    if count == 0 or window < 2:
        raise ValueError(f"the text has {len(ids)} tokens; a window of {window} does not fit")
    HybridAttention.attach(model)
    dense = PolicyConfig(name="full", budget=None)
    slots = [
        Slots.for_model(model, build_policy(p), num_slots=1, max_length=window)
        for p in (dense, *policies)
    ]
    windows = []
    for start in range(0, count * window, window):
        windows.append(_measure(model, ids[start : start + window].to(model.device), slots))
        on_window()
    return [
        Perplexity(
            nll=[measured[i][0] for measured in windows],
            kl=[measured[i][1] for measured in windows],
            tokens=count * (window - 1),
            kv=kv_bytes(own),
        )
        for i, own in enumerate(slots[1:])
    ]


def _measure(model: PreTrainedModel, ids: Tensor, slots: list[Slots]) -> list[tuple[float, float]]:
    """Mean NLL and KL of one window under each of `slots[1:]`; `slots[0]` are dense."""
    dense, *others = slots
    for own in slots:
        own.reset(0)
    sums = torch.zeros(len(others), 2, dtype=torch.float64)
    # Block by block side by side, so that no more logits are held than those of two blocks.
    for start in range(0, len(ids) - 1, BLOCK):
        block = ids[start : min(start + BLOCK, len(ids) - 1)]
        targets = ids[start + 1 : start + len(block) + 1]
        sure = log_probs(model, block, dense)
        for total, own in zip(sums, others, strict=True):
            said = log_probs(model, block, own)
            total[0] += F.nll_loss(said, targets, reduction="sum").double().cpu()
            total[1] += F.kl_div(said, sure, reduction="sum", log_target=True).double().cpu()
    return [(float(nll), float(kl)) for nll, kl in sums / (len(ids) - 1)]


@torch.inference_mode()
def log_probs(model: PreTrainedModel, ids: Tensor, slots: Slots) -> Tensor:
    """Log probabilities (N, V) in float32 after each of `ids` (N,), which continue slot 0."""
    parts = []
    at = 0
    while at < len(ids):
        count = min(slots.room(0), len(ids) - at)
        plan = slots.plan([0], [count])
        step = SlotStep(slots, plan)
        logits = model(
            input_ids=ids[None, at : at + count],
            position_ids=step.position_ids,
            use_cache=False,
            hybrid=step,
        ).logits[0]
        slots.commit(plan)
        parts.append(F.log_softmax(logits.float(), dim=-1))
        at += count
    return torch.cat(parts)


def continuation_score(
    model: PreTrainedModel, slots: Slots, context: list[int], continuation: list[int]
) -> tuple[float, bool]:
    """Log probability in nats of `continuation` after `context`, and whether greedy says the same.

    Both are read through slot 0, which starts from nothing; neither is empty.
    """
    slots.reset(0)
    ids = torch.tensor([*context, *continuation[:-1]], device=model.device)
    targets = torch.tensor(continuation, device=model.device)
    first = len(context) - 1
    total, greedy = 0.0, True
    for start in range(0, len(ids), BLOCK):
        said = log_probs(model, ids[start : start + BLOCK], slots)
        # What is said at `first` is about targets[0].
        asked = targets[max(0, start - first) : max(0, start - first + len(said))]
        own = said[len(said) - len(asked) :]
        total += float(own.gather(1, asked[:, None]).sum(dtype=torch.float64))
        greedy = greedy and bool((own.argmax(dim=-1) == asked).all())
    return total, greedy
