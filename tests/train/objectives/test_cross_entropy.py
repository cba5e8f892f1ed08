"""Cross-entropy against a loop over the labels of each row alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaForCausalLM

from llamahome.attention import HybridAttention, build_policy
from llamahome.config import PolicyConfig
from tests.train.objectives.rows import EVICTING, FULL, batch, trainable
from train.objectives import cross_entropy


@pytest.mark.parametrize("policy", [EVICTING, FULL])
def test_only_labels_count_and_padding_does_not(
    tiny_llama: LlamaForCausalLM, policy: PolicyConfig
) -> None:
    attention = HybridAttention(build_policy(policy))
    trainable(tiny_llama)
    padded = batch([40, 25], [[5, 20, 39], [10, 24]])
    expected = torch.zeros(())
    for row, length in enumerate((40, 25)):
        ids = padded["input_ids"][row : row + 1, :length]
        logits = tiny_llama(ids, use_cache=False, hybrid=attention).logits[0]
        for position in (padded["labels"][row] != -100).nonzero().flatten().tolist():
            target = padded["labels"][row, position]
            expected = expected + F.cross_entropy(logits[position - 1], target)
    sums = cross_entropy(tiny_llama, padded, attention)
    assert {name: value.item() for name, value in sums.items()} == {
        "loss": pytest.approx(expected.item())
    }


def test_a_batch_without_labels_has_no_loss_and_no_gradient(tiny_llama: LlamaForCausalLM) -> None:
    attention = HybridAttention(build_policy(EVICTING))
    trainable(tiny_llama)
    loss = cross_entropy(tiny_llama, batch([30], [[]]), attention)["loss"]
    loss.backward()
    assert loss.item() == 0
    gradients = [p.grad for p in tiny_llama.parameters() if p.grad is not None]
    assert all(not gradient.any() for gradient in gradients)
