"""Batches of random tokens for objectives."""

from __future__ import annotations

import torch

from llamahome.config import PolicyConfig

EVICTING = PolicyConfig(name="h2o", budget=16, sink=2, recent=8, interval=8)
FULL = PolicyConfig.dense()


def batch(lengths: list[int], labelled: list[list[int]]) -> dict[str, torch.Tensor]:
    """Build rows padded on the right, with labels at the given positions."""
    torch.manual_seed(1)
    shape = (len(lengths), max(lengths))
    ids = torch.randint(3, 256, shape)
    labels = torch.full(shape, -100)
    for row, positions in enumerate(labelled):
        labels[row, positions] = ids[row, positions]
    mask = (torch.arange(shape[1]) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": labels}
