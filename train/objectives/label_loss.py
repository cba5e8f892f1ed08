"""Cross-entropy, and divergence from a teacher, whose gradient is computed with the loss.

Axes: B sequences, P positions, R rows of a block, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llamahome.data import IGNORED

BLOCK = 2**20  # logits at a time: few enough to stay in a core's cache


def label_loss(
    logits: Tensor, targets: Tensor, teacher: Tensor | None = None, kl_weight: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Return cross-entropy + `kl_weight` x KL(teacher || model), and both parts, over all labels.

    Plain autograd would hold the probabilities of model and teacher, their logarithms and the
    gradient, each as large as the logits. Here a block of rows is read once, and what stays is the
    gradient alone.

    Args:
        logits: (B, P, V), of the model.
        targets: (B, P), IGNORED where there is no label.
        teacher: logits (B, P, V) without gradient, which are overwritten; None leaves KL out.

    Returns:
        Loss, cross-entropy and KL, each a sum over labels; the loss has a gradient, once.
    """
    if teacher is not None:
        teacher = teacher.flatten(0, 1)
    loss, ce, kl = _LabelLoss.apply(  # type: ignore[no-untyped-call]
        logits.flatten(0, 1), targets.flatten(), teacher, kl_weight
    )
    return loss, ce, kl


class _LabelLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, teacher: Tensor | None, kl_weight: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        gradient = None
        if ctx.needs_input_grad[0]:
            gradient = torch.empty_like(logits) if teacher is None else teacher
            ctx.save_for_backward(gradient)
        wide = torch.promote_types(logits.dtype, torch.float32)
        ce, kl = torch.zeros(2, dtype=wide, device=logits.device).unbind()
        rows = max(1, BLOCK // logits.shape[-1])
        for start in range(0, len(logits), rows):
            block = slice(start, start + rows)
            own_ce, own_kl, own_gradient = _block(
                logits[block].to(wide),
                targets[block],
                None if teacher is None else teacher[block].to(wide),
                kl_weight,
            )
            ce, kl = ce + own_ce, kl + own_kl
            if gradient is not None:
                gradient[block] = own_gradient
        loss = ce + kl_weight * kl
        ctx.mark_non_differentiable(ce, kl)
        return loss, ce, kl

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors  # refused if this has run before, which has changed it
        return gradient.mul_(grad_loss), None, None, None


def _block(
    logits: Tensor, targets: Tensor, teacher: Tensor | None, kl_weight: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sums of some rows (R, V), and the gradient of their loss."""
    log_probs = F.log_softmax(logits, dim=-1)
    labelled = (targets != IGNORED).unsqueeze(1)
    places = targets.unsqueeze(1).clamp(min=0)
    ce = -(log_probs.gather(1, places) * labelled).sum()
    if teacher is None:
        kl, gradient = torch.zeros_like(ce), log_probs.exp()
    else:
        dense = F.log_softmax(teacher, dim=-1)
        dense_probs = dense.exp()
        kl = ((dense.sub_(log_probs)).mul_(dense_probs).sum(dim=1, keepdim=True) * labelled).sum()
        gradient = log_probs.exp_().mul_(1 + kl_weight).sub_(dense_probs, alpha=kl_weight)
    gradient.scatter_add_(1, places, torch.full_like(places, -1, dtype=gradient.dtype))
    return ce, kl, gradient.mul_(labelled)
