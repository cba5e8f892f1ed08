"""Speculative decoding: draft tokens are verified in the step that computes the known token.

Every draft token that is then chosen anyway saves a step. Tokens are chosen from the model's own
logits, so an answer is the same with a draft and without.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llamahome.engine.request import Request
from llamahome.engine.runners.contract import DraftRunner, Runner, StepOutput
from llamahome.engine.sampling.prompt_lookup import PromptLookup
from llamahome.engine.sampling.sampler import Choice, choose
from llamahome.engine.scheduler import Batch


class Speculation:
    """Drafts for the requests that are answering, and how many of their tokens were accepted.

    Args:
        runner: runs the steps; one without drafted rows (torch's) gets no drafts.
        most: draft tokens of a step, all requests together. Few of them cost little compared with
            the weights that a step reads; many cost as much as a prompt's.

    Attributes:
        drafted, accepted: draft tokens, and how many of them were accepted.
    """

    def __init__(self, runner: Runner, most: int) -> None:
        self._runner = runner if isinstance(runner, DraftRunner) else None
        self._most = most
        self.drafted = self.accepted = 0

    def draft(self, batch: Batch) -> None:
        """Set the draft of each request that is answering; it may be empty.

        A draft ends where the slot's chunk does, and leaves the last token of an answer to the step
        itself.
        """
        runner = self._runner
        if runner is None or not self._most:
            return
        answering = [r for r in batch.requests if r.generated and not r.prefilling]
        share = self._most // max(1, len(answering))
        for request in answering:
            assert request.slot is not None
            left = request.max_tokens - request.generated
            most = min(share, runner.slots.room(request.slot) - 1, left - 1)
            if most > 0:
                request.lookup = request.lookup or PromptLookup(request.tokens, self._most)
                request.draft = request.lookup.draft(most)

    def keep_replayed(self, batch: Batch) -> None:
        """Keep the rows of the last step that computed known tokens of an answer again."""
        rows = zip(batch.requests, batch.tokens, strict=True)
        kept = {r.slot: count for r, count in rows if r.replaying and r.slot is not None}
        if self._runner is not None and kept:
            self._runner.accept(kept)

    def verify(self, output: StepOutput, requests: Mapping[int, Request]) -> list[list[Choice]]:
        """Choose the tokens that a step gives requests, and accept drafts as far as they agree.

        Args:
            output: of the step; `output.every` has the logits of drafted rows.
            requests: by row; their `sampling` takes in the choices.

        Returns:
            For each request one choice, and one more for each accepted draft token.
        """
        chosen = _choose(output, requests)
        self.accept(list(requests.values()), [len(choices) - 1 for choices in chosen])
        return chosen

    def accept(self, requests: Sequence[Request], counts: Sequence[int]) -> None:
        """Keep the first `counts` draft tokens of requests in their slots; the others never were.

        The next draft of a request may be about twice as long as what was accepted of this one.
        """
        kept = {}
        for request, count in zip(requests, counts, strict=True):
            if request.draft:
                assert request.slot is not None
                assert request.lookup is not None
                kept[request.slot] = 1 + count
                request.computed += count
                request.lookup.longest = 2 * count + 1
                self.drafted += len(request.draft)
                self.accepted += count
                request.draft = []
        if self._runner is not None and kept:
            self._runner.accept(kept)


def _choose(output: StepOutput, requests: Mapping[int, Request]) -> list[list[Choice]]:
    """Choose a token for each request, and the next one as long as it agrees with the draft."""
    rows = list(requests)
    states = [request.sampling for request in requests.values() if request.sampling is not None]
    drafts = [request.draft for request in requests.values()]
    drafted = {row for row, request in requests.items() if request.draft}
    chosen: list[list[Choice]] = [[] for _ in rows]
    going = list(range(len(rows)))
    while going:
        place = len(chosen[going[0]])
        logits = output.after([rows[i] for i in going], place, drafted)
        choices = choose(logits, [states[i] for i in going])
        for i, choice in zip(going, choices, strict=True):
            chosen[i].append(choice)
            states[i].advance(choice)
        going = [
            i
            for i in going
            if not states[i].ends(chosen[i][-1])
            and chosen[i][-1].token in drafts[i][place : place + 1]
        ]
    return chosen
