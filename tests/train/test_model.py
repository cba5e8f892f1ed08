"""The model to train: noise on its embeddings."""

from __future__ import annotations

import copy

import torch
from transformers import LlamaForCausalLM
from transformers.integrations.neftune import activate_neftune

from train.model import add_noise


def test_noise_is_that_of_transformers_trainer_and_only_in_training(
    tiny_llama: LlamaForCausalLM,
) -> None:
    ids = torch.randint(3, 256, (2, 30))
    plain = tiny_llama(ids).logits
    expected = copy.deepcopy(tiny_llama)
    activate_neftune(expected, 7.0)
    add_noise(tiny_llama, 7.0)
    logits = []
    for model in (tiny_llama, expected):
        torch.manual_seed(0)
        logits.append(model.train()(ids).logits)
    assert torch.equal(*logits)
    assert not torch.allclose(logits[0], plain, atol=1e-2)
    with torch.no_grad():  # a teacher or reference
        assert torch.equal(tiny_llama(ids).logits, plain)
    assert torch.equal(tiny_llama.eval()(ids).logits, plain)
