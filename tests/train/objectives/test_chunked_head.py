"""The output layer over chunks: the loss and gradients of whole logits, and no tensor as large."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig as PeftLora
from peft import PeftModel, get_peft_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    Cohere2Config,
    Gemma2Config,
    GraniteConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto import AutoModelForCausalLM

from llamahome.attention import HybridAttention, build_policy
from tests.train.objectives.rows import FULL, Wrapped, batch, trainable
from train.data import Batch
from train.objectives import DPO, ORPO, CrossEntropy, Distillation

# from PEFT
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

ATTENTION = HybridAttention(build_policy(FULL))
VOCABULARY = 97
CONFIGS: dict[str, tuple[Callable[..., PreTrainedConfig], dict[str, Any]]] = {
    "llama": (LlamaConfig, {}),
    "tied": (LlamaConfig, {"tie_word_embeddings": True}),
    "scaled": (GraniteConfig, {"logits_scaling": 3.0}),
    "capped": (Gemma2Config, {"final_logit_softcapping": 2.0, "attn_logit_softcapping": None}),
    "multiplied": (Cohere2Config, {"logit_scale": 0.3, "sliding_window": 64}),
}
OBJECTIVES: dict[str, Callable[..., dict[str, Tensor]]] = {
    "cross_entropy": CrossEntropy(),
    "label_smoothing": CrossEntropy(0.2),
    "distillation": Distillation(0.7),
    "dpo": DPO(0.3),
    "orpo": ORPO(0.4),
}


def model_of(kind: str, vocabulary: int = VOCABULARY) -> PreTrainedModel:
    torch.manual_seed(0)
    config_class, more = CONFIGS[kind]
    config = config_class(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        **more,
    )
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model.double().train()


def adapted(kind: str, chunk: int) -> PeftModel:
    """Return a model with adapters on the output layer too, that have learned something."""
    model = trainable(model_of(kind), chunk)
    model.name_or_path = "tiny"
    peft = get_peft_model(model, PeftLora(r=2, target_modules=["q_proj", "lm_head"]))
    torch.manual_seed(3)
    for parameter in peft.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return peft.double()


def pairs() -> Batch:
    """Return two pairs of answers in rows of their own."""
    rows = batch([14, 11], [[3, 4, 9, 10, 13], [4, 8]])
    rows["input_ids"] %= VOCABULARY
    rows["labels"] = torch.where(rows["labels"] == -100, -100, rows["input_ids"])
    place = torch.arange(14)
    rows["documents"] = torch.stack(
        [(place >= 7).long(), torch.where(place < 11, (place >= 6).long(), -1)]
    )
    return rows


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("kind", CONFIGS)
def test_chunks_have_the_loss_and_gradients_of_transformers_logits(
    kind: str, smoothing: float
) -> None:
    model, rows = trainable(model_of(kind), 3 * VOCABULARY), pairs()
    del rows["documents"]
    positions = ATTENTION.position_ids(rows["input_ids"])
    logits = model(
        input_ids=rows["input_ids"], position_ids=positions, use_cache=False, hybrid=ATTENTION
    ).logits
    expected = F.cross_entropy(
        logits[:, :-1].flatten(0, 1),
        rows["labels"][:, 1:].flatten(),
        reduction="sum",
        label_smoothing=smoothing,
    )
    expected.backward()
    whole = gradients(model)
    model.zero_grad()
    loss = CrossEntropy(smoothing)(model, rows, ATTENTION)["loss"]
    (2 * loss).backward()
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
    double = {name: 2 * gradient for name, gradient in whole.items()}
    torch.testing.assert_close(gradients(model), double, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["llama", "tied", "scaled"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_adapters_on_the_output_layer_learn_the_same_in_chunks(name: str, kind: str) -> None:
    found = []
    for chunk in (10**6, 2 * VOCABULARY):
        model = adapted(kind, chunk)
        columns = OBJECTIVES[name](Wrapped(model), pairs(), ATTENTION)
        columns["loss"].backward()
        assert any("lm_head" in name for name in gradients(model))
        found.append(({n: c.detach() for n, c in columns.items()}, gradients(model)))
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-10)


class Largest(TorchDispatchMode):
    """The most elements of any tensor that an operator returns."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.elements = max(self.elements, *sizes, 0)
        return result


@pytest.mark.parametrize("name", OBJECTIVES)
def test_no_tensor_is_larger_than_a_chunk(name: str) -> None:
    """Only the weights of the output layer, and their gradient, are."""
    vocabulary, chunk, labels = 2**17, 2**21, 100
    model = trainable(model_of("llama", vocabulary).float(), chunk)
    peft = get_peft_model(model, PeftLora(r=2, target_modules=["q_proj"]))
    tokens = torch.randint(3, vocabulary, (1, labels + 2))
    rows = {
        "input_ids": tokens,
        "labels": tokens,
        "documents": (torch.arange(labels + 2) > labels // 2).long()[None],
    }
    with Largest() as largest:
        OBJECTIVES[name](Wrapped(peft), rows, ATTENTION)["loss"].backward()
    assert chunk <= largest.elements < labels * vocabulary / 4
