"""Slots against the training forward: the same logits, whichever way the tokens arrive."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from llamahome.attention import HybridAttention, Policy, build_policy
from llamahome.cache import Slots
from llamahome.config import PolicyConfig

POLICIES = {
    "h2o": PolicyConfig(name="h2o", budget=40, sink=4, recent=20, interval=16),
    "h2o_every_token": PolicyConfig(name="h2o", budget=33, sink=2, recent=16, interval=1),
    "h2o_uneven": PolicyConfig(name="h2o", budget=37, sink=3, recent=18, interval=7),
    "window": PolicyConfig(name="window", budget=40, sink=4, recent=36, interval=16),
    "random": PolicyConfig(name="random", budget=40, sink=4, recent=20, interval=16),
    "full": PolicyConfig(name="full", budget=None, interval=16),
}


def _slots(policy: Policy, *, num_slots: int = 3, max_length: int = 128) -> Slots:
    return Slots(
        policy,
        num_slots=num_slots,
        max_length=max_length,
        num_layers=2,
        num_kv_heads=2,
        head_dim=16,
        dtype=torch.float32,
        device="cpu",
    )


def _ids(length: int, rows: int = 1) -> Tensor:
    return torch.randint(3, 256, (rows, length), generator=torch.Generator().manual_seed(7))


def _advance(model: LlamaForCausalLM, slots: Slots, rows: list[int], ids: Tensor) -> Tensor:
    step = slots.begin(rows, [ids.shape[1]] * len(rows))
    with torch.no_grad():
        logits: Tensor = model(
            ids, position_ids=step.position_ids, use_cache=False, hybrid=step
        ).logits
    slots.commit(step)
    return logits


def _walk(
    model: LlamaForCausalLM, slots: Slots, rows: list[int], ids: Tensor, widest: int
) -> Tensor:
    outputs = []
    at = 0
    while at < ids.shape[1]:
        n = min(slots.room(rows[0]), ids.shape[1] - at, widest)
        outputs.append(_advance(model, slots, rows, ids[:, at : at + n]))
        at += n
    return torch.cat(outputs, dim=1)


def _trained(model: LlamaForCausalLM, policy: Policy, ids: Tensor) -> Tensor:
    HybridAttention.attach(model)
    with torch.no_grad():
        logits: Tensor = model(ids, use_cache=False, hybrid=HybridAttention(policy)).logits
    return logits


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("length", [96, 101])
@pytest.mark.parametrize("widest", [1, 5, 16], ids=["decode", "pieces", "chunks"])
def test_training_prefill_and_decode_give_the_same_logits(
    tiny_llama: LlamaForCausalLM, name: str, length: int, widest: int
) -> None:
    policy = build_policy(POLICIES[name])
    ids = _ids(length)
    expected = _trained(tiny_llama, policy, ids)
    logits = _walk(tiny_llama, _slots(policy), [1], ids, widest)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)


def test_rows_that_lie_apart_and_differ_in_length_stay_apart(tiny_llama: LlamaForCausalLM) -> None:
    policy = build_policy(POLICIES["h2o"])
    ids = _ids(90, rows=2)
    expected = _trained(tiny_llama, policy, ids)
    slots = _slots(policy)
    _walk(tiny_llama, slots, [2], ids[:1, :50], widest=16)
    _walk(tiny_llama, slots, [0], ids[1:, :70], widest=16)
    for t in range(20):
        pair = torch.stack([ids[0, 50 + t], ids[1, 70 + t]])[:, None]
        logits = _advance(tiny_llama, slots, [2, 0], pair)
        both = torch.stack([expected[0, 50 + t], expected[1, 70 + t]])
        torch.testing.assert_close(logits[:, 0], both, rtol=0, atol=1e-4)


def test_rows_of_different_width_share_a_step(tiny_llama: LlamaForCausalLM) -> None:
    policy = build_policy(POLICIES["h2o"])
    ids = _ids(80, rows=2)
    expected = _trained(tiny_llama, policy, ids)
    slots = _slots(policy)
    _walk(tiny_llama, slots, [0, 1], ids[:, :64], widest=16)
    padded = ids[:, 64:].clone()
    padded[1, 3:] = 0
    step = slots.begin([0, 1], [16, 3])
    with torch.no_grad():
        logits = tiny_llama(
            padded, position_ids=step.position_ids, use_cache=False, hybrid=step
        ).logits
    slots.commit(step)
    torch.testing.assert_close(logits[0], expected[0, 64:80], rtol=0, atol=1e-4)
    torch.testing.assert_close(logits[1, :3], expected[1, 64:67], rtol=0, atol=1e-4)
    assert slots.lengths[:2] == [80, 67]
    assert slots.counts[:2] == [40, 40 + 3]
    rest = _advance(tiny_llama, slots, [1], ids[1:, 67:80])
    torch.testing.assert_close(rest[0], expected[1, 67:], rtol=0, atol=1e-4)


def test_a_slot_is_clean_for_its_next_request(tiny_llama: LlamaForCausalLM) -> None:
    policy = build_policy(POLICIES["h2o"])
    slots = _slots(policy)
    _trained(tiny_llama, policy, _ids(4))
    _walk(tiny_llama, slots, [1], _ids(100) + 0, widest=16)
    slots.reset(1)
    ids = _ids(90).flip(1)
    logits = _walk(tiny_llama, slots, [1], ids, widest=16)
    torch.testing.assert_close(logits, _trained(tiny_llama, policy, ids), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["h2o", "window", "random"])
def test_memory_stays_flat_over_eight_budgets(tiny_llama: LlamaForCausalLM, name: str) -> None:
    policy = build_policy(POLICIES[name])
    slots = _slots(policy, num_slots=1, max_length=1024)
    HybridAttention.attach(tiny_llama)
    before = slots.nbytes
    addresses = [layer.keys.data_ptr() for layer in slots.layers]
    ids = _ids(8 * 40 + 16)
    held = []
    for t in range(ids.shape[1]):
        _advance(tiny_llama, slots, [0], ids[:, t : t + 1])
        held.append(slots.counts[0])
    assert max(held) <= slots.capacity == 40 + 16
    assert slots.nbytes == before
    assert [layer.keys.data_ptr() for layer in slots.layers] == addresses
    assert before < slots.dense_nbytes(ids.shape[1])


def test_bytes_are_those_of_the_tensors() -> None:
    slots = _slots(build_policy(POLICIES["h2o"]), num_slots=5)
    entries = 2 * 5 * 2 * slots.capacity  # layers, slots, heads, entries
    assert slots.nbytes == entries * (2 * 16 * 4 + 4 + 8)
    assert slots.slot_nbytes * 5 == slots.nbytes
    assert slots.dense_nbytes(1000) == 1000 * 2 * 2 * 2 * 16 * 4


def test_a_step_must_not_cross_a_chunk() -> None:
    slots = _slots(build_policy(POLICIES["h2o"]))
    with pytest.raises(ValueError, match="room for 16"):
        slots.begin([0], [17])


def test_a_step_must_not_exceed_the_longest_sequence() -> None:
    slots = _slots(build_policy(POLICIES["full"]), max_length=8)
    with pytest.raises(ValueError, match="max_length=8"):
        slots.begin([0], [9])
