"""Windows of texts, and the passes of calibration over them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from llamahome.attention import build_policy
from llamahome.config import ConfigError, PolicyConfig
from llamahome.evaluation.calibration.budgets import head_errors
from llamahome.evaluation.calibration.readings import measure, train, windows
from llamahome.evaluation.calibration.recording import record
from tests.attention.sequences import token_ids

CONFIG = PolicyConfig(name="learned", budget=12, sink=2, recent=6, interval=4)


@pytest.fixture
def text(tmp_path: Path) -> str:
    file = tmp_path / "text.txt"
    file.write_text("".join(chr(97 + i // 10 % 26) for i in range(1000)))
    return str(file)


@pytest.mark.parametrize(("count", "starts"), [(1, [0]), (2, [0, 900]), (4, [0, 300, 600, 900])])
def test_windows_are_spread_over_the_text(
    byte_tokenizer: PreTrainedTokenizerFast, text: str, count: int, starts: list[int]
) -> None:
    ids = byte_tokenizer.encode(Path(text).read_text(), add_special_tokens=False)
    found = windows(byte_tokenizer, text, length=100, count=count)
    assert [window.tolist() for window in found] == [ids[s : s + 100] for s in starts]


def test_a_text_that_is_too_short_is_refused(
    byte_tokenizer: PreTrainedTokenizerFast, text: str
) -> None:
    with pytest.raises(ConfigError, match="it has 1000 tokens; --windows=3 of --context=400"):
        windows(byte_tokenizer, text, length=400, count=3)


def test_errors_are_means_over_texts(tiny_llama: LlamaForCausalLM) -> None:
    texts = token_ids(80)[0].split(40)
    policy = build_policy(PolicyConfig(budget=12, sink=2, recent=6, interval=4))
    ticks: list[int] = []
    found = measure(tiny_llama, policy, texts, [12, 20], tick=lambda: ticks.append(1))
    assert found.shape == (2, 2, 2)
    assert len(ticks) == 2
    for k, budget in enumerate((12, 20)):
        first, second = (
            head_errors(record(tiny_llama, ids, seed=number), policy, budget)
            for number, ids in enumerate(texts)
        )
        torch.testing.assert_close(found[..., k], (first + second) / 2)


def test_training_changes_the_policy_in_place(tiny_llama: LlamaForCausalLM) -> None:
    policy = build_policy(CONFIG, tiny_llama)
    before = policy.digest()
    ticks: list[int] = []
    losses: list[float] = []
    train(
        tiny_llama,
        policy,
        token_ids(600)[0].split(200),
        torch.zeros(2, 2, dtype=torch.bool),
        tick=lambda: ticks.append(1),
        on_epoch=losses.append,
    )
    assert len(ticks) == 3
    assert losses[-1] < losses[0]
    assert policy.digest() != before
