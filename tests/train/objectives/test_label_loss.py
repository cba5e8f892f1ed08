"""The loss over labels against torch's own functions and plain autograd."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from train.objectives.label_loss import BLOCK, label_loss

VOCABULARY = 11


def _inputs(rows: int, vocabulary: int = VOCABULARY) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits and a teacher's (rows, V), and targets."""
    torch.manual_seed(rows)
    logits, teacher = torch.randn(2, rows, vocabulary, dtype=torch.float64)
    targets = torch.randint(vocabulary, (rows,))
    return logits.requires_grad_(), teacher, targets


def _plain(logits: Tensor, targets: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    log_probs = logits.log_softmax(-1)
    ce = F.nll_loss(log_probs, targets, reduction="sum")
    dense = teacher.log_softmax(-1)
    return ce, F.kl_div(log_probs, dense, reduction="sum", log_target=True)


@pytest.mark.parametrize("kl_weight", [0.0, 0.7])
def test_the_sums_and_their_gradient_are_those_of_plain_autograd(kl_weight: float) -> None:
    logits, teacher, targets = _inputs(9)
    ce, kl = _plain(logits, targets, teacher)
    (expected,) = torch.autograd.grad(3 * (ce + kl_weight * kl), logits)
    own = label_loss(logits, targets, teacher.clone(), kl_weight)
    for value, other in zip(own, (ce + kl_weight * kl, ce, kl), strict=True):
        torch.testing.assert_close(value, other)
    torch.testing.assert_close(torch.autograd.grad(3 * own[0], logits)[0], expected)


def test_without_a_teacher_it_is_cross_entropy() -> None:
    logits, _, targets = _inputs(9)
    expected = F.cross_entropy(logits, targets, reduction="sum")
    loss, ce, kl = label_loss(logits, targets)
    torch.testing.assert_close(loss, expected)
    assert (ce.item(), kl.item()) == (loss.item(), 0.0)
    torch.testing.assert_close(
        torch.autograd.grad(loss, logits), torch.autograd.grad(expected, logits)
    )


@pytest.mark.parametrize("with_teacher", [False, True])
def test_smoothing_is_torchs(with_teacher: bool) -> None:
    logits, teacher, targets = _inputs(9)
    ce, kl = _plain(logits, targets, teacher)
    expected = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=0.3)
    if with_teacher:
        expected = expected + 0.7 * kl
    loss, own_ce, _ = label_loss(
        logits, targets, teacher.clone() if with_teacher else None, 0.7, label_smoothing=0.3
    )
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(own_ce, ce.detach())
    torch.testing.assert_close(
        torch.autograd.grad(loss, logits), torch.autograd.grad(expected, logits)
    )


def test_blocks_of_rows_add_up() -> None:
    """The vocabulary is so large that a block holds two rows, and the last one."""
    logits, teacher, targets = _inputs(3, vocabulary=BLOCK // 2 - 1)
    ce, kl = _plain(logits, targets, teacher)
    (expected,) = torch.autograd.grad(ce + kl, logits)
    loss, *_ = label_loss(logits, targets, teacher.clone(), 1.0)
    torch.testing.assert_close(loss, ce + kl)
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], expected)


def test_sixteen_bit_logits_are_summed_in_float32() -> None:
    logits, teacher, targets = _inputs(9)
    half = logits.detach().bfloat16().requires_grad_()
    loss, ce, kl = label_loss(half, targets, teacher.bfloat16(), 0.7)
    expected = label_loss(half.float(), targets, teacher.bfloat16().float(), 0.7)
    assert {loss.dtype, ce.dtype, kl.dtype} == {torch.float32}
    for value, other in zip((loss, ce, kl), expected, strict=True):
        torch.testing.assert_close(value, other)
    assert torch.autograd.grad(loss, half)[0].dtype == torch.bfloat16


def test_a_second_backward_pass_is_refused() -> None:
    """The first one has scaled the only copy of the gradient."""
    logits, teacher, targets = _inputs(4)
    loss, *_ = label_loss(logits, targets, teacher, 1.0)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="inplace operation"):
        loss.backward()
