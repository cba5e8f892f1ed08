"""The map from a model's last hidden states to its logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

# Granite divides by `logits_scaling`; muP as HyperCLOVA X writes it multiplies.
MULTIPLIES = ("hyperclovax",)


def output_logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Compute logits (..., V) in float32 of last hidden states (..., hidden), after the norm.

    Some models scale or cap what their output layer gives (Granite `logits_scaling`, Cohere
    `logit_scale`, Gemma 2 `final_logit_softcapping`).
    """
    head: Any = model.get_output_embeddings()
    return scaled_logits(model, head(hidden).float())


def scaled_logits(model: PreTrainedModel, logits: Tensor) -> Tensor:
    """Scale and cap the output layer's values (..., V) as `model` does."""
    config = model.config
    scale = getattr(config, "logit_scale", None) or 1.0
    scaling = getattr(config, "logits_scaling", None) or 1.0
    scale *= scaling if config.model_type in MULTIPLIES else 1 / scaling
    if scale != 1.0:
        logits = logits * scale
    cap = getattr(config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap
