"""One optimiser step over a global batch, and the held-out loss: means over all workers' labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from llamahome.attention import HybridAttention
from train.data import Batch
from train.micro_batches import in_parts, memory_watched
from train.objectives import Objective

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine  # it looks for its device when it is imported


def train_step(
    engine: DeepSpeedEngine,
    micro_batches: Sequence[Batch],
    attention: HybridAttention,
    objective: Objective,
    parts: int = 1,
) -> tuple[dict[str, float], int]:
    """Take one optimiser step over this worker's micro-batches.

    Args:
        parts: in which each is computed, to save memory.

    Returns:
        The objective's columns as means over what it counts in the global batch, and its tokens.

    Raises:
        MemoryFullError: when memory is full; the engine cannot be used any more.
    """
    counted, tokens = count(micro_batches, objective, engine.device)
    scale = gradient_scale(counted)
    totals: dict[str, Tensor] = {}
    engine.train()
    for number, whole in enumerate(micro_batches, 1):
        pieces = in_parts(_to_device(whole, engine.device), parts)
        for piece, (batch, weight) in enumerate(pieces, 1):
            ends_step = number == len(micro_batches) and piece == len(pieces)
            engine.set_gradient_accumulation_boundary(ends_step)
            with memory_watched(batch):
                sums = objective.sums(engine, batch, attention)
                engine.backward(sums["loss"] * (scale * weight), scale_wrt_gas=False)
            for name, value in sums.items():
                totals[name] = totals.get(name, 0) + value.detach() * weight
        engine.step()
    total = torch.stack(list(totals.values()))
    dist.all_reduce(total)
    means = dict(zip(totals, (total / max(counted, 1)).tolist(), strict=True))
    return means, tokens


@torch.no_grad()
def evaluate(
    engine: DeepSpeedEngine,
    held_out: Iterable[Batch],
    attention: HybridAttention,
    objective: Objective,
    parts: int = 1,
) -> float:
    """Return the mean held-out loss of all workers: cross-entropy, unless pairs are compared.

    Args:
        parts: in which each batch is computed, to save memory.

    Raises:
        MemoryFullError: when memory is full; the engine cannot be used any more.
    """
    engine.eval()
    total = torch.zeros((), device=engine.device)
    held_out = list(held_out)
    for whole in held_out:
        for batch, weight in in_parts(_to_device(whole, engine.device), parts):
            with memory_watched(batch):
                total += objective.held_out(engine, batch, attention)["loss"] * weight
    counted, _ = count(held_out, objective, engine.device)
    dist.all_reduce(total)
    return float(total) / counted


def count(batches: Sequence[Batch], objective: Objective, device: torch.device) -> tuple[int, int]:
    """Count what the objective counts, and the tokens read, in the batches of all workers."""
    counted = sum(map(objective.count, batches))
    tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
    counts = torch.tensor([counted, tokens], dtype=torch.int64, device=device)
    dist.all_reduce(counts)
    return int(counts[0]), int(counts[1])


def gradient_scale(counted: int) -> float:
    """Return the factor on a worker's summed loss, given the count of the whole global batch.

    DeepSpeed averages gradients over the workers; multiplied by their number that is a sum again,
    and a sum over labels divided by all labels is the mean that one process would have computed.
    """
    return dist.get_world_size() / max(counted, 1)


def _to_device(batch: Batch, device: torch.device) -> Batch:
    return {name: tensor.to(device) for name, tensor in batch.items()}
