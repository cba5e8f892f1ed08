"""Floating-point operations that a step's model needs, for its utilisation of the hardware (MFU).

Counted as in PaLM (Chowdhery et al. 2022, arXiv 2204.02311, appendix B): 6 per weight and token,
and 12 x head_dim per query, key and head for attention, nothing for what is computed twice. PaLM
lets every token see the whole sequence; counted here are the keys that a query sees: causal, and
under the policy those that are kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import torch
from torch import nn

from llamahome.attention import Policy
from llamahome.attention.shape import ModelShape
from train.data import Batch
from train.objectives import count_labels


@dataclass(frozen=True)
class LinearWeights:
    """Weights of linear maps, by how they are computed.

    Attributes:
        frozen, trained: of the decoder, each once per token; frozen ones have no gradient of their
            own, but pass that of their input on.
        frozen_head, trained_head: of the output layer, each once per label.
    """

    frozen: int = 0
    trained: int = 0
    frozen_head: int = 0
    trained_head: int = 0

    @classmethod
    def of(
        cls, model: nn.Module, head: nn.Module | None, experts_per_token: int = 1
    ) -> LinearWeights:
        """Count the weights of a model, also of one that ZeRO-3 has sharded or that is quantised.

        Args:
            head: the output layer; adapters within it count as a part of it.
            experts_per_token: of a mixture of experts, whose weights are (experts, out, in).
        """
        of_head = set() if head is None else set(head.modules())
        counts = {(trained, in_head): 0 for trained in (False, True) for in_head in (False, True)}
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear) and "original_module" not in name.split("."):
                weights = module.in_features * module.out_features
                counts[module.weight.requires_grad, module in of_head] += weights
        for parameter in model.parameters():
            shape = getattr(parameter, "ds_shape", parameter.shape)
            if len(shape) == 3:
                counts[parameter.requires_grad, False] += experts_per_token * prod(shape[1:])
        return cls(
            frozen=counts[False, False],
            trained=counts[True, False],
            frozen_head=counts[False, True],
            trained_head=counts[True, True],
        )


@dataclass(frozen=True)
class FlopCounter:
    """Counts what steps need.

    Attributes:
        teacher: a forward pass without gradient and adapters that each step needs as well: `dense`,
            without eviction; `policy`, under it; None for none.
    """

    weights: LinearWeights
    shape: ModelShape
    teacher: str | None = None

    def step(self, batches: Iterable[Batch], policy: Policy) -> int:
        """Return the operations of a worker's part of a step, forward and backward."""
        batches = list(batches)
        lengths = [length for batch in batches for length in document_lengths(batch)]
        tokens, labels = sum(lengths), sum(map(count_labels, batches))
        own = self.weights
        frozen = tokens * own.frozen + labels * own.frozen_head
        trained = tokens * own.trained + labels * own.trained_head
        total = 4 * frozen + 6 * trained + 3 * self._attention(lengths, policy)
        if self.teacher is not None:
            seen = policy if self.teacher == "policy" else None
            total += 2 * frozen + self._attention(lengths, seen)
        return total

    def _attention(self, lengths: list[int], policy: Policy | None) -> int:
        """Return the operations of all layers' attention going forward; None sees everything."""
        shape = self.shape
        if policy is None:
            budgets: list[tuple[int, int | None, int]] = [
                (shape.num_layers * shape.num_kv_heads, None, 1)
            ]
        else:
            budgets = [
                (len(plane.heads), plane.policy.config.budget, policy.interval)
                for layer in range(shape.num_layers)
                for plane in policy.planes(layer, shape.num_layers, shape.num_kv_heads)
            ]
        pairs = sum(heads * sum(keys_seen(n, b, i) for n in lengths) for heads, b, i in budgets)
        return 4 * shape.head_dim * pairs * shape.num_heads // shape.num_kv_heads


def document_lengths(batch: Batch) -> list[int]:
    """Return the tokens of each document of a batch, padding left out."""
    mask = batch["attention_mask"]
    if "documents" not in batch:
        return [int(n) for n in mask.sum(dim=1)]
    numbers = batch["documents"]
    offsets = torch.arange(len(numbers), device=numbers.device).unsqueeze(1) * numbers.shape[1]
    each = (numbers + offsets).masked_fill(numbers < 0, -1).flatten()
    values, lengths = torch.unique_consecutive(each, return_counts=True)
    return [int(n) for n in lengths[values >= 0]]


@lru_cache(maxsize=4096)
def keys_seen(length: int, budget: int | None, interval: int) -> int:
    """Return the keys that the tokens of a sequence see in one KV head, summed over the tokens.

    A token of a chunk sees the at most `budget` entries kept from before it, and its own chunk as
    far as itself.
    """
    chunks, rest = divmod(length, interval)
    if budget is None:
        return length * (length + 1) // 2
    growing = min(chunks, budget // interval + 1)  # chunks that nothing was evicted before
    kept = interval * growing * (growing - 1) // 2 + (chunks - growing) * budget
    last = rest * min(chunks * interval, budget)
    return interval * kept + last + chunks * interval * (interval + 1) // 2 + rest * (rest + 1) // 2
