"""Operations of a step, compared with torch's own count of what a model computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from llamahome.attention import build_policy
from llamahome.attention.shape import ModelShape
from llamahome.config import PolicyConfig
from llamahome.data import IGNORED
from tests.train.engine import QUIET
from train.flops import FlopCounter, LinearWeights, document_lengths, keys_seen

pytestmark = QUIET
DENSE = build_policy(PolicyConfig.dense())
LENGTH, LABELS = 24, 5


def batch() -> dict[str, torch.Tensor]:
    """Make a row whose last tokens are learned."""
    ids = torch.arange(LENGTH)[None] + 3
    labels = torch.full_like(ids, IGNORED)
    labels[:, -LABELS:] = ids[:, -LABELS:]
    return {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}


def computed(model: Any, shape: ModelShape) -> int:
    """Return what torch counts forward and backward, without the keys that causality hides."""
    model.set_attn_implementation("eager")
    kept = torch.arange(LENGTH - LABELS - 1, LENGTH - 1)
    with FlopCounterMode(display=False) as counter:
        model(batch()["input_ids"], logits_to_keep=kept, use_cache=False).logits.sum().backward()
    hidden = LENGTH**2 - LENGTH * (LENGTH + 1) // 2
    per_pair = 12 * shape.num_layers * shape.num_heads * shape.head_dim
    return int(counter.get_total_flops()) - per_pair * hidden


def counted(model: Any, plain: LlamaForCausalLM, **teacher: str) -> int:
    weights = LinearWeights.of(model, plain.get_output_embeddings())
    return FlopCounter(weights, ModelShape.of(plain), **teacher).step([batch()], DENSE)


def test_all_weights(tiny_llama: LlamaForCausalLM) -> None:
    shape = ModelShape.of(tiny_llama)
    assert counted(tiny_llama, tiny_llama) == computed(tiny_llama.train(), shape)


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], "all-linear", ["down_proj", "lm_head"]])
def test_adapters(tiny_llama: LlamaForCausalLM, targets: list[str] | str) -> None:
    norms = ["input_layernorm"]  # so that the gradient reaches the first layer's input
    lora = LoraConfig(r=4, target_modules=targets, modules_to_save=norms)
    model = get_peft_model(tiny_llama, lora)
    assert counted(model, tiny_llama) == computed(model.train(), ModelShape.of(tiny_llama))


def test_a_teacher_adds_one_forward_without_adapters(tiny_llama: LlamaForCausalLM) -> None:
    kept = torch.arange(LENGTH - LABELS - 1, LENGTH - 1)
    tiny_llama.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        tiny_llama(batch()["input_ids"], logits_to_keep=kept, use_cache=False)
    forward = int(counter.get_total_flops())
    shape = ModelShape.of(tiny_llama)
    pairs = LENGTH**2 - LENGTH * (LENGTH + 1) // 2
    forward -= 4 * shape.num_layers * shape.num_heads * shape.head_dim * pairs
    model = get_peft_model(tiny_llama, LoraConfig(r=4, target_modules=["q_proj"]))
    extra = counted(model, tiny_llama, teacher="dense") - counted(model, tiny_llama)
    assert extra == forward


def test_a_mixture_counts_the_experts_of_a_token() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 32}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    config = MixtralConfig(**sizes, **heads, num_local_experts=4, num_experts_per_tok=2)
    with torch.device("meta"):
        model = MixtralForCausalLM(config)
    weights = LinearWeights.of(model, model.get_output_embeddings(), experts_per_token=2)
    attention = 16 * (16 + 2 * 8) + 16 * 16
    router = sum(p.numel() for n, p in model.named_parameters() if ".gate.weight" in n)
    own = weights.trained - attention - 2 * 3 * 16 * 32
    assert own in (0, router)  # transformers has the router as a parameter or as a linear map
    assert weights.trained_head == 16 * 32


@pytest.mark.parametrize("budget", [None, 4, 6, 9, 100])
@pytest.mark.parametrize("interval", [1, 4, 7])
def test_keys_seen_under_a_budget(budget: int | None, interval: int) -> None:
    """One token after another: those kept from before its chunk, and its chunk so far."""
    policy = build_policy(PolicyConfig.dense())
    if budget is not None and budget > interval:
        sizes = {"budget": budget, "sink": 0, "recent": interval, "interval": interval}
        policy = build_policy(PolicyConfig(name="window", **sizes))
    for length in range(1, 30):
        seen = 0
        for token in range(length):
            offset = token % interval
            seen += policy.kept(token - offset) + offset + 1
        assert keys_seen(length, policy.config.budget, interval) == seen


def test_each_document_is_counted_by_its_own_length() -> None:
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    assert document_lengths({"attention_mask": mask}) == [5, 3]
    documents = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 2, -1, -1]])
    assert document_lengths({"attention_mask": mask, "documents": documents}) == [2, 3, 2, 1]
