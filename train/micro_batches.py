"""Micro-batches in parts, where whole ones did not fit into memory.

Losses are sums that are scaled by the count of the global batch, so the gradients of parts add up
to those of the whole. A worker that runs out of memory cannot go on in place: gradients of some of
the layers may have been added up already, and the other workers wait for it in ZeRO's collectives.
So it ends the run, and the driver starts it again from the newest checkpoint, with twice the parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from train import metrics
from train.data import Batch
from train.errors import MemoryFullError

FILE_NAME = "micro_batch_parts"

# torch raises a class of its own for a GPU, and for a CPU a RuntimeError.
_SIGNS = ("DefaultCPUAllocator: can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")


def parts_of(run_dir: Path) -> int:
    """Return the parts in which a run computes its micro-batches."""
    file = run_dir / FILE_NAME
    return int(file.read_text()) if file.is_file() else 1


def halve(run_dir: Path, error: MemoryFullError) -> str:
    """Double the parts, and return a line that says so.

    Raises:
        MemoryFullError: `error`, when the part that did not fit was one row.
    """
    if error.rows < 2:
        raise error
    parts = 2 * parts_of(run_dir)
    (run_dir / FILE_NAME).write_text(f"{parts}\n")
    line = f"{error.place}, so micro-batches are computed in {parts} parts"
    metrics.append(run_dir, {"warning": line})
    return line


def in_parts(batch: Batch, parts: int) -> list[tuple[Batch, int]]:
    """Return the rows of a micro-batch in parts, each with its weight.

    All workers get equally many, since they meet in each: one that has fewer rows computes its
    first part again, with weight 0.
    """
    if parts == 1:
        return [(batch, 1)]
    rows = len(batch["input_ids"])
    count = min(parts, rows)
    own = [
        {name: tensor[index] for name, tensor in batch.items()}
        for index in torch.arange(rows, device=batch["input_ids"].device).tensor_split(count)
    ]
    most = torch.tensor(count, device=batch["input_ids"].device)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    return [(part, 1) for part in own] + [(own[0], 0)] * (int(most) - count)


@contextmanager
def memory_watched(batch: Batch) -> Iterator[None]:
    """Turn torch's errors of full memory into one that says what did not fit.

    Raises:
        MemoryFullError: when memory is full.
    """
    try:
        yield
    except RuntimeError as error:
        known = isinstance(error, torch.OutOfMemoryError)
        if not known and not any(sign in str(error) for sign in _SIGNS):
            raise
        raise MemoryFullError(*batch["input_ids"].shape) from error
