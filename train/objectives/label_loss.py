"""Cross-entropy, and divergence from a teacher, whose gradient is computed with the loss.

Axes: N labels, R of them in a block, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 2**20  # logits at a time: few enough to stay in a core's cache


def label_loss(
    logits: Tensor,
    targets: Tensor,
    teacher: Tensor | None = None,
    kl_weight: float = 0.0,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return smoothed cross-entropy + `kl_weight` x KL(teacher || model), and its two parts.

    Plain autograd would hold the probabilities of model and teacher, their logarithms and the
    gradient, each as large as the logits. Here a block of rows is read once, and what stays is the
    gradient alone.

    Args:
        logits: (N, V), of the model.
        targets: (N,).
        teacher: logits (N, V) without gradient, which are overwritten; None leaves KL out.
        label_smoothing: share of the uniform distribution in each target.

    Returns:
        Loss, cross-entropy without smoothing, and KL, each a sum over labels; the loss has a
        gradient, once.
    """
    loss, ce, kl = _LabelLoss.apply(  # type: ignore[no-untyped-call]
        logits, targets, teacher, kl_weight, label_smoothing
    )
    return loss, ce, kl


class _LabelLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        targets: Tensor,
        teacher: Tensor | None,
        kl_weight: float,
        smoothing: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        gradient = None
        if ctx.needs_input_grad[0]:
            gradient = torch.empty_like(logits) if teacher is None else teacher
            ctx.save_for_backward(gradient)
        wide = torch.promote_types(logits.dtype, torch.float32)
        loss, ce, kl = torch.zeros(3, dtype=wide, device=logits.device).unbind()
        rows = max(1, BLOCK // logits.shape[-1])
        for start in range(0, len(logits), rows):
            block = slice(start, start + rows)
            sums, own_gradient = _block(
                logits[block].to(wide),
                targets[block],
                None if teacher is None else teacher[block].to(wide),
                kl_weight,
                smoothing,
            )
            loss, ce, kl = loss + sums[0], ce + sums[1], kl + sums[2]
            if gradient is not None:
                gradient[block] = own_gradient
        ctx.mark_non_differentiable(ce, kl)
        return loss, ce, kl

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors  # refused if this has run before, which has changed it
        return gradient.mul_(grad_loss), None, None, None, None


def _block(
    logits: Tensor,
    targets: Tensor,
    teacher: Tensor | None,
    kl_weight: float,
    smoothing: float,
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """Return loss, cross-entropy and KL of some rows (R, V), and the gradient of the loss."""
    log_probs = F.log_softmax(logits, dim=-1)
    places = targets.unsqueeze(1)
    ce = -log_probs.gather(1, places).sum()
    loss = ce
    if smoothing:
        loss = (1 - smoothing) * ce - smoothing * log_probs.mean(dim=1).sum()
    if teacher is None:
        kl, gradient = torch.zeros_like(ce), log_probs.exp()
    else:
        dense = F.log_softmax(teacher, dim=-1)
        dense_probs = dense.exp()
        kl = dense.sub_(log_probs).mul_(dense_probs).sum()
        loss = loss + kl_weight * kl
        gradient = log_probs.exp_().mul_(1 + kl_weight).sub_(dense_probs, alpha=kl_weight)
    gradient.scatter_add_(1, places, torch.full_like(places, smoothing - 1, dtype=gradient.dtype))
    if smoothing:
        gradient.sub_(smoothing / logits.shape[-1])
    return (loss, ce, kl), gradient
