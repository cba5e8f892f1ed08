"""Features of entries in slots: written once per chunk, moved, saved and wiped with the slot."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from llamahome.attention import Entries, HybridAttention, Policy, build_policy
from llamahome.attention.scorer import Scorer
from llamahome.cache import Slots, SlotStep
from llamahome.config import PolicyConfig

PATTERN = {"L0H1": None, "L1": 9}


def _feature(entries: Entries) -> Tensor:
    """Return a number that depends only on the entry."""
    return entries.keys[..., 0] + entries.values[..., 1]


def _score(entries: Entries) -> Tensor:
    assert entries.features is not None
    return entries.features


def _policy() -> Policy:
    config = PolicyConfig(name="h2o", budget=12, sink=2, recent=6, interval=4, pattern=PATTERN)
    return replace(build_policy(config), scorer=Scorer(score=_score, features=_feature))


def _slots(model: LlamaForCausalLM) -> Slots:
    HybridAttention.attach(model)
    return Slots(model, _policy(), num_slots=3, max_length=64)


def _read(model: LlamaForCausalLM, slots: Slots, slot: int, ids: list[int], widest: int) -> Tensor:
    """Return the logits of all tokens, read in steps of at most `widest`."""
    outputs, at = [], 0
    while at < len(ids):
        n = min(slots.room(slot), len(ids) - at, widest)
        plan = slots.plan([slot], [n])
        step = SlotStep(slots, plan)
        with torch.no_grad():
            logits = model(
                torch.tensor([ids[at : at + n]]),
                position_ids=step.position_ids,
                use_cache=False,
                hybrid=step,
            ).logits
        slots.commit(plan)
        outputs.append(logits[0])
        at += n
    return torch.cat(outputs)


def _ids(length: int) -> list[int]:
    return torch.randint(3, 256, (length,), generator=torch.Generator().manual_seed(3)).tolist()


def _check(slots: Slots, slot: int) -> None:
    """Compare each feature with that of its entry, up to the last complete chunk."""
    complete = slots.lengths[slot] // 4 * 4
    for plane in slots.planes:
        count = slots.policy_of(slot, plane).held(complete)
        index = torch.tensor([slot])
        entries = plane.entries(index, slice(count))
        own = slots.policy_of(slot, plane)
        assert entries.features is not None
        expected = torch.zeros_like(entries.features) if own.scorer is None else _feature(entries)
        assert torch.equal(entries.features, expected)


@pytest.mark.parametrize("widest", [1, 3, 4])
def test_entries_keep_their_features_whichever_way_they_arrive(
    tiny_llama: LlamaForCausalLM, widest: int
) -> None:
    slots = _slots(tiny_llama)
    for length in (4, 7, 21, 6):  # before any eviction, within a chunk, after some
        _read(tiny_llama, slots, 1, _ids(length), widest)
        _check(slots, 1)


def test_slots_evict_as_training_does(tiny_llama: LlamaForCausalLM) -> None:
    slots, ids = _slots(tiny_llama), _ids(45)
    attention = HybridAttention(_policy(), tiny_llama)
    with torch.no_grad():
        expected = tiny_llama(torch.tensor([ids]), use_cache=False, hybrid=attention).logits[0]
    logits = _read(tiny_llama, slots, 0, ids, 4)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)


def test_features_are_saved_restored_and_wiped(tiny_llama: LlamaForCausalLM) -> None:
    slots, ids = _slots(tiny_llama), _ids(40)
    _read(tiny_llama, slots, 0, ids[:22], 4)
    slots.reset(2)
    slots.restore(2, slots.save(0))
    logits = [_read(tiny_llama, slots, slot, ids[22:], 3) for slot in (0, 2)]
    assert torch.equal(*logits)
    _check(slots, 2)
    slots.wipe(0)
    for plane in slots.planes:
        assert plane.kv.features is not None
        assert not plane.kv.features[0].any()
        assert plane.kv.features[2].any() or plane.shape.policy.scorer is None


def test_a_request_with_features_needs_slots_with_a_column_for_them(
    tiny_llama: LlamaForCausalLM,
) -> None:
    plain = build_policy(PolicyConfig(name="window", budget=12, recent=6, interval=4))
    slots = Slots(tiny_llama, plain, num_slots=1, max_length=64)
    assert all(plane.kv.features is None for plane in slots.planes)
    with pytest.raises(ValueError, match="writes features"):
        slots.reset(0, policy=_policy())
