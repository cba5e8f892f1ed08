"""Models that llama.cpp would compute otherwise."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import Gemma2Config, MistralConfig, Qwen2Config

from llamahome.config import PolicyConfig
from tests.train.publish.conftest import POLICY, small
from train.errors import ExportError
from train.publish.gguf_preflight import check_model

YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
REFUSED = {
    "model_type='gemma2'": Gemma2Config(),
    "hidden_act='gelu' of config.json would be lost": small(hidden_act="gelu"),
    "attention_bias=True": small(attention_bias=True),
    "rope_type='yarn' of config.json would be lost": small(rope_parameters=YARN),
    "rope_type='llama3' of config.json": small(Qwen2Config, rope_parameters=LLAMA3),
    "sliding_window=64 of config.json would be lost": small(MistralConfig, sliding_window=64),
    "sliding_window=32 of": small(
        Qwen2Config, use_sliding_window=True, sliding_window=32, max_window_layers=1
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_would_be_lost_is_refused(message: str) -> None:
    with pytest.raises(ExportError, match="--format merged") as caught:
        check_model(REFUSED[message], None, allow_dense=True)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "config", [small(), small(rope_parameters=LLAMA3), small(MistralConfig, sliding_window=512)]
)
def test_what_is_carried_passes(config: Any) -> None:
    check_model(config, PolicyConfig.dense(), allow_dense=False)


def test_eviction_needs_consent() -> None:
    learned = PolicyConfig(name="learned", budget=24, sink=2, recent=12, interval=8)
    with pytest.raises(ExportError, match=r"policy\.name=h2o, policy\.budget=24.*served dense"):
        check_model(small(), POLICY, allow_dense=False)
    with pytest.raises(ExportError, match=r"and no weights of a policy: it will be served dense"):
        check_model(small(), learned, allow_dense=False)
    check_model(small(), learned, allow_dense=True)
