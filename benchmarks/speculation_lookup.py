"""Prompt lookup on answers that are known: which drafts would have been accepted.

Saxena 2023, https://github.com/apoorvumang/prompt-lookup-decoding: a draft is what followed the
last few tokens where they came before, and the model checks all of it in one step. A greedy answer
is what it is however many of its tokens a step gives.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

Widths = tuple[int, ...]  # tokens of each row of a step
NGRAMS = (3, 2)  # tokens that must have come before; the longer first


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A greedy one; its end-of-sequence token, if it came to it, is the last."""

    prompt: list[int]
    tokens: list[int]

    @property
    def distinct(self) -> float:
        """Share of its trigrams that it had not said before: low where it goes in circles."""
        grams = list(zip(self.tokens, self.tokens[1:], self.tokens[2:], strict=False))
        return len(set(grams)) / max(1, len(grams))


@dataclass(frozen=True, kw_only=True)
class Steps:
    """The steps that gave an answer, after the prompt's own.

    Attributes:
        widths: tokens that each step computed: one, and the draft's.
        accepted: of each step's draft.
        cut: drafts that the end of a chunk made shorter, to none if need be.
    """

    widths: list[int]
    accepted: list[int]
    cut: int

    @property
    def tokens(self) -> int:
        """Given by all of them."""
        return len(self.accepted) + sum(self.accepted)


def lookup(tokens: Sequence[int], draft: int) -> list[int]:
    """At most `draft` tokens that followed where the last ones first came before."""
    for n in NGRAMS:
        last = tokens[-n:]
        for at in range(len(tokens) - n):
            if tokens[at] == last[0] and tokens[at : at + n] == last:
                return list(tokens[at + n : at + n + draft])
    return []


def simulate(answer: Answer, *, draft: int, interval: int) -> Steps:
    """The steps that prompt lookup would have taken to an answer.

    Args:
        interval: tokens in a chunk, whose boundary no step crosses.
    """
    whole = answer.prompt + answer.tokens
    known = len(answer.prompt) + 1  # the prompt's last step gives the first token
    widths: list[int] = []
    accepted: list[int] = []
    cut = 0
    while known < len(whole):
        # The step's own token is kept even if all of the draft is right: none past the end.
        guess = lookup(whole[:known], min(draft, len(whole) - known - 1))
        room = interval - (known - 1) % interval
        cut += len(guess) >= room
        guess = guess[: room - 1]
        right = _agreeing(guess, whole[known:])
        widths.append(1 + len(guess))
        accepted.append(right)
        known += right + 1
    return Steps(widths=widths, accepted=accepted, cut=cut)


def _agreeing(guess: Sequence[int], truth: Sequence[int]) -> int:
    count = 0
    while count < len(guess) and guess[count] == truth[count]:
        count += 1
    return count


def draw_steps(runs: Sequence[Steps], batch: int, number: int) -> list[Widths]:
    """`number` steps of `batch` rows that are each at a place of their own in such answers.

    The rows' widths are the quantiles of all that there were, so that few steps stand for many.
    """
    widths = sorted(width for run in runs for width in run.widths)
    count = batch * number
    rows = [widths[(2 * i + 1) * len(widths) // (2 * count)] for i in range(count)]
    random.Random(0).shuffle(rows)
    return [tuple(sorted(rows[i : i + batch])) for i in range(0, count, batch)]
