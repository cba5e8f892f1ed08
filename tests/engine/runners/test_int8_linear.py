"""8-bit linear layers of torch: close to float32, each token by itself, the original untouched."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from llamahome.attention import build_policy
from llamahome.config import PolicyConfig
from llamahome.engine.runners.contract import RowInput
from llamahome.engine.runners.int8_linear import Int8Linear, with_int8_linears
from llamahome.engine.runners.torch import TorchRunner
from tests.engine.random_models import mixed_steps, random_llama, random_qwen2, tokens_of

# peft 0.21 asks transformers 5.23 for a property by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

H2O = PolicyConfig(budget=40, sink=4, recent=20, interval=16)


def _layer(*, bias: bool = False, dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(96, 70, bias=bias, dtype=dtype)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_close_to_the_layer(bias: bool, dtype: torch.dtype) -> None:
    layer, x = _layer(bias=bias, dtype=dtype), torch.randn(2, 5, 96, dtype=dtype)
    found, expected = Int8Linear(layer)(x), layer(x)
    assert found.dtype == dtype
    assert found.shape == expected.shape
    assert float(((found - expected).norm() / expected.norm()).detach()) < 0.02


def test_a_token_comes_out_alike_in_any_company() -> None:
    layer, x = Int8Linear(_layer(bias=True)), torch.randn(6, 96)
    loud = x * torch.tensor([1e-6, 1.0, 1e6, 0.0, 30.0, 1e-3])[:, None]
    together = layer(loud)
    for i in range(6):
        assert torch.equal(together[i], layer(loud[i : i + 1])[0])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_token_that_is_not_finite_stays_alone(value: float) -> None:
    layer, x = Int8Linear(_layer()), torch.randn(3, 96)
    alone = layer(x)
    x[1, 7] = value
    found = layer(x)
    assert not torch.isfinite(found[1]).any()
    assert torch.equal(found[[0, 2]], alone[[0, 2]])


def test_the_original_stays_and_shares_its_other_weights() -> None:
    model = random_qwen2(tie_word_embeddings=True)
    before = copy.deepcopy(model.state_dict())
    found = with_int8_linears(model)
    assert not any(isinstance(m, Int8Linear) for m in model.modules())
    assert not any(type(m) is nn.Linear for m in found.modules())
    assert found.get_input_embeddings().weight is model.get_input_embeddings().weight
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_runner_in_8_bits_is_close_to_one_in_32() -> None:
    model = random_llama(initializer_range=0.05)
    exact, rounded = (
        TorchRunner(model, build_policy(H2O), num_slots=3, max_length=2048, int8=int8)
        for int8 in (False, True)
    )
    assert rounded.slots.dtype == torch.float32
    for (_, expected), (_, found) in zip(
        mixed_steps(exact, 12), mixed_steps(rounded, 12), strict=True
    ):
        assert float((found - expected).norm() / expected.norm()) < 0.1


def test_adapters_stay_as_they_are() -> None:
    torch.manual_seed(0)
    adapted = get_peft_model(
        random_llama(initializer_range=0.05),
        LoraConfig(init_lora_weights=False, target_modules=["q_proj", "down_proj"]),
        adapter_name="low",
    ).eval()
    exact, rounded = (
        TorchRunner(adapted, build_policy(H2O), num_slots=3, max_length=2048, int8=int8)
        for int8 in (False, True)
    )
    row = RowInput(slot=0, tokens=tokens_of(16, seed=1), adapter="low")
    expected, found = (runner.forward([row]).logits for runner in (exact, rounded))
    plain = rounded.forward([RowInput(slot=1, tokens=row.tokens)]).logits
    assert float((found - expected).norm() / expected.norm()) < 0.1
    assert float((plain - expected).norm() / expected.norm()) > 0.2
