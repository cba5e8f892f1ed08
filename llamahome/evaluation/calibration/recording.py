"""Dense attention of every layer on a text, and how much the loss depends on each output.

Axes: L layers, H query heads, G KV heads, R query heads of a KV head, N tokens, D head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from llamahome.attention import HybridAttention, build_policy
from llamahome.config import PolicyConfig
from llamahome.models.head import output_logits

PIECE = 256  # tokens whose logits are held at once


@dataclass(frozen=True, kw_only=True)
class LayerRecord:
    """One layer's attention over a text.

    Attributes:
        query, out: (1, H, N, D).
        grad: of the loss with respect to `out`; None where it was not asked for.
        key, value: (1, G, N, D).
        scaling: factor on the logits.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    out: Tensor
    grad: Tensor | None
    scaling: float

    def by_group(self, x: Tensor) -> Tensor:
        """Split query heads by their KV head: (1, H, N, ...) to (1, G, R, N, ...)."""
        grouped: Tensor = x.unflatten(1, (self.key.shape[1], -1))
        return grouped


class _Recorder:
    """Dense attention that keeps what it reads and returns."""

    def __init__(self) -> None:
        self.policy = build_policy(PolicyConfig.dense())
        self.layers: list[tuple[Tensor, Tensor, Tensor, Tensor, float]] = []

    def attend(
        self, layer_idx: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        out = F.scaled_dot_product_attention(
            query,
            key,
            value,
            is_causal=True,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        if out.requires_grad:
            out.retain_grad()
        elif torch.is_grad_enabled():  # the first layer: nothing before it has a gradient
            out.requires_grad_()
        self.layers.append((query.detach(), key.detach(), value.detach(), out, scaling))
        return out

    def records(self) -> list[LayerRecord]:
        return [
            LayerRecord(
                query=query,
                key=key,
                value=value,
                out=out.detach(),
                grad=out.grad,
                scaling=scaling,
            )
            for query, key, value, out, scaling in self.layers
        ]


@torch.no_grad()
def read(model: PreTrainedModel, ids: Tensor) -> list[LayerRecord]:
    """Read a text (N,) densely; return each layer's attention, without gradients."""
    HybridAttention.attach(model)
    recorder = _Recorder()
    model.base_model(input_ids=ids[None].to(model.device), use_cache=False, hybrid=recorder)
    return recorder.records()


def record(model: PreTrainedModel, ids: Tensor, *, seed: int) -> list[LayerRecord]:
    """Read a text (N,) densely; return each layer's attention, with gradients of the loss.

    The loss is the negative log likelihood, summed over the text, of targets that are drawn from
    the model's own predictions. So the mean square of a gradient along a change is the Fisher
    information of that change: twice the KL that it costs, to second order (Martens 2020, "New
    Insights and Perspectives on the Natural Gradient Method", arXiv 1412.1193, section 5).

    Args:
        seed: of the targets.
    """
    HybridAttention.attach(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.requires_grad_(False)
    recorder = _Recorder()
    try:
        with torch.enable_grad():
            hidden = model.base_model(
                input_ids=ids[None].to(model.device), use_cache=False, hybrid=recorder
            ).last_hidden_state
        hidden.backward(_loss_gradient(model, hidden.detach(), seed))
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
    return recorder.records()


@torch.enable_grad()
def _loss_gradient(model: PreTrainedModel, hidden: Tensor, seed: int) -> Tensor:
    """Compute the gradient by the last hidden states, piece by piece, since logits are large."""
    draw = torch.Generator(hidden.device).manual_seed(seed)
    gradients = []
    for part in hidden.split(PIECE, dim=1):
        logits = output_logits(model, part.requires_grad_())[0]
        targets = torch.multinomial(logits.detach().softmax(dim=-1), 1, generator=draw)[:, 0]
        loss = F.cross_entropy(logits, targets, reduction="sum")
        gradients.append(torch.autograd.grad(loss, part)[0])
    return torch.cat(gradients, dim=1)
