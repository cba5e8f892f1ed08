"""Recorded attention and its gradients, against transformers' own attention and autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaForCausalLM

from llamahome.evaluation.calibration import recording
from llamahome.evaluation.calibration.recording import read, record
from tests.attention.sequences import token_ids

IDS = token_ids(40)[0]


def _outputs(model: LlamaForCausalLM) -> tuple[Tensor, list[Tensor]]:
    """Run transformers' attention; return logits, and what each layer's output projection reads."""
    model.set_attn_implementation("eager")
    read: list[Tensor] = []

    def keep(module: Any, inputs: tuple[Tensor]) -> None:
        inputs[0].retain_grad()
        read.append(inputs[0])

    hooks = [layer.self_attn.o_proj.register_forward_pre_hook(keep) for layer in model.model.layers]
    logits = model(IDS[None]).logits[0]
    for hook in hooks:
        hook.remove()
    return logits, read


def _by_head(x: Tensor | None) -> Tensor:
    assert x is not None
    return x.unflatten(-1, (4, 16)).transpose(1, 2)


@pytest.mark.parametrize("piece", [7, 256])
def test_gradients_are_of_targets_that_the_model_drew(
    tiny_llama: LlamaForCausalLM, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "PIECE", piece)
    layers = record(tiny_llama, IDS, seed=5)
    assert all(parameter.requires_grad for parameter in tiny_llama.parameters())
    logits, read = _outputs(tiny_llama)
    draw = torch.Generator().manual_seed(5)
    probs = logits.detach().softmax(dim=-1)
    targets = torch.cat([torch.multinomial(p, 1, generator=draw)[:, 0] for p in probs.split(piece)])
    F.cross_entropy(logits, targets, reduction="sum").backward()
    for layer, own in zip(layers, read, strict=True):
        torch.testing.assert_close(layer.out, _by_head(own.detach()), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(layer.grad, _by_head(own.grad), rtol=1e-3, atol=1e-5)
        assert layer.key.shape == layer.value.shape == (1, 2, 40, 16)
        assert layer.query.shape == (1, 4, 40, 16)
        assert layer.scaling == 0.25


def test_reading_alone_gives_the_same_without_gradients(tiny_llama: LlamaForCausalLM) -> None:
    for own, other in zip(read(tiny_llama, IDS), record(tiny_llama, IDS, seed=0), strict=True):
        assert own.grad is None
        for name in ("query", "key", "value", "out"):
            torch.testing.assert_close(getattr(own, name), getattr(other, name))
