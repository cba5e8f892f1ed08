"""Tokens and scores over HTTP, against transformers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.serve.one_replica import served

CHAT = [{"role": "user", "content": "Hi"}]


@pytest.fixture
async def client(tiny_model: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        served(tiny_model, weights="fp32") as app,
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http,
    ):
        yield http


async def post(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> Any:
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


async def test_a_text_becomes_transformers_tokens_and_text_again(client, tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    text = "Grüße </s> 👋"
    asked = {"model": "tiny", "prompt": text, "return_token_strs": True}
    body = await post(client, "/tokenize", asked)
    ids = tokenizer.encode(text)
    assert body == {
        "count": len(ids),
        "max_model_len": 512,
        "tokens": ids,
        "token_strs": tokenizer.convert_ids_to_tokens(ids),
    }
    assert await post(client, "/detokenize", {"tokens": ids}) == {"prompt": text}


@pytest.mark.parametrize(
    "options",
    [{}, {"add_generation_prompt": False}, {"continue_final_message": True}],
)
async def test_a_chat_becomes_transformers_tokens(client, tiny_model, options):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    begun = {"role": "assistant", "content": "Well"}
    chat = [*CHAT, begun] if options.get("continue_final_message") else CHAT
    body = await post(client, "/tokenize", {"messages": chat, **options})
    given = options or {"add_generation_prompt": True}
    rendered = tokenizer.apply_chat_template(chat, tokenize=False, **given)
    assert body["tokens"] == tokenizer.encode(rendered, add_special_tokens=False)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": CHAT}, "prompt"),
        ("/tokenize", {"prompt": "a", "continue_final_message": True}, "continue_final_message"),
        ("/tokenize", {"messages": CHAT, "add_special_tokens": True}, "add_special_tokens"),
        ("/detokenize", {"tokens": [99_999]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens.0"),
        ("/v1/score", {"model": "tiny", "text_1": ["a", "b"], "text_2": ["c"] * 3}, "text_1"),
        ("/v1/score", {"model": "tiny", "text_1": "a", "text_2": "c" * 600}, "text_2"),
        ("/v1/rerank", {"model": "tiny", "query": "q" * 600, "documents": ["a"]}, "query"),
        ("/v1/rerank", {"model": "tiny", "query": "q", "documents": []}, "documents"),
    ],
)
async def test_what_is_wrong_is_named(client, path, body, param):
    response = await client.post(path, json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def mean_logprob(model: Any, context: list[int], text: list[int]) -> float:
    with torch.no_grad():
        logits = model(torch.tensor([context + text])).logits[0].log_softmax(-1)
    at = range(len(context) - 1, len(context) + len(text) - 1)
    return float(sum(logits[i, token] for i, token in zip(at, text, strict=True)) / len(text))


async def test_scores_are_transformers_mean_logprobs(client, tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    texts = ["rain", "sun and wind", "x"]
    body = await post(client, "/v1/score", {"model": "tiny", "text_1": "After", "text_2": texts})
    expected = [
        mean_logprob(model, tokenizer.encode("After"), tokenizer.encode(text)) for text in texts
    ]
    assert [item["score"] for item in body["data"]] == pytest.approx(expected, abs=1e-4)
    assert [item["index"] for item in body["data"]] == [0, 1, 2]
    assert body["usage"]["prompt_tokens"] == sum(len(text) + 5 for text in texts)


async def test_documents_are_ranked_by_the_querys_likelihood(client):
    documents = ["one", "a second", "the third of them"]
    asked = {"model": "tiny", "query": "which", "documents": documents}
    ranked = (await post(client, "/v1/rerank", asked))["results"]
    scores = [result["relevance_score"] for result in ranked]
    assert scores == sorted(scores, reverse=True)
    assert all(0 < score < 1 for score in scores)
    assert [documents[r["index"]] for r in ranked] == [r["document"]["text"] for r in ranked]
    first = await post(client, "/rerank", {**asked, "top_n": 1, "return_documents": False})
    (best,) = first["results"]
    # Batches of other sizes round sums elsewhere.
    assert best == {"index": ranked[0]["index"], "relevance_score": pytest.approx(scores[0])}
