from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from llamahome.config import PolicyConfig
from llamahome.models import (
    ModelError,
    PolicyFormatError,
    read_adapter_policy,
    read_policy,
    write_adapter_policy,
    write_policy,
)

POLICIES = [
    PolicyConfig(name="h2o", budget=96, sink=2, recent=32, interval=16),
    PolicyConfig(name="random", budget=64, sink=1, recent=8, interval=4, seed=7),
    PolicyConfig.dense(),
]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
def test_a_policy_survives_saving_and_loading(
    policy: PolicyConfig, tiny_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    write_policy(tiny_llama.config, policy)
    tiny_llama.save_pretrained(tmp_path)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path)
    loaded.save_pretrained(tmp_path / "again")
    assert read_policy(tmp_path / "again") == policy


def test_the_stored_form_is_plain_json_with_a_format_number(tmp_path: Path) -> None:
    config = LlamaConfig()
    write_policy(config, POLICIES[0])
    config.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())["llamahome"]
    assert stored["format"] == 1
    assert stored["policy"]["budget"] == 96


def test_a_plain_config_carries_no_policy(tmp_path: Path) -> None:
    LlamaConfig().save_pretrained(tmp_path)
    assert read_policy(tmp_path) is None


def test_the_policy_named_carried_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="carried"):
        write_policy(LlamaConfig(), PolicyConfig(name="carried", budget=None))


GOOD = {"name": "h2o", "budget": 96, "sink": 2, "recent": 32, "interval": 16, "seed": 0}


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"format": 2, "policy": GOOD}, r"format=2, this version reads 1"),
        ({"policy": GOOD}, r"format=None"),
        ({"format": 1}, r"holds no policy"),
        ("h2o", r"holds no policy"),
        ({"format": 1, "policy": {**GOOD, "budgte": 5}}, r"budgte"),
        ({"format": 1, "policy": {**GOOD, "budget": "many"}}, r"budget"),
        ({"format": 1, "policy": {**GOOD, "budget": 8}}, r"policy\.budget=8"),
        ({"format": 1, "policy": {**GOOD, "name": "${oc.env:HOME}"}}, r"interpolation"),
    ],
)
def test_the_error_for_an_unreadable_policy_says_why(
    stored: object, message: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"llamahome": stored}))
    with pytest.raises(PolicyFormatError, match=message):
        read_policy(tmp_path)


def test_an_adapters_policy_is_kept_in_its_own_file(tmp_path: Path) -> None:
    assert read_adapter_policy(tmp_path) is None
    write_adapter_policy(tmp_path, POLICIES[1])
    assert read_adapter_policy(tmp_path) == POLICIES[1]


@pytest.mark.parametrize("text", ["", "[]", '{"format": 9, "policy": {}}'])
def test_the_error_for_an_adapters_unreadable_policy_names_the_file(
    text: str, tmp_path: Path
) -> None:
    (tmp_path / "llamahome.json").write_text(text)
    with pytest.raises(ModelError, match=r"llamahome\.json"):
        read_adapter_policy(tmp_path)
