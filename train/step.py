"""One optimiser step over a global batch, and the held-out loss: means over all workers' labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from llamahome.attention import HybridAttention
from llamahome.data import IGNORED
from train.data import Batch
from train.objectives import Objective, cross_entropy

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine  # it looks for its device when it is imported


def train_step(
    engine: DeepSpeedEngine,
    micro_batches: Sequence[Batch],
    attention: HybridAttention,
    objective: Objective,
) -> tuple[dict[str, float], int]:
    """Take one optimiser step over this worker's micro-batches.

    Returns:
        The objective's columns as means over the labels of the global batch, and its tokens.
    """
    labels, tokens = count_tokens(micro_batches, engine.device)
    scale = gradient_scale(labels)
    totals: dict[str, Tensor] = {}
    engine.train()
    for batch in micro_batches:
        sums = objective(engine, _to_device(batch, engine.device), attention)
        engine.backward(sums["loss"] * scale, scale_wrt_gas=False)
        engine.step()
        for name, value in sums.items():
            totals[name] = totals.get(name, 0) + value.detach()
    total = torch.stack(list(totals.values()))
    dist.all_reduce(total)
    means = dict(zip(totals, (total / max(labels, 1)).tolist(), strict=True))
    return means, tokens


@torch.no_grad()
def evaluate(
    engine: DeepSpeedEngine, held_out: Iterable[Batch], attention: HybridAttention
) -> float:
    """Return the mean cross-entropy of all workers' held-out labels, whatever is minimised."""
    engine.eval()
    total = torch.zeros((), device=engine.device)
    held_out = list(held_out)
    for batch in held_out:
        total += cross_entropy(engine, _to_device(batch, engine.device), attention)["loss"]
    labels, _ = count_tokens(held_out, engine.device)
    dist.all_reduce(total)
    return float(total) / labels


def count_tokens(batches: Sequence[Batch], device: torch.device) -> tuple[int, int]:
    """Count the predicted labels, and the tokens read, in the batches of all workers."""
    labels = sum(int((batch["labels"][:, 1:] != IGNORED).sum()) for batch in batches)
    tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
    counts = torch.tensor([labels, tokens], dtype=torch.int64, device=device)
    dist.all_reduce(counts)
    return int(counts[0]), int(counts[1])


def gradient_scale(labels: int) -> float:
    """Return the factor on a worker's summed loss, given the labels of the whole global batch.

    DeepSpeed averages gradients over the workers; multiplied by their number that is a sum again,
    and a sum over labels divided by all labels is the mean that one process would have computed.
    """
    return dist.get_world_size() / max(labels, 1)


def _to_device(batch: Batch, device: torch.device) -> Batch:
    return {name: tensor.to(device) for name, tensor in batch.items()}
