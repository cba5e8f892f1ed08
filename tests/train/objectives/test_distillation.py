"""Distillation against log-probabilities of the plain dense model."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import PeftModel
from transformers import LlamaForCausalLM

from llamahome.attention import HybridAttention, build_policy
from llamahome.config import LoraConfig
from tests.train.objectives.rows import EVICTING, FULL, Wrapped, batch, trainable
from train.lora import add_adapters
from train.objectives import Distillation, cross_entropy

# from PEFT
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
DISTILLATION = Distillation(kl_weight=0.5)


def adapted(model: LlamaForCausalLM, *, trained: bool) -> PeftModel:
    trainable(model)
    model.name_or_path = "tiny"
    peft = add_adapters(model, LoraConfig(r=4), "tiny")
    torch.manual_seed(3)
    if trained:
        for parameter in peft.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn_like(parameter)
    return peft


def test_distillation_is_cross_entropy_and_divergence_from_the_dense_base(
    tiny_llama: LlamaForCausalLM,
) -> None:
    plain = copy.deepcopy(tiny_llama).double()
    peft = adapted(tiny_llama, trained=True).double()
    attention = HybridAttention(build_policy(EVICTING), tiny_llama)
    rows = batch([40, 25], [[5, 20, 39], [10, 24]])
    sums = DISTILLATION(Wrapped(peft), rows, attention)
    assert list(sums) == ["loss", "ce", "kl"]
    loss, ce, kl = (value.item() for value in sums.values())
    assert loss == pytest.approx(ce + 0.5 * kl)
    assert ce == pytest.approx(cross_entropy(peft, rows, attention)["loss"].item())
    plain.set_attn_implementation("eager")
    expected = torch.zeros((), dtype=torch.float64)
    for row, length in enumerate((40, 25)):
        ids = rows["input_ids"][row : row + 1, :length]
        dense = plain(ids).logits[0].log_softmax(-1)
        own = peft(input_ids=ids, use_cache=False, hybrid=attention).logits[0].log_softmax(-1)
        for position in (rows["labels"][row] != -100).nonzero().flatten().tolist():
            p, q = dense[position - 1], own[position - 1]
            expected = expected + (p.exp() * (p - q)).sum()
    assert kl == pytest.approx(expected.item(), rel=1e-5)
    assert kl > 0


def test_fresh_adapters_diverge_from_the_dense_model_by_eviction_alone(
    tiny_llama: LlamaForCausalLM,
) -> None:
    engine = Wrapped(adapted(tiny_llama, trained=False))
    rows = batch([40], [[20, 39]])
    full = HybridAttention(build_policy(FULL))
    assert DISTILLATION(engine, rows, full)["kl"].item() == pytest.approx(0, abs=1e-5)
    evicting = HybridAttention(build_policy(EVICTING), tiny_llama)
    assert DISTILLATION(engine, rows, evicting)["kl"].item() > 1e-3


def test_only_adapters_and_norms_learn_and_the_teacher_stays_the_base(
    tiny_llama: LlamaForCausalLM,
) -> None:
    tiny_llama.set_attn_implementation("eager")
    ids = batch([30], [[3]])["input_ids"]
    before = tiny_llama(ids).logits.detach()
    peft = adapted(tiny_llama, trained=True)
    attention = HybridAttention(build_policy(EVICTING), tiny_llama)
    DISTILLATION(Wrapped(peft), batch([40], [[20, 39]]), attention)["loss"].backward()
    learning = {name for name, p in peft.named_parameters() if p.grad is not None}
    assert learning
    assert all("lora_" in name or "norm" in name for name in learning)
    assert any("norm" in name for name in learning)
    full = HybridAttention(build_policy(FULL))
    with peft.disable_adapter():
        after = peft(input_ids=ids, use_cache=False, hybrid=full).logits
    torch.testing.assert_close(after, before, rtol=0, atol=1e-4)
