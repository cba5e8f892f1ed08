"""Packed rows: whole documents, and the loss that each of them has alone."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import LlamaForCausalLM

from llamahome.attention import HybridAttention
from llamahome.data import IGNORED, DataError, Row, TokenTable
from tests.policies import built, policy_case
from train.data import Batch, collate
from train.objectives import cross_entropy
from train.objectives.chunked_head import attach_chunked_head
from train.packing import Rows, Tokens, fit, pack


def make_row(tokens: int, seed: int = 0) -> Row:
    """Return a row with a label on each token of its second half."""
    draw = random.Random(seed)
    ids = [draw.randrange(3, 256) for _ in range(tokens)]
    labels = [IGNORED] * (tokens // 2) + ids[tokens // 2 :]
    return {"input_ids": ids, "attention_mask": [1] * tokens, "labels": labels}


def whole(ids: list[int]) -> Row:
    """Return a row all of whose tokens are labels."""
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": list(ids)}


def packed(rows: list[Row], length: int) -> list[Row]:
    tokens = Tokens()
    return list(Rows(tokens, *pack(tokens.add(TokenTable.of(rows)), length)))


def fitting(rows: list[Row], length: int, overlong: str) -> list[Row]:
    tokens = Tokens()
    return list(Rows(tokens, fit(tokens.add(TokenTable.of(rows)), length, overlong)))


def documents(row: Row) -> list[list[int]]:
    """Return the token ids of each document of a packed row."""
    count = max(row["documents"]) + 1
    pairs = list(zip(row["documents"], row["input_ids"], strict=True))
    return [[token for number, token in pairs if number == own] for own in range(count)]


@pytest.mark.parametrize("length", [40, 64, 1000])
def test_every_document_is_in_one_row_whole(length: int) -> None:
    draw = random.Random(1)
    rows = [make_row(draw.randint(1, 40), seed) for seed in range(60)]
    joined = packed(rows, length)
    found = [own for row in joined for own in documents(row)]
    assert sorted(found) == sorted(row["input_ids"] for row in rows)
    assert max(len(row["input_ids"]) for row in joined) <= length


def test_rows_are_as_full_as_the_best_fit_makes_them() -> None:
    rows = packed([make_row(size) for size in (3, 5, 6, 7, 2, 4, 3)], 10)  # 30 tokens in all
    assert sorted(len(row["input_ids"]) for row in rows) == [10, 10, 10]


def test_no_document_is_predicted_from_the_one_before() -> None:
    one = whole(make_row(6)["input_ids"])
    (row,) = packed([one, one], 12)
    assert row["labels"] == 2 * [IGNORED, *one["labels"][1:]]


@pytest.mark.parametrize(
    ("overlong", "expected"),
    [("cut", [[1, 2, 3], [7]]), ("split", [[1, 2, 3], [4, 5], [7]]), ("drop", [[7]])],
)
def test_overlong_records_follow_the_rule(overlong: str, expected: list[list[int]]) -> None:
    rows = [whole([1, 2, 3, 4, 5]), whole([7])]
    fitted = fitting(rows, 3, overlong)
    assert [row["input_ids"] for row in fitted] == [row["labels"] for row in fitted] == expected


def test_each_answer_of_a_pair_is_cut_by_itself() -> None:
    ids, documents = [1, 2, 3, 4, 5, 1, 2], [0, 0, 0, 0, 0, 1, 1]
    row = {**whole(ids), "documents": documents}
    (cut,) = fitting([row], 3, "cut")
    assert (cut["input_ids"], cut["documents"]) == ([1, 2, 3, 1, 2], [0, 0, 0, 1, 1])
    assert fitting([row], 3, "drop") == []
    assert fitting([row], 5, "drop") == [row]
    with pytest.raises(DataError, match=r"data\.overlong=split: an answer of 5 tokens is half"):
        fitting([row], 3, "split")


@pytest.mark.parametrize("case", ["h2o", "window", "learned"])
def test_packed_and_padded_batches_have_the_same_loss_and_gradients(
    tiny_llama: LlamaForCausalLM, case: str
) -> None:
    model = tiny_llama.double()
    HybridAttention.attach(model)
    attach_chunked_head(model)
    attention = HybridAttention(built(policy_case(case), model), model)
    rows = [make_row(size, size) for size in (40, 25, 9, 33, 2)]
    found = [
        _loss_and_gradient(model, attention, batch)
        for batch in (collate(packed(rows, 64), 0), collate(rows, 0))
    ]
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-9)


def _loss_and_gradient(
    model: LlamaForCausalLM, attention: HybridAttention, batch: Batch
) -> list[torch.Tensor]:
    model.zero_grad()
    loss = cross_entropy(model, batch, attention)["loss"]
    loss.backward()
    grad = model.model.layers[0].self_attn.v_proj.weight.grad
    assert grad is not None
    return [loss.detach(), grad.clone()]
