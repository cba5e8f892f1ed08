"""Embeddings and prompt log-probabilities against transformers under full attention."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedModel

from llamahome.config import PolicyConfig
from llamahome.engine import Engine, RequestError, SamplingParams
from llamahome.models.adapters import attach_adapters, merge_adapter
from tests.engine.engines import build_engine, drain
from tests.engine.random_models import tokens_of

# peft 0.21 asks transformers 5.23 for a property by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

FULL = PolicyConfig.dense(interval=16)
H2O = PolicyConfig(name="h2o", budget=40, sink=4, recent=20, interval=16)
LENGTHS = [1, 2, 15, 16, 17, 64, 100]


def _engine(
    model: PreTrainedModel, runner: str, policy: PolicyConfig = FULL, **options: Any
) -> Engine:
    defaults = {"runner": runner, "slots": 3, "max_length": 256}
    return build_engine(model, policy, **{**defaults, **options})


@torch.no_grad()
def _whole(model: LlamaForCausalLM, ids: list[int]) -> tuple[Tensor, Tensor]:
    """Return the last hidden states (T, hidden) and logits (T, V) of transformers."""
    dense = copy.deepcopy(model)
    dense.set_attn_implementation("eager")
    output = dense(torch.tensor([ids]), output_hidden_states=True)
    return output.hidden_states[-1][0], output.logits[0]


def _expected(model: LlamaForCausalLM, ids: list[int]) -> Tensor:
    mean = _whole(model, ids)[0].mean(dim=0)
    return mean / mean.norm()


def test_an_embedding_is_the_mean_of_the_last_hidden_states(
    tiny_llama: LlamaForCausalLM, runner: str
) -> None:
    """Share the steps with a chat, over texts of one chunk and of many."""
    texts = {f"t{n}": tokens_of(n, seed=n) for n in LENGTHS}
    engine = _engine(tiny_llama, runner, prefill_tokens=24)
    engine.submit("chat", tokens_of(30, seed=0), SamplingParams(max_tokens=40))
    for name, text in texts.items():
        engine.submit_embedding(name, text)
    deltas = drain(engine)
    for name, text in texts.items():
        (delta,) = deltas[name]
        assert delta.embedding is not None
        assert delta.embedding.shape == (64,)
        assert float(delta.embedding.norm()) == pytest.approx(1, abs=1e-5)
        torch.testing.assert_close(delta.embedding, _expected(tiny_llama, text), rtol=0, atol=1e-4)
        assert (delta.token, delta.finish_reason) == (None, "length")
        assert delta.usage is not None
        assert (delta.usage.prompt_tokens, delta.usage.completion_tokens) == (len(text), 0)
    assert len(deltas["chat"]) == 40
    assert engine.stats().slots_used == 0


def test_within_its_budget_an_evicting_engine_gives_the_same_embedding(
    tiny_llama: LlamaForCausalLM, runner: str
) -> None:
    engine = _engine(tiny_llama, runner, H2O)
    text = tokens_of(48, seed=1)
    for name in ("first", "again"):  # a snapshot must not spare what is to be averaged
        engine.submit_embedding(name, text)
        (delta,) = drain(engine)[name]
        assert delta.embedding is not None
        torch.testing.assert_close(delta.embedding, _expected(tiny_llama, text), rtol=0, atol=1e-4)


def test_an_adapter_embeds_too(tiny_llama: LlamaForCausalLM, tmp_path: Path, runner: str) -> None:
    lora = LoraConfig(r=2, target_modules=["v_proj"], init_lora_weights=False)
    get_peft_model(copy.deepcopy(tiny_llama), lora).save_pretrained(tmp_path)
    merged = merge_adapter(copy.deepcopy(tiny_llama), tmp_path)
    text = tokens_of(40, seed=1)
    engine = _engine(attach_adapters(copy.deepcopy(tiny_llama), {"a": tmp_path}), runner)
    engine.submit_embedding("with", text, adapter="a")
    engine.submit_embedding("without", text)
    deltas = drain(engine)
    for name, model in (("with", merged), ("without", tiny_llama)):
        (delta,) = deltas[name]
        assert delta.embedding is not None
        torch.testing.assert_close(delta.embedding, _expected(model, text), rtol=0, atol=1e-4)


@pytest.mark.parametrize("length", LENGTHS)
def test_prompt_logprobs_are_those_of_transformers(
    tiny_llama: LlamaForCausalLM, runner: str, length: int
) -> None:
    prompt = tokens_of(length, seed=length)
    expected = _whole(tiny_llama, prompt)[1].log_softmax(dim=-1)
    engine = _engine(tiny_llama, runner, prefill_tokens=24)
    engine.submit("scored", prompt, SamplingParams(max_tokens=0, prompt_logprobs=2))
    engine.submit("answered", prompt, SamplingParams(max_tokens=3, prompt_logprobs=2))
    deltas = drain(engine)
    assert len(deltas["scored"]) == 1
    for name in ("scored", "answered"):
        found = deltas[name][0].prompt_logprobs
        assert len(found) == length
        assert found[0] == (None, ())
        assert not any(delta.prompt_logprobs for delta in deltas[name][1:])
        for t, (own, likeliest) in enumerate(found[1:]):
            assert own == pytest.approx(float(expected[t, prompt[t + 1]]), abs=1e-3)
            top = expected[t].topk(2)
            assert [token for token, _ in likeliest] == top.indices.tolist()
            assert [p for _, p in likeliest] == pytest.approx(top.values.tolist(), abs=1e-3)


def test_a_text_that_cannot_be_embedded_is_refused(tiny_llama: LlamaForCausalLM) -> None:
    engine = _engine(tiny_llama, "torch")
    for text, adapter, reason in (
        ([], None, "prompt='': it must hold at least one token"),
        ([260], None, "prompt=260: token ids are whole numbers in"),
        ([3] * 257, None, "prompt='257 tokens': the context holds 256"),
        ([3], "law", "adapter='law': the adapters are: none"),
    ):
        with pytest.raises(RequestError, match=reason):
            engine.submit_embedding("one", text, adapter=adapter)
    engine.submit_embedding("longest", [3] * 256)
    assert len(drain(engine)["longest"]) == 1


def test_what_is_no_number_is_an_error_not_an_answer(
    tiny_llama: LlamaForCausalLM, runner: str
) -> None:
    tiny_llama.model.embed_tokens.weight.data[17] = float("nan")
    engine = _engine(tiny_llama, runner)
    engine.submit_embedding("embedded", [3, 17, 4])
    engine.submit("scored", [3, 17, 4], SamplingParams(max_tokens=0, prompt_logprobs=0))
    engine.submit_embedding("good", [3, 5, 4])
    deltas = drain(engine)
    for name in ("embedded", "scored"):
        (delta,) = deltas[name]
        assert delta.finish_reason == "error"
        assert "not finite" in str(delta.error)
        assert delta.embedding is None
    assert deltas["good"][0].embedding is not None
    assert engine.stats().requests_failed == 2


def test_a_cancelled_embedding_leaves_nothing(tiny_llama: LlamaForCausalLM, runner: str) -> None:
    engine = _engine(tiny_llama, runner, slots=1, prefill_tokens=16)
    text = tokens_of(64, seed=1)
    engine.submit_embedding("same", text)
    engine.step()
    engine.cancel("same")
    assert not engine.has_work
    engine.submit_embedding("same", text)
    (delta,) = drain(engine)["same"]
    assert delta.embedding is not None
    torch.testing.assert_close(delta.embedding, _expected(tiny_llama, text), rtol=0, atol=1e-4)
