"""POST /v1/score and /v1/rerank: texts compared by the log-probability that the model gives them.

A score is the mean log-probability of a text's tokens after another text, under the model alone:
0 is certain, and lower is less likely. A reranker's query is scored after each document and a
request to ask about it, so documents are ordered by query likelihood (Ponte and Croft 1998, SIGIR;
with a language model: Sachan et al. 2022, arXiv 2204.07496).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from pydantic import BeforeValidator, Field
from typing_extensions import TypedDict

from serve.http.answering import Answering
from serve.http.bodies import parse
from serve.http.errors import invalid_request
from serve.http.fields import Strict
from serve.http.logprobs import LEAST
from serve.http.protocol import MAX_INPUTS
from serve.http.responses import Head
from serve.http.routes.route import Route
from serve.wire import Delta, ScoreRequest

PASSAGE = "Passage: {}\nPlease write a question based on this passage.\nQuestion: "


def _as_list(texts: object) -> object:
    return [texts] if isinstance(texts, str) else texts


Text = Annotated[str, Field(min_length=1)]
Texts = Annotated[list[Text], Field(min_length=1, max_length=MAX_INPUTS), BeforeValidator(_as_list)]


class ScoreBody(Strict):
    """POST /v1/score, in vLLM's shape: one text_1 for all of text_2, or one for each."""

    model: str
    text_1: Texts
    text_2: Texts

    def pairs(self) -> list[tuple[str, str]]:
        """Return each context with the text that follows it.

        Raises:
            ApiError: when the two lists do not match.
        """
        if len(self.text_1) not in (1, len(self.text_2)):
            raise invalid_request(
                f"text_1: {len(self.text_1)} texts for {len(self.text_2)} of text_2; "
                "send one, or one for each",
                "text_1",
            )
        contexts = self.text_1 * (len(self.text_2) // len(self.text_1))
        return list(zip(contexts, self.text_2, strict=True))


class RerankBody(Strict):
    """POST /v1/rerank, in the shape that Jina and Cohere share."""

    model: str
    query: Text
    documents: Texts
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool = True


class TokensRead(TypedDict):
    """The tokens that were read."""

    prompt_tokens: int
    total_tokens: int


class Score(TypedDict):
    """The score of one text."""

    index: int
    object: Literal["score"]
    score: float


class ScoreAnswer(Head):
    """The scores of texts."""

    object: Literal["list"]
    data: list[Score]
    usage: TokensRead


class RerankAnswer(TypedDict):
    """Documents, the most relevant first."""

    id: str
    model: str
    usage: TokensRead
    results: list[dict[str, Any]]


def routes(answering: Answering) -> list[Route]:
    """Return the routes of scores."""

    async def likelihoods(
        head: Head, pairs: Sequence[tuple[str, str]], field: str
    ) -> tuple[list[float], int]:
        """Return the score of each text after its context, and the number of tokens read."""
        adapter = answering.adapter(head["model"])
        answers = await answering.each(
            [
                ScoreRequest(
                    request_id=f"{head['id']}-{index}",
                    context=context,
                    text=text,
                    adapter=adapter,
                    field=field,
                )
                for index, (context, text) in enumerate(pairs)
            ]
        )
        tokens = sum(answer.usage.prompt_tokens for answer in answers if answer.usage is not None)
        return [mean_logprob(answer) for answer in answers], tokens

    async def score(request: Request) -> Response:
        body = await parse(request, ScoreBody)
        head = answering.head("score", body.model)
        scores, tokens = await likelihoods(head, body.pairs(), "text_2")
        data = [Score(index=i, object="score", score=score) for i, score in enumerate(scores)]
        usage = TokensRead(prompt_tokens=tokens, total_tokens=tokens)
        return JSONResponse(ScoreAnswer(**head, object="list", data=data, usage=usage))

    async def rerank(request: Request) -> Response:
        body = await parse(request, RerankBody)
        head = answering.head("rerank", body.model)
        pairs = [(PASSAGE.format(document), body.query) for document in body.documents]
        scores, tokens = await likelihoods(head, pairs, "query")
        ranked = sorted(range(len(scores)), key=lambda index: -scores[index])[: body.top_n]
        results = [_result(body, index, scores[index]) for index in ranked]
        usage = TokensRead(prompt_tokens=tokens, total_tokens=tokens)
        return JSONResponse(
            RerankAnswer(id=head["id"], model=body.model, usage=usage, results=results)
        )

    return [
        Route("/v1/score", score, "POST", ScoreBody, ScoreAnswer),
        Route("/score", score, "POST", ScoreBody, ScoreAnswer),
        Route("/v1/rerank", rerank, "POST", RerankBody, RerankAnswer),
        Route("/rerank", rerank, "POST", RerankBody, RerankAnswer),
        Route("/v2/rerank", rerank, "POST", RerankBody, RerankAnswer),
    ]


def mean_logprob(answer: Delta) -> float:
    """Return the mean log-probability of an answer's tokens."""
    logprobs = [max(token.logprob, LEAST) for token in answer.tokens if token.logprob is not None]
    return sum(logprobs) / len(logprobs)


def _result(body: RerankBody, index: int, score: float) -> dict[str, Any]:
    """Return one document with its relevance: the geometric mean of its query's token
    probabilities, 0 to 1.
    """
    document = {"document": {"text": body.documents[index]}} if body.return_documents else {}
    return {"index": index, **document, "relevance_score": math.exp(score)}
