"""Texts read through a runner and answers of the engine, against transformers."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from llamahome.attention import build_policy
from llamahome.config import EngineConfig, PolicyConfig
from llamahome.engine import RequestError, SamplingParams, TextEngine
from llamahome.evaluation.reading import answers, continuation_score, log_probs, open_runner, sized
from llamahome.native import NativeUnavailableError, load_native
from tests.evaluation.cases import EXACT, FULL, random_ids


def _generated(model: LlamaForCausalLM, prompt: list[int], count: int) -> list[int]:
    """Return the tokens that transformers generates, without an end-of-sequence token."""
    ids: list[int] = model.generate(  # type: ignore[misc]
        torch.tensor([prompt]), max_new_tokens=count, do_sample=False, eos_token_id=[2, 256]
    )[0, len(prompt) :].tolist()
    return [token for token in ids if token not in (2, 256)]


def _engine(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, max_length: int = 80
) -> TextEngine:
    return TextEngine(model, tokenizer, FULL, sized(EXACT, max_length))


def test_log_probs_are_the_models_own(tiny_llama: LlamaForCausalLM) -> None:
    [ids] = random_ids(75)
    runner = open_runner(tiny_llama, FULL, EXACT, max_length=75)
    found = torch.cat([log_probs(runner, ids[:30]), log_probs(runner, ids[30:])])
    with torch.no_grad():
        expected = tiny_llama(torch.tensor([ids])).logits[0].log_softmax(-1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("context", "length"), [(40, 1), (1, 25), (10, 300)])
def test_a_continuations_score_is_the_models_own(
    tiny_llama: LlamaForCausalLM, context: int, length: int
) -> None:
    [ids] = random_ids(context + length)
    runner = open_runner(tiny_llama, FULL, EXACT, max_length=len(ids))
    with torch.no_grad():
        found = tiny_llama(torch.tensor([ids])).logits[0, context - 1 : -1].log_softmax(-1)
    expected = float(found.gather(1, torch.tensor(ids[context:])[:, None]).sum())
    for _ in range(2):  # the slot is emptied for the next text
        score, greedy = continuation_score(runner, ids[:context], ids[context:])
        assert score == pytest.approx(expected, rel=1e-4)
        assert not greedy


def test_a_generated_continuation_is_greedy(tiny_llama: LlamaForCausalLM) -> None:
    [prompt] = random_ids(37)
    said = _generated(tiny_llama, prompt, 8)
    runner = open_runner(tiny_llama, FULL, EXACT, max_length=80)
    assert continuation_score(runner, prompt, said)[1] is True
    assert continuation_score(runner, prompt, [*said[:-1], said[-1] ^ 1])[1] is False


def test_answers_are_those_of_generate(
    tiny_llama: LlamaForCausalLM, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    prompts = random_ids(37, 16, 50, 23)  # one more than there are slots
    said = [_generated(tiny_llama, prompt, 12) for prompt in prompts]
    seen: list[int] = []
    given = answers(
        _engine(tiny_llama, byte_tokenizer),
        [(prompt, SamplingParams(max_tokens=12)) for prompt in prompts],
        on_answer=lambda: seen.append(1),
    )
    assert [text for text, _ in given] == [
        byte_tokenizer.decode(ids, skip_special_tokens=True) for ids in said
    ]
    assert [usage.completion_tokens for _, usage in given] == list(map(len, said))
    assert len(seen) == 4


def test_an_end_of_sequence_ends_one_answer_alone(
    tiny_llama: LlamaForCausalLM, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    prompts = random_ids(37, 16, 50)
    said = [_generated(tiny_llama, prompt, 12) for prompt in prompts]
    stop = said[0][3]
    params = SamplingParams(max_tokens=12, stop_token_ids=(stop,))
    engine = _engine(tiny_llama, byte_tokenizer)
    given = answers(engine, [(prompt, params) for prompt in prompts])
    ends = [ids.index(stop) if stop in ids else len(ids) for ids in said]
    assert [usage.completion_tokens for _, usage in given] == ends
    assert ends[0] <= 3


def test_a_prompt_that_does_not_fit_is_refused(
    tiny_llama: LlamaForCausalLM, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    [prompt] = random_ids(50)
    with pytest.raises(RequestError, match="max_tokens=12"):
        answers(_engine(tiny_llama, byte_tokenizer, 56), [(prompt, SamplingParams(max_tokens=12))])


def test_by_default_the_runner_is_the_one_that_serves(tiny_llama: LlamaForCausalLM) -> None:
    """Check that a CPU measures the 8-bit kernels, or torch in 8 bits where they cannot be had."""
    try:
        load_native()
        kind = "native"
    except NativeUnavailableError:
        kind = "torch"
    evicting = build_policy(PolicyConfig(budget=24, sink=4, recent=16, interval=8))
    for policy in (FULL, evicting):
        name = open_runner(tiny_llama, policy, EngineConfig(), max_length=32).name
        assert name.startswith(kind)
        assert "int8 weights" in name
