"""Training of the learned score: what it should predict, and that it learns to."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from llamahome.attention import build_policy
from llamahome.attention.policies.learned import LearnedScorer
from llamahome.attention.walk import Walk
from llamahome.config import PolicyConfig
from llamahome.evaluation.calibration import scorer as training
from llamahome.evaluation.calibration.recording import read
from llamahome.evaluation.calibration.scorer import example, fit
from tests.attention.sequences import token_ids

CONFIG = PolicyConfig(name="learned", budget=12, sink=2, recent=6, interval=4)
LENGTH = 42
LOOKUP = torch.tensor([[False, False], [False, True]])


def _scorer(model: LlamaForCausalLM) -> LearnedScorer:
    weights = build_policy(CONFIG, model).weights
    assert isinstance(weights, LearnedScorer)
    return weights


@torch.no_grad()
def _features(scorer: LearnedScorer, inputs: Tensor) -> Tensor:
    """Return the features of all layers, (L, G, N)."""
    return torch.stack([scorer.of(x.float(), i, (0, 1)) for i, x in enumerate(inputs)])


def test_an_entrys_future_is_the_attention_of_later_queries_or_the_largest(
    tiny_llama: LlamaForCausalLM,
) -> None:
    ids = token_ids(LENGTH)[0]
    own = example(read(tiny_llama, ids), _scorer(tiny_llama), CONFIG, LOOKUP)
    tiny_llama.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = tiny_llama(ids[None], output_attentions=True).attentions
    assert own.futures.shape == (2, 2, 10, LENGTH)
    for layer, group, chunk, entry in ((0, 0, 3, 5), (1, 1, 9, 2), (0, 1, 6, 20), (1, 0, 2, 4)):
        end = 4 * (chunk + 1)
        old = 2 <= entry < end - 6
        assert bool(own.old[chunk, entry]) == old
        received = attentions[layer][0, 2 * group : 2 * group + 2, end:, entry]
        mean = float(received.sum()) / (LENGTH - end)
        expected = float(received.max()) if LOOKUP[layer, group] else mean
        expected = expected if old else 0.0
        assert float(own.futures[layer, group, chunk, entry]) == pytest.approx(expected, rel=1e-3)


def test_its_inputs_are_unrotated_keys_and_values(tiny_llama: LlamaForCausalLM) -> None:
    ids = token_ids(LENGTH)[0]
    own = example(read(tiny_llama, ids), _scorer(tiny_llama), CONFIG, LOOKUP)
    layer = tiny_llama.model.layers[0]
    with torch.no_grad():
        hidden = layer.input_layernorm(tiny_llama.model.embed_tokens(ids))
        parts = [layer.self_attn.k_proj(hidden), layer.self_attn.v_proj(hidden)]
    expected = torch.cat([x.view(LENGTH, 2, 16) for x in parts], dim=-1).transpose(0, 1)
    torch.testing.assert_close(own.inputs[0].float(), expected, rtol=2e-3, atol=2e-3)


def test_training_lowers_the_deviance_and_the_weights_say_what_was_fitted(
    tiny_llama: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = read(tiny_llama, token_ids(LENGTH)[0])
    scorer = _scorer(tiny_llama)
    own = example(layers, scorer, CONFIG, LOOKUP)
    losses: list[float] = []
    monkeypatch.setattr(training, "LEARNING_RATE", 1e-2)
    fit(scorer, [own], epochs=60, on_epoch=losses.append)
    assert losses[-1] < losses[0] - 0.05
    # The weights, which read inputs as they are, give the loss of the last epoch.
    walk = Walk(
        policy=build_policy(CONFIG, tiny_llama, scorer.state_dict()),
        layer_idx=1, heads=(0, 1), scaling=0.25, rotary=None,
    )  # fmt: skip
    features = walk.features(layers[1].key, layers[1].value)
    assert features is not None
    expected = _features(scorer, own.inputs)[1]
    torch.testing.assert_close(features[0], expected, rtol=1e-2, atol=1e-2)
    mean = own.futures.sum(dim=(2, 3), keepdim=True) / own.old.sum()
    ages = 4 * torch.arange(1, 11)[:, None] - torch.arange(LENGTH)
    discount = scorer.discount[..., None, None] * ages.clamp_min(1).log()
    log_mean = _features(scorer, own.inputs).unsqueeze(2) - discount
    half = (log_mean / 2).exp()
    deviance = (2 * (own.futures / mean / half + half))[..., own.old].mean()
    assert float(deviance.detach()) == pytest.approx(losses[-1], rel=1e-3)


def test_what_it_expects_is_what_comes(tiny_llama: LlamaForCausalLM) -> None:
    """After training on a text, the entries it ranks highest there get most of the attention."""
    ids = token_ids(400)[0]
    layers = read(tiny_llama, ids)
    scorer = _scorer(tiny_llama)
    own = example(layers, scorer, CONFIG, LOOKUP)
    fit(scorer, [own], epochs=100)
    chunk = 60
    old = own.old[chunk]
    features = _features(scorer, own.inputs)
    futures = own.futures[:, :, chunk, old]
    best = features[:, :, old].topk(24, dim=-1).indices
    share = futures.gather(2, best).sum() / futures.topk(24, dim=-1).values.sum()
    recent = futures[..., -24:].sum() / futures.topk(24, dim=-1).values.sum()
    assert float(share) > float(recent) + 0.1
