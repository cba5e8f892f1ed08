"""A prompt with its answer, and the places that questions ask about."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from transformers import PreTrainedTokenizerFast

from llamahome.evaluation.text import encode


@dataclass(frozen=True, kw_only=True)
class Question:
    """A prompt and its answer.

    Attributes:
        expected: the number or word that a right answer holds.
        depth: place of that number or word in the prompt, 0 (start) to 1 (end).
        kind: kind of needle, or `list`.
    """

    prompt: list[int]
    expected: str
    depth: float
    kind: str

    def is_answered_by(self, text: str) -> bool:
        """Tell whether `text` holds the expected number or word, whole, in any case."""
        whole = rf"(?<!\w){re.escape(self.expected)}(?!\w)"
        return re.search(whole, text, re.IGNORECASE) is not None


def draws(seed: str, depths: int, samples: int) -> Iterator[tuple[int, float, random.Random]]:
    """Yield for each question its turn, its depth from 0 to 1, and its own random numbers.

    Turns count on from depth to depth and from sample to sample, so that what takes turns is
    balanced in both.
    """
    for sample in range(samples):
        for place in range(depths):
            draw = random.Random(f"{seed}:{place}:{sample}")
            yield place + sample, place / max(1, depths - 1), draw


def chat_prompt(tokenizer: PreTrainedTokenizerFast, content: str) -> list[int]:
    """Return a question in the model's chat template, or plain where it has none."""
    if tokenizer.chat_template is None:
        return encode(tokenizer, f"{content}\nAnswer:")
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    return encode(tokenizer, cast(str, text))
