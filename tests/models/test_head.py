"""Logits of models that scale or cap what their output layer gives."""

from __future__ import annotations

import pytest
import torch
from transformers import CohereConfig, GraniteConfig, HyperCLOVAXConfig, NanoChatConfig

from llamahome.models.head import output_logits
from llamahome.models.pretrained import decoder_class
from tests.models.architectures import tiny_config, tiny_model

IDS = torch.arange(3, 20)[None]


@pytest.mark.parametrize(
    ("config_class", "changes"),
    [
        (GraniteConfig, {"logits_scaling": 8.0}),
        (HyperCLOVAXConfig, {"logits_scaling": 0.25}),
        (CohereConfig, {"logit_scale": 0.0625}),
        (NanoChatConfig, {"final_logit_softcapping": 2.0}),
    ],
)
@torch.no_grad()
def test_logits_are_those_of_the_whole_model(config_class: type, changes: dict) -> None:
    config = tiny_config(config_class)
    config.update(changes)
    model = tiny_model(decoder_class(config), config)
    hidden = model.base_model(IDS).last_hidden_state
    expected = model(IDS).logits
    torch.testing.assert_close(output_logits(model, hidden), expected)
    bare = model.get_output_embeddings()(hidden)
    assert (bare - expected).abs().max() > 0.1
