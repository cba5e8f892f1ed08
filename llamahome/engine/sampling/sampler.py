"""A sampler: the next token of every request of a batch. B: requests, V: vocabulary."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from llamahome.engine.sampling import ranking
from llamahome.engine.sampling.grammar import GrammarMask
from llamahome.engine.sampling.logprobs import TopLogprobs, logprobs_of
from llamahome.engine.sampling.processors import LogitsProcessor, build_processors
from llamahome.requests import RequestError, SamplingParams

NOT_FINITE = "the model gave logits that are not finite for this request"
NOTHING_LEFT = "no token is left that the request's grammar, min_tokens and logit_bias allow"


@dataclass(frozen=True)
class Choice:
    """A chosen token, or the reason why none could be chosen.

    `error_field` is the request's field that is to blame; None is the model.
    """

    token: int | None = None
    logprob: float | None = None
    top_logprobs: TopLogprobs = ()
    error: str | None = None
    error_field: str | None = None


class SamplingState:
    """The rules that choose one request's tokens, and their state from token to token.

    Args:
        vocab_size, device: of the logits.
        grammar: compiled from `params.grammar`.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt: Sequence[int],
        *,
        eos_token_ids: frozenset[int],
        vocab_size: int,
        device: torch.device,
        grammar: GrammarMask | None = None,
    ) -> None:
        self.params = params
        eos = frozenset() if params.ignore_eos else eos_token_ids
        self.stop_token_ids = eos.union(params.stop_token_ids)
        self._grammar = grammar
        self.processors: list[LogitsProcessor] = build_processors(
            params,
            prompt,
            stop_token_ids=self.stop_token_ids,
            vocab_size=vocab_size,
            device=device,
        )
        if grammar is not None:
            self.processors.append(grammar)
        # A generator per request, so that draws do not depend on what shares the batch.
        self._random = random.Random(None if params.seed is None else params.seed % 2**64)

    @property
    def plain(self) -> bool:
        """True if its token is simply the likeliest."""
        return self.params.greedy and not self.processors

    @property
    def finished(self) -> bool:
        """True once the grammar lets nothing follow."""
        return self._grammar is not None and self._grammar.finished

    def nothing_left(self) -> RequestError:
        """Return the error of a request whose rules leave no token."""
        field = "min_tokens" if self._grammar is None else "grammar"
        return RequestError(field, None, NOTHING_LEFT)

    def uniform(self) -> float:
        return self._random.random()

    def replay(self, tokens: Sequence[int]) -> None:
        """Take in the first tokens of an answer, chosen by another state of the same params."""
        for token in tokens:
            self.advance(Choice(token))
            if not self.params.greedy:
                self.uniform()

    def advance(self, choice: Choice) -> None:
        """Take in a choice; an error or a token that ends the answer is no part of the answer."""
        if choice.token is not None and choice.token not in self.stop_token_ids:
            for processor in self.processors:
                processor.advance(choice.token)

    def ends(self, choice: Choice) -> bool:
        """Return whether nothing follows a choice that was taken in."""
        return choice.token is None or choice.token in self.stop_token_ids or self.finished


@torch.inference_mode()
def choose(logits: Tensor, states: Sequence[SamplingState]) -> list[Choice]:
    """Choose one token for each row; a row that fails gives an error for itself alone.

    Args:
        logits: (B, V) float32; not changed.
        states: B states; each one that samples uses up one random number.
    """
    tokens, values = ranking.best(logits)
    choices = [
        Choice(token) if math.isfinite(value) else Choice(error=NOT_FINITE)
        for token, value in zip(tokens, values, strict=True)
    ]
    special = [i for i, s in enumerate(states) if not s.plain and choices[i].error is None]
    if special:
        rows = logits[special]  # a copy
        chosen = _choose_special(rows, [states[i] for i in special])
        for i, choice in zip(special, chosen, strict=True):
            choices[i] = choice
    scored = [i for i, s in enumerate(states) if s.params.logprobs is not None]
    wanted = [i for i in scored if choices[i].error is None]
    if wanted:
        tokens = [token for i in wanted if (token := choices[i].token) is not None]
        counts = [states[i].params.logprobs or 0 for i in wanted]
        found = logprobs_of(logits[wanted], tokens, counts)
        for i, (logprob, top_logprobs) in zip(wanted, found, strict=True):
            choices[i] = replace(choices[i], logprob=logprob, top_logprobs=top_logprobs)
    return choices


def _choose_special(rows: Tensor, states: Sequence[SamplingState]) -> list[Choice]:
    errors = [_process(row, state) for row, state in zip(rows, states, strict=True)]
    tokens, values = ranking.best(rows)
    choices = []
    for token, value, error, state in zip(tokens, values, errors, states, strict=True):
        if error is None and not math.isfinite(value):
            error = state.nothing_left()
        choices.append(Choice(token) if error is None else _refused(error))
    drawn = [i for i, s in enumerate(states) if not s.params.greedy and choices[i].error is None]
    if drawn:
        picked = ranking.draw(
            rows[drawn], [states[i].params for i in drawn], [states[i].uniform() for i in drawn]
        )
        for i, token in zip(drawn, picked, strict=True):
            choices[i] = Choice(token)
    return choices


def _refused(error: RequestError) -> Choice:
    return Choice(error=error.reason, error_field=error.field)


def _process(row: Tensor, state: SamplingState) -> RequestError | None:
    """Apply a request's processors to its row (V,); return the error, which fails it alone."""
    try:
        for processor in state.processors:
            processor.apply(row)
    except RequestError as error:
        return error
    return None
