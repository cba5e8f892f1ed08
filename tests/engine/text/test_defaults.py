"""Sampling parameters from a model's generation_config.json."""

from __future__ import annotations

import pytest
from transformers import GenerationConfig

from llamahome.config import ConfigError
from llamahome.engine.text.defaults import sampling_defaults


def test_what_the_file_sets_has_our_names_and_the_rest_is_left_out() -> None:
    given = GenerationConfig(
        do_sample=True,
        temperature=0.6,
        top_p=0.9,
        top_k=20,
        min_p=0.05,
        repetition_penalty=1.05,
        max_new_tokens=300,
        eos_token_id=[1, 2],
    )
    assert sampling_defaults(given) == {
        "temperature": 0.6,
        "top_p": 0.9,
        "top_k": 20,
        "min_p": 0.05,
        "repetition_penalty": 1.05,
        "max_tokens": 300,
    }
    assert sampling_defaults(GenerationConfig(eos_token_id=2)) == {}
    assert sampling_defaults(GenerationConfig(top_k=-1)) == {"top_k": 0}


@pytest.mark.parametrize(
    ("field", "value"), [("temperature", 300.0), ("top_p", 0.0), ("max_new_tokens", 0)]
)
def test_a_value_out_of_range_is_named_with_the_cure(field: str, value: float) -> None:
    config = GenerationConfig()
    setattr(config, field, value)
    with pytest.raises(
        ConfigError, match=rf"has {field}={value}: .*engine\.generation_config=none"
    ):
        sampling_defaults(config)
