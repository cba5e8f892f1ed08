"""The work of a replica that only its tokenizer, or a prompt's log-probabilities, answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from llamahome.engine import RequestError, SamplingParams, TextEngine
from serve.wire import Delta, DetokenizeRequest, ScoreRequest, Tokenized, TokenizeRequest


def tokenized(engine: TextEngine, request: TokenizeRequest) -> Delta:
    """Return the tokens of a text or a chat."""
    if request.messages is None:
        ids = engine.encode(request.prompt or "", add_special_tokens=request.add_special_tokens)
    else:
        ids = engine.encode_chat(
            request.messages,
            add_generation_prompt=request.add_generation_prompt,
            continue_final_message=request.continue_final_message,
            tools=[] if request.tools is None else request.tools.offered,
            options=request.template_options,
        )
    result = Tokenized(
        ids=tuple(ids), pieces=tuple(engine.pieces(ids)), max_length=engine.max_length
    )
    return Delta(text="", token_count=0, tokenized=result, finish_reason="stop")


def detokenized(engine: TextEngine, request: DetokenizeRequest) -> Delta:
    """Return the text of token ids."""
    return Delta(text=engine.exact_text(request.tokens), token_count=0, finish_reason="stop")


def scored_prompt(
    engine: TextEngine, request: ScoreRequest
) -> tuple[list[int], SamplingParams, int]:
    """Return a prompt, params that read its log-probabilities, and where the scored text begins.

    The context and the text are split into tokens each by itself, so a text has the same tokens
    after every context.
    """
    context = engine.encode(request.context)
    text = engine.encode(request.text, add_special_tokens=False)
    if not text or not context:
        empty = "it must hold at least one token"
        raise RequestError(request.field if not text else "context", "", empty)
    params = SamplingParams(max_tokens=0, prompt_logprobs=0, echo="", adapter=request.adapter)
    return [*context, *text], params, len(context)


async def from_token(
    deltas: AsyncGenerator[Delta, None], first: int
) -> AsyncGenerator[Delta, None]:
    """Yield an answer that is one delta, without its first tokens."""
    async with aclosing(deltas):
        async for delta in deltas:
            yield replace(delta, tokens=delta.tokens[first:])


async def once(delta: Delta) -> AsyncGenerator[Delta, None]:
    """Yield a delta that is a whole answer."""
    yield delta
