"""Models and batches of random tokens for objectives."""

from __future__ import annotations

from typing import TypeVar

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from llamahome.attention import HybridAttention
from llamahome.config import PolicyConfig
from train.objectives.chunked_head import CHUNK, attach_chunked_head

Model = TypeVar("Model", bound=PreTrainedModel)

EVICTING = PolicyConfig(name="h2o", budget=16, sink=2, recent=8, interval=8)
FULL = PolicyConfig.dense()


class Wrapped:
    """A stand-in for DeepSpeed's engine: callable, with the model inside."""

    def __init__(self, module: PeftModel | PreTrainedModel) -> None:
        self.module = module

    def __call__(self, **arguments: object) -> object:
        return self.module(**arguments)


def trainable(model: Model, chunk: int = CHUNK) -> Model:
    """Prepare a model as a worker does; `chunk` logits exist at a time."""
    HybridAttention.attach(model)
    attach_chunked_head(model, chunk)
    return model


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
