"""Slots against the training forward: the same logits, whichever way the tokens arrive."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

from llamahome.attention import HybridAttention, Policy, Rotary, build_policy
from llamahome.cache import Slots, SlotStep
from llamahome.config import ConfigError, PolicyConfig
from tests.engine.random_models import random_llama
from tests.policies import CASES, built, policy_case

POLICIES = {
    **{
        case: policy_case(case, budget=40, sink=4, recent=20, interval=16)
        for case in CASES
        if "pattern" not in case and "pyramid" not in case
    },
    "h2o_pyramid": PolicyConfig(budget=40, recent=16, interval=16, layers="pyramid"),
    "h2o_pattern": PolicyConfig(
        budget=40, recent=20, interval=16, pattern={"L0H1": None, "L1": 30, "L1H0": 24}
    ),
    "h2o_pattern_rolling": PolicyConfig(
        budget=40, recent=20, interval=16, pattern={"L0H1": None, "L1": 24}, positions="rolling"
    ),
    "h2o_every_token": PolicyConfig(name="h2o", budget=33, sink=2, recent=16, interval=1),
    "h2o_uneven": PolicyConfig(name="h2o", budget=37, sink=3, recent=18, interval=7),
    "learned_pattern": PolicyConfig(
        name="learned", budget=40, recent=20, interval=16, pattern={"L0H1": None, "L1": 30}
    ),
    "full": PolicyConfig.dense(interval=16),
}


def _slots(
    policy: Policy,
    *,
    num_slots: int = 3,
    max_length: int = 128,
    model: LlamaForCausalLM | None = None,
) -> Slots:
    return Slots(model or random_llama(), policy, num_slots=num_slots, max_length=max_length)


def _ids(length: int, rows: int = 1) -> Tensor:
    return torch.randint(3, 256, (rows, length), generator=torch.Generator().manual_seed(7))


def _advance(model: LlamaForCausalLM, slots: Slots, used: list[int], ids: Tensor) -> Tensor:
    plan = slots.plan(used, [ids.shape[1]] * len(used))
    step = SlotStep(slots, plan)
    with torch.no_grad():
        logits: Tensor = model(
            ids, position_ids=step.position_ids, use_cache=False, hybrid=step
        ).logits
    slots.commit(plan)
    return logits


def _walk(
    model: LlamaForCausalLM, slots: Slots, used: list[int], ids: Tensor, widest: int
) -> Tensor:
    outputs = []
    at = 0
    while at < ids.shape[1]:
        n = min(slots.room(used[0]), ids.shape[1] - at, widest)
        outputs.append(_advance(model, slots, used, ids[:, at : at + n]))
        at += n
    return torch.cat(outputs, dim=1)


def _trained(model: LlamaForCausalLM, policy: Policy, ids: Tensor) -> Tensor:
    HybridAttention.attach(model)
    attention = HybridAttention(policy, model)
    with torch.no_grad():
        logits: Tensor = model(
            ids, position_ids=attention.position_ids(ids), use_cache=False, hybrid=attention
        ).logits
    return logits


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("length", [96, 101])
@pytest.mark.parametrize("widest", [1, 5, 16], ids=["decode", "pieces", "chunks"])
def test_training_prefill_and_decode_give_the_same_logits(
    tiny_llama: LlamaForCausalLM, name: str, length: int, widest: int
) -> None:
    policy = built(POLICIES[name], tiny_llama)
    ids = _ids(length)
    expected = _trained(tiny_llama, policy, ids)
    logits = _walk(tiny_llama, _slots(policy, model=tiny_llama), [1], ids, widest)
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
    plan = slots.plan([0, 1], [16, 3])
    step = SlotStep(slots, plan)
    with torch.no_grad():
        logits = tiny_llama(
            padded, position_ids=step.position_ids, use_cache=False, hybrid=step
        ).logits
    slots.commit(plan)
    torch.testing.assert_close(logits[0], expected[0, 64:80], rtol=0, atol=1e-4)
    torch.testing.assert_close(logits[1, :3], expected[1, 64:67], rtol=0, atol=1e-4)
    assert slots.lengths[:2] == [80, 67]
    assert [slots.held(slot) for slot in (0, 1)] == [40, 40 + 3]
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


@pytest.mark.parametrize("name", ["h2o", "window", "random", "learned"])
def test_memory_stays_flat_over_eight_budgets(tiny_llama: LlamaForCausalLM, name: str) -> None:
    policy = built(POLICIES[name], tiny_llama)
    slots = _slots(policy, num_slots=1, max_length=1024)
    HybridAttention.attach(tiny_llama)
    before = slots.nbytes
    addresses = [plane.kv.positions.data_ptr() for plane in slots.planes]
    ids = _ids(8 * 40 + 16)
    held = []
    for t in range(ids.shape[1]):
        _advance(tiny_llama, slots, [0], ids[:, t : t + 1])
        held.append(slots.held(0))
    assert max(held) <= slots.planes[0].kv.positions.shape[2] == 40 + 16
    assert slots.nbytes == before
    assert [plane.kv.positions.data_ptr() for plane in slots.planes] == addresses
    assert before < slots.dense_nbytes(ids.shape[1])


def test_bytes_are_those_of_the_tensors() -> None:
    slots = _slots(build_policy(POLICIES["h2o"]), num_slots=5)
    entries = 2 * 5 * 2 * (40 + 16)  # layers, slots, heads, entries
    assert slots.nbytes == entries * (2 * 16 * 4 + 4 + 8)
    assert slots.slot_nbytes * 5 == slots.nbytes
    assert slots.dense_nbytes(1000) == 1000 * 2 * 2 * 2 * 16 * 4


def test_a_step_must_not_cross_a_chunk() -> None:
    slots = _slots(build_policy(POLICIES["h2o"]))
    with pytest.raises(ValueError, match="room for 16"):
        slots.plan([0], [17])


def test_a_step_must_not_exceed_the_longest_sequence() -> None:
    slots = _slots(build_policy(POLICIES["full"]), max_length=8)
    with pytest.raises(ValueError, match="max_length=8"):
        slots.plan([0], [9])


def test_heads_of_a_budget_share_a_plane() -> None:
    slots = _slots(build_policy(POLICIES["h2o_pattern"]))
    shapes = [
        [(plane.heads, plane.kv.positions.shape[2]) for plane in layer.planes]
        for layer in slots.layers
    ]
    assert shapes == [[((0,), 56), ((1,), 128)], [((0,), 40), ((1,), 46)]]
    entries = 3 * (56 + 128 + 40 + 46)
    assert slots.nbytes == entries * (2 * 16 * 4 + 4 + 8)
    slots.lengths[0] = 100  # 96 in whole chunks, 4 in this one
    assert slots.held(0) == ((40 + 4) + 100 + (24 + 4) + (30 + 4)) // 4


def test_a_pyramid_takes_no_more_than_a_flat_budget() -> None:
    flat = PolicyConfig(budget=41, recent=8, interval=8)
    pyramid = PolicyConfig(budget=41, recent=8, interval=8, layers="pyramid")
    for num_layers in (1, 2, 5, 30):
        budgets = [pyramid.budget_of(i, 0, num_layers) or 0 for i in range(num_layers)]
        assert sum(budgets) == num_layers * 41
        assert budgets == sorted(budgets, reverse=True)
        assert flat.budget_of(0, 0, num_layers) == 41
    assert [pyramid.budget_of(i, 0, 5) for i in range(5)] == [61, 51, 41, 31, 21]


@pytest.mark.parametrize("pattern", [{"L2": 30}, {"L0H2": None}])
def test_a_pattern_for_another_model_is_refused(pattern: dict[str, int | None]) -> None:
    config = PolicyConfig(budget=40, recent=20, interval=16, pattern=pattern)
    with pytest.raises(ConfigError, match=r"layers L0..L1 with KV heads H0..H1"):
        _slots(build_policy(config))


def test_a_slot_can_protect_more_first_tokens(tiny_llama: LlamaForCausalLM) -> None:
    policy = build_policy(PolicyConfig(name="window", budget=40, sink=4, recent=20, interval=16))
    slots = _slots(policy)
    HybridAttention.attach(tiny_llama)
    slots.reset(0, sink=18)
    slots.reset(1)
    for slot in (0, 1):
        _walk(tiny_llama, slots, [slot], _ids(96), widest=16)
    held = slots.planes[0].kv.positions[:, 0, :40].tolist()
    assert held[0] == [*range(18), *range(74, 96)]
    assert held[1] == [*range(4), *range(60, 96)]
    slots.reset(0)
    _walk(tiny_llama, slots, [0], _ids(96), widest=16)
    assert slots.planes[0].kv.positions[0, 0, :40].tolist() == held[1]


def test_a_slot_cannot_protect_more_than_its_smallest_head_holds() -> None:
    slots = _slots(build_policy(POLICIES["h2o_pattern"]))
    assert slots.under(None, None).max_sink == 24 - 20
    slots.reset(0, sink=4)
    with pytest.raises(ValueError, match="can protect 4"):
        slots.reset(0, sink=5)
    assert _slots(build_policy(POLICIES["full"])).under(None, None).max_sink is None


def test_rolling_positions_run_past_the_trained_context() -> None:
    """A stream of four contexts: its last logits depend only on the entries that are held."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=260,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    model = LlamaForCausalLM(config).eval()
    policy = build_policy(
        PolicyConfig(name="window", budget=32, sink=0, recent=32, interval=16, positions="rolling")
    )
    slots = _slots_for(model, policy, max_length=256)
    HybridAttention.attach(model)
    ids = _ids(256)
    logits = _walk(model, slots, [0], ids, widest=16)
    fresh = _slots_for(model, policy, max_length=256)
    again = _walk(model, fresh, [0], ids[:, -48:], widest=16)
    torch.testing.assert_close(logits[:, -16:], again[:, -16:], rtol=0, atol=1e-4)


def _slots_for(model: LlamaForCausalLM, policy: Policy, *, max_length: int) -> Slots:
    return Slots(model, policy, num_slots=1, max_length=max_length)


def test_rolling_positions_use_the_models_rope_scaling() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=260,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    )
    model = LlamaForCausalLM(config).eval()
    ids = _ids(160)
    with torch.no_grad():
        expected = model(ids).logits
    for positions in ("absolute", "rolling"):
        wide = PolicyConfig(budget=160, recent=80, interval=16, positions=positions)
        logits = _trained(model, build_policy(wide), ids)
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
        slots = _slots_for(model, build_policy(wide), max_length=160)
        torch.testing.assert_close(
            _walk(model, slots, [0], ids, widest=16), expected, rtol=0, atol=1e-4
        )
        model.set_attn_implementation("eager")


def test_rolling_positions_refuse_keys_that_are_rotated(tiny_llama: LlamaForCausalLM) -> None:
    policy = build_policy(POLICIES["h2o_rolling"])
    attention = HybridAttention(policy, tiny_llama)
    attention.attach(tiny_llama)
    with pytest.raises(ValueError, match=r"position_ids=hybrid\.position_ids"):
        tiny_llama(_ids(20), use_cache=False, hybrid=attention)
    with pytest.raises(ValueError, match=r"HybridAttention\(policy, model\)"):
        HybridAttention(policy)


def test_rolling_positions_refuse_another_rotation(tiny_llama: LlamaForCausalLM) -> None:
    model = GPTNeoXForCausalLM(  # rotates a quarter of each head
        GPTNeoXConfig(
            vocab_size=16,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
        )
    )
    with pytest.raises(ValueError, match=r"use policy\.positions=absolute"):
        Rotary(model)
