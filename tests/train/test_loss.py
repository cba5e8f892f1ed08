"""N workers compute what one process would: the loss of the global batch and its gradient."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from transformers import LlamaForCausalLM

from llamahome.attention import HybridAttention, build_policy
from llamahome.config import PolicyConfig
from train.loss import count_tokens, gradient_scale, label_loss

REPOSITORY = Path(__file__).parents[2]
EVICTING = PolicyConfig(name="h2o", budget=16, sink=2, recent=8, interval=8)


def batch(lengths: list[int], labelled: list[list[int]]) -> dict[str, torch.Tensor]:
    """Rows of random tokens, padded on the right, with labels at the given positions."""
    torch.manual_seed(1)
    shape = (len(lengths), max(lengths))
    ids = torch.randint(3, 256, shape)
    labels = torch.full(shape, -100)
    for row, positions in enumerate(labelled):
        labels[row, positions] = ids[row, positions]
    mask = (torch.arange(shape[1]) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": labels}


@pytest.mark.parametrize("policy", [EVICTING, PolicyConfig(name="full", budget=None)])
def test_only_labels_count_and_padding_does_not(
    tiny_llama: LlamaForCausalLM, policy: PolicyConfig
) -> None:
    attention = HybridAttention(build_policy(policy))
    attention.attach(tiny_llama)
    padded = batch([40, 25], [[5, 20, 39], [10, 24]])
    expected = torch.zeros(())
    for row, length in enumerate((40, 25)):
        ids = padded["input_ids"][row : row + 1, :length]
        logits = tiny_llama(ids, use_cache=False, hybrid=attention).logits[0]
        for position in (padded["labels"][row] != -100).nonzero().flatten().tolist():
            target = padded["labels"][row, position]
            expected = expected + F.cross_entropy(logits[position - 1], target)
    assert label_loss(tiny_llama, padded, attention).item() == pytest.approx(expected.item())


def test_a_batch_without_labels_has_no_loss_and_no_gradient(tiny_llama: LlamaForCausalLM) -> None:
    attention = HybridAttention(build_policy(EVICTING))
    attention.attach(tiny_llama)
    loss = label_loss(tiny_llama, batch([30], [[]]), attention)
    loss.backward()
    assert loss.item() == 0
    gradients = [p.grad for p in tiny_llama.parameters() if p.grad is not None]
    assert all(not gradient.any() for gradient in gradients)


def micro_batch(length: int, labelled: list[int]) -> dict[str, torch.Tensor]:
    labels = torch.full((1, length), -100)
    labels[0, labelled] = 7
    return {"labels": labels, "attention_mask": torch.ones(1, length)}


OTHER_WORKER = """
import sys
import torch
import torch.distributed as dist
from tests.train.test_loss import micro_batch
from train.loss import count_tokens
dist.init_process_group("gloo", f"file://{sys.argv[1]}", rank=1, world_size=2)
count_tokens([micro_batch(6, [1, 2, 3, 4, 5])], torch.device("cpu"))
dist.destroy_process_group()
"""


def test_counts_span_workers_and_micro_batches(tmp_path: Path) -> None:
    meet = tmp_path / "meet"
    other = subprocess.Popen([sys.executable, "-c", OTHER_WORKER, str(meet)], cwd=REPOSITORY)
    dist.init_process_group("gloo", f"file://{meet}", rank=0, world_size=2)
    try:
        mine = [micro_batch(8, [0, 3, 4]), micro_batch(4, [2])]  # nothing predicts a first label
        assert count_tokens(mine, torch.device("cpu")) == (8, 18)
        # Averaged over two workers, each label's gradient then weighs one part in eight.
        assert gradient_scale(8) == 2 / 8
        assert gradient_scale(0) == 2
    finally:
        dist.destroy_process_group()
    assert other.wait(timeout=60) == 0
