"""The engine with a real model."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from llamahome.attention import build_policy
from llamahome.config import EngineConfig, ModelConfig, PolicyConfig
from llamahome.engine import SamplingParams, TextDelta, TextEngine
from llamahome.models import LoadedModel, load_model

ASK = "Write a long, detailed account of how a bakery makes bread, from flour to the finished loaf."


@pytest.fixture(scope="module")
def embedded() -> LoadedModel:
    return load_model(ModelConfig(), device="cpu")


def _answer(
    embedded: LoadedModel, policy: PolicyConfig, question: str, max_tokens: int
) -> tuple[list[int], TextDelta, str]:
    """Return the prompt's ids, the last delta, and the whole text."""
    engine = TextEngine(
        embedded.model,
        embedded.tokenizer,
        build_policy(policy),
        EngineConfig(slots=1, max_length=1024, weights="fp32"),
    )
    prompt = engine.encode_chat([{"role": "user", "content": question}])
    engine.submit("one", prompt, SamplingParams(max_tokens=max_tokens))
    deltas: list[TextDelta] = []
    while engine.has_work:
        deltas += engine.step()
    return prompt, deltas[-1], "".join(delta.text for delta in deltas)


@pytest.mark.parametrize("question", ["Why is the sky blue?", "Name three rivers of Europe."])
def test_a_budget_of_the_length_answers_as_generate_does(
    embedded: LoadedModel, question: str
) -> None:
    policy = PolicyConfig(budget=256, recent=128, interval=32)
    prompt, _, text = _answer(embedded, policy, question, max_tokens=60)
    embedded.model.set_attn_implementation("eager")
    ids = torch.tensor([prompt])
    with torch.no_grad():
        out = embedded.model.generate(  # type: ignore[operator]
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=60
        )
    expected = embedded.tokenizer.decode(out[0, len(prompt) :], skip_special_tokens=True)
    assert text == expected
    assert len(text.split()) > 5


def test_the_text_stays_coherent_past_the_first_eviction(embedded: LoadedModel) -> None:
    """Find what was written from 96 entries likely under the dense model too, and without loops.

    A window without sinks or a random sample of the past fall into a loop here (at most a quarter
    of the tokens distinct); dense attention writes at 0.73 nats and 0.38 distinct.
    """
    policy = PolicyConfig(budget=96, sink=4, recent=48, interval=16)
    prompt, last, text = _answer(embedded, policy, ASK, max_tokens=220)
    assert last.usage is not None
    assert last.usage.evicted_tokens > 100
    answer = embedded.tokenizer.encode(text)
    embedded.model.set_attn_implementation("sdpa")
    with torch.no_grad():
        logits = embedded.model(torch.tensor([prompt + answer])).logits[0]
    losses = F.cross_entropy(logits[len(prompt) - 1 : -1], torch.tensor(answer), reduction="none")
    assert losses[100:].mean() < 1.5
    assert len(set(answer)) / len(answer) > 0.3
