"""Speculative decoding by prompt lookup: guesses from what a request has read and said already.

A guess is what followed the last few tokens where they came before (Saxena 2023,
https://github.com/apoorvumang/prompt-lookup-decoding). One step computes it behind the token that
is known, and every guessed token that is then chosen anyway spares a step. What is chosen is drawn
from the model's own logits, so an answer is the same with guesses and without.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llamahome.engine.runners.contract import DraftRunner, Runner, StepOutput
from llamahome.engine.sampling.sampler import Choice, SamplingState, choose
from llamahome.engine.scheduler import Batch, Request

NGRAMS = (3, 2)  # tokens that must have come before; the longer are more often right


class PromptLookup:
    """Where each n-gram of a growing list of tokens was last followed by another token."""

    def __init__(self, tokens: list[int]) -> None:
        self._tokens = tokens
        self._known = 0
        self._after: dict[tuple[int, ...], int] = {}

    def guess(self, most: int) -> list[int]:
        """At most `most` tokens; takes as long as the list has grown since the last call."""
        tokens = self._tokens
        for at in range(self._known, len(tokens)):
            for n in NGRAMS:
                if at >= n:
                    self._after[tuple(tokens[at - n : at])] = at
        self._known = len(tokens)
        for n in NGRAMS:
            found = self._after.get(tuple(tokens[-n:]))
            if found is not None:
                # What repeats itself is guessed to go on so.
                period = len(tokens) - found
                return [tokens[found + i % period] for i in range(most)]
        return []


@dataclass
class _Drafting:
    lookup: PromptLookup
    length: int


class Speculation:
    """Guesses for the requests of an engine that answer, and what became of them.

    Args:
        runner: without drafted rows (torch's) nothing is guessed.
        most: tokens that a step guesses, of all requests together. Few of them cost little beside
            the weights that a step reads; many cost as much as a prompt's.

    Attributes:
        drafted, accepted: tokens guessed, and those of them that were right.
    """

    def __init__(self, runner: Runner, most: int) -> None:
        self._runner = runner if most and isinstance(runner, DraftRunner) else None
        self._most = most
        self._drafting: dict[str, _Drafting] = {}
        self.drafted = self.accepted = 0

    def guesses(self, batch: Batch) -> dict[int, list[int]]:
        """How requests that are answering may go on, by their rows; not all have a guess.

        A guess ends where the slot's chunk does, and leaves the last token of an answer to the step
        itself.
        """
        runner = self._runner
        if runner is None:
            return {}
        answering = {
            row: request
            for row, request in enumerate(batch.requests)
            if request.generated and not request.prefilling
        }
        share = self._most // max(1, len(answering))
        found = {}
        for row, request in answering.items():
            assert request.slot is not None
            left = request.params.max_tokens - request.generated
            most = min(share, runner.slots.room(request.slot) - 1, left - 1)
            guess = self._guess(request, most) if most > 0 else []
            if guess:
                found[row] = guess
        return found

    def _guess(self, request: Request, most: int) -> list[int]:
        drafting = self._drafting.get(request.request_id)
        if drafting is None:
            drafting = _Drafting(PromptLookup(request.tokens), self._most)
            self._drafting[request.request_id] = drafting
        return drafting.lookup.guess(min(most, drafting.length))

    def settle(
        self, batch: Batch, guesses: Mapping[int, list[int]], right: Mapping[int, int]
    ) -> None:
        """Keep in the slots what was guessed right, so many tokens by row; the rest never was.

        The next guess for a request is about as long as what was right of this one.
        """
        if self._runner is None or not guesses:
            return
        kept = {}
        for row, guess in guesses.items():
            request = batch.requests[row]
            assert request.slot is not None
            kept[request.slot] = 1 + right[row]
            request.computed += right[row]
            self._drafting[request.request_id].length = 2 * right[row] + 1
            self.drafted += len(guess)
            self.accepted += right[row]
        self._runner.accept(kept)

    def forget(self, request: Request) -> None:
        self._drafting.pop(request.request_id, None)


def verify(
    output: StepOutput,
    rows: Sequence[int],
    states: Sequence[SamplingState],
    guesses: Mapping[int, Sequence[int]],
) -> list[list[Choice]]:
    """The tokens that a step gives each row: one, and one more for each that was guessed right.

    Args:
        rows: of the step, one for each of `states`, which take in what is chosen.
        guesses: by row; `output.every` has the logits of these.
    """
    chosen: list[list[Choice]] = [[] for _ in rows]
    going = list(range(len(rows)))
    while going:
        place = len(chosen[going[0]])
        logits = output.after([rows[i] for i in going], place, guesses)
        choices = choose(logits, [states[i] for i in going])
        for i, choice in zip(going, choices, strict=True):
            chosen[i].append(choice)
            states[i].advance(choice)
        going = [
            i
            for i in going
            if not states[i].ends(chosen[i][-1])
            and chosen[i][-1].token in guesses.get(rows[i], ())[place : place + 1]
        ]
    return chosen
