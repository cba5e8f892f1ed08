"""Lists of keys with numbers, one of which is asked for.

Liu et al. 2023, "Lost in the Middle", arXiv 2307.03172, section 3 (key-value retrieval).
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from transformers import PreTrainedTokenizerFast

from llamahome.evaluation.tasks.question import Question, chat_prompt, draws
from llamahome.evaluation.tasks.words import LISTS


def recalls(
    tokenizer: PreTrainedTokenizerFast, *, length: int, depths: int, samples: int, seed: int
) -> Iterator[Question]:
    """Yield questions for one object's number, in a list of objects of up to `length` tokens."""
    for _, depth, draw in draws(f"{seed}:recall:{length}", depths, samples):
        pairs = _pairs(tokenizer, length, draw)
        asked, number = pairs[round(depth * (len(pairs) - 1))]
        prompt = chat_prompt(tokenizer, _question(pairs, asked))
        yield Question(prompt=prompt, expected=number, depth=depth, kind="list")


def _pairs(
    tokenizer: PreTrainedTokenizerFast, length: int, draw: random.Random
) -> list[tuple[str, str]]:
    """Return as many objects with their numbers as a prompt of `length` tokens has room for."""
    objects = LISTS["objects"]
    names = [f"{a} {b}" for a in objects for b in objects if a != b]
    draw.shuffle(names)
    pairs = [(name, str(draw.randrange(100, 1000))) for name in names]
    low, high = 1, len(pairs)
    while low < high:
        middle = (low + high + 1) // 2
        tokens = len(chat_prompt(tokenizer, _question(pairs[:middle], pairs[0][0])))
        low, high = (middle, high) if tokens <= length else (low, middle - 1)
    return pairs[:low]


def _question(pairs: list[tuple[str, str]], asked: str) -> str:
    listed = "\n".join(f"{name}: {number}" for name, number in pairs)
    return f"Here is a list.\n\n{listed}\n\nWhich number stands beside '{asked}' in the list?"
