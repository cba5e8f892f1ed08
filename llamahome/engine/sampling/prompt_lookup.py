"""Draft tokens by prompt lookup, from the tokens that a request has read and generated.

A draft is what followed the last few tokens where they came before (Saxena 2023,
https://github.com/apoorvumang/prompt-lookup-decoding).
"""

from __future__ import annotations

NGRAMS = (3, 2)  # tokens that must have come before; drafts after longer ones are accepted more


class PromptLookup:
    """An index of a growing list of tokens: where each n-gram was last followed by a token.

    Attributes:
        longest: most tokens of the next draft.
    """

    def __init__(self, tokens: list[int], longest: int) -> None:
        self.longest = longest
        self._tokens = tokens
        self._known = 0
        self._after: dict[tuple[int, ...], int] = {}

    def draft(self, most: int) -> list[int]:
        """Return at most `most` tokens, in time proportional to the growth since the last call."""
        tokens = self._tokens
        for at in range(self._known, len(tokens)):
            for n in NGRAMS:
                if at >= n:
                    self._after[tuple(tokens[at - n : at])] = at
        self._known = len(tokens)
        for n in NGRAMS:
            found = self._after.get(tuple(tokens[-n:]))
            if found is not None:
                # Text that repeats itself is expected to repeat again.
                period = len(tokens) - found
                return [tokens[found + i % period] for i in range(min(most, self.longest))]
        return []
