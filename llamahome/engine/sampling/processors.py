"""Logits processors: changes that a request asks for before its token is chosen."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from llamahome.requests import SamplingParams


class LogitsProcessor(Protocol):
    """Changes the logits of one request, step by step."""

    def apply(self, row: Tensor) -> None:
        """Change the logits (V,) of the next token in place.

        Raises:
            RequestError: when it cannot.
        """

    def advance(self, token: int) -> None:
        """Take in the chosen token."""


class Penalties:
    """Repetition penalty as in transformers, presence and frequency penalty as in OpenAI's API.

    Each token that has occurred has a place in two tensors, so the Python work of a step does not
    grow with the answer.
    """

    def __init__(
        self, params: SamplingParams, prompt: Sequence[int], vocab_size: int, device: torch.device
    ) -> None:
        self._repetition = params.repetition_penalty
        self._presence = params.presence_penalty
        self._frequency = params.frequency_penalty
        self._places = {token: place for place, token in enumerate(dict.fromkeys(prompt))}
        self._ids = torch.zeros(vocab_size, dtype=torch.int64, device=device)
        self._ids[: len(self._places)] = torch.tensor(list(self._places), device=device)
        self._counts = torch.zeros(vocab_size, device=device)  # in the answer

    def apply(self, row: Tensor) -> None:
        ids, counts = self._ids[: len(self._places)], self._counts[: len(self._places)]
        logits = row[ids]
        if self._repetition != 1:
            logits = torch.where(logits > 0, logits / self._repetition, logits * self._repetition)
        row[ids] = logits - self._frequency * counts - self._presence * counts.clamp(max=1)

    def advance(self, token: int) -> None:
        place = self._places.setdefault(token, len(self._places))
        self._ids[place] = token
        self._counts[place] += 1


class LogitBias:
    """A constant added to the logits of some tokens."""

    def __init__(self, bias: Mapping[int, float], device: torch.device) -> None:
        self._ids = torch.tensor(list(bias), device=device)
        self._bias = torch.tensor(list(bias.values()), device=device)

    def apply(self, row: Tensor) -> None:
        row[self._ids] += self._bias

    def advance(self, token: int) -> None:
        pass


class MinTokens:
    """A ban on the tokens that end an answer, until the answer is long enough."""

    def __init__(self, count: int, stop_token_ids: Collection[int], device: torch.device) -> None:
        self._left = count
        self._ids = torch.tensor(sorted(stop_token_ids), dtype=torch.int64, device=device)

    def apply(self, row: Tensor) -> None:
        if self._left > 0:
            row[self._ids] = float("-inf")

    def advance(self, token: int) -> None:
        self._left -= 1


def build_processors(
    params: SamplingParams,
    prompt: Sequence[int],
    *,
    stop_token_ids: Collection[int],
    vocab_size: int,
    device: torch.device,
) -> list[LogitsProcessor]:
    """Return the processors that `params` asks for, in the order in which they apply."""
    processors: list[LogitsProcessor] = []
    if params.repetition_penalty != 1 or params.presence_penalty or params.frequency_penalty:
        processors.append(Penalties(params, prompt, vocab_size, device))
    if params.logit_bias:
        processors.append(LogitBias(params.logit_bias, device))
    if params.min_tokens and stop_token_ids:
        processors.append(MinTokens(params.min_tokens, stop_token_ids, device))
    return processors
