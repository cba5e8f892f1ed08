"""Packed documents: their outputs and gradients are those that each has alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from llamahome.attention import Documents, HybridAttention
from llamahome.config import PolicyConfig
from tests.attention.sequences import token_ids
from tests.policies import CASES, built, policy_case

LENGTHS = [[33, 9, 1], [5, 38]]  # two rows of 43 tokens


def numbers() -> Tensor:
    """Return the document of each token; both rows begin with number 0."""
    return torch.tensor([[n for n, size in enumerate(row) for _ in range(size)] for row in LENGTHS])


def run(
    model: LlamaForCausalLM, attention: HybridAttention, ids: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Return the logits, and the gradient of a weighted sum of them in each layer's keys."""
    model.zero_grad()
    logits = model(
        ids, position_ids=attention.position_ids(ids), use_cache=False, hybrid=attention
    ).logits
    weights = torch.sin(torch.arange(logits[0, 0].numel(), dtype=logits.dtype))
    (logits * weights).sum().backward()
    found = [layer.self_attn.k_proj.weight.grad for layer in model.model.layers]
    return logits.detach(), [grad.clone() for grad in found if grad is not None]


@pytest.mark.parametrize("case", [*CASES, "full"])
def test_a_packed_document_is_as_if_alone(tiny_llama: LlamaForCausalLM, case: str) -> None:
    model = tiny_llama.double()
    HybridAttention.attach(model)
    config = PolicyConfig.dense() if case == "full" else policy_case(case)
    attention = HybridAttention(built(config, model), model)
    ids = token_ids(43, rows=2)
    packed, gradients = run(model, attention.over(Documents.of(numbers())), ids)
    summed = [torch.zeros_like(gradient) for gradient in gradients]
    for row, lengths in enumerate(LENGTHS):
        start = 0
        for length in lengths:
            own = slice(start, start + length)
            alone, parts = run(model, attention, ids[row : row + 1, own])
            torch.testing.assert_close(packed[row, own], alone[0], rtol=1e-9, atol=1e-9)
            summed = [total + part for total, part in zip(summed, parts, strict=True)]
            start += length
    torch.testing.assert_close(gradients, summed, rtol=1e-8, atol=1e-8)


def test_positions_begin_anew_with_each_document() -> None:
    documents = Documents.of(torch.tensor([[0, 0, 0, 1, 1], [0, 1, 1, -1, -1]]))
    assert documents.positions.tolist() == [[0, 1, 2, 0, 1], [0, 0, 1, 0, 1]]


def test_a_document_is_padded_to_less_than_twice_its_length() -> None:
    torch.manual_seed(0)
    sizes = torch.randint(1, 200, (50,))
    documents = Documents.of(torch.arange(50).repeat_interleave(sizes).unsqueeze(0))
    assert sum(len(group) for group in documents.groups) == 50
    assert sum(group.numel() for group in documents.groups) < 2 * int(sizes.sum())
