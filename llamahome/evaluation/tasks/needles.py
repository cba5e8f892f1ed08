"""Needles: sentences hidden in a long text, one in each prompt, that a question asks for.

Kamradt 2023, "Needle In A Haystack", github.com/gkamradt/LLMTest_NeedleInAHaystack. A needle that
is asked for in other words is found by its meaning alone: Modarressi et al. 2025, "NoLiMa",
arXiv 2502.05167. Everything is drawn from a seed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import cast

from transformers import PreTrainedTokenizerFast

from llamahome.config import ConfigError
from llamahome.evaluation.tasks.question import Question, chat_prompt, draws
from llamahome.evaluation.tasks.words import KINDS, Needle, draw_needle
from llamahome.evaluation.text import encode


def needles(
    tokenizer: PreTrainedTokenizerFast,
    text: str,
    *,
    length: int,
    depths: int,
    samples: int,
    seed: int,
) -> Iterator[Question]:
    """Yield questions for needles of all kinds in turn, in a text of up to `length` tokens.

    Args:
        depths: places of the needle, evenly from the text's start to its end.
        samples: questions per place; as many as there are kinds asks for each kind at each place.
        seed: seed of wordings, subjects, answers and pieces of `text`.

    Raises:
        ConfigError: for a length that the question or the text does not fit.
    """
    haystack = encode(tokenizer, text)
    for turn, depth, draw in draws(f"{seed}:needle:{length}", depths, samples):
        kind = KINDS[turn % len(KINDS)]
        needle = draw_needle(kind, draw)
        prompt = _fill(tokenizer, haystack, length, needle, depth, draw)
        yield Question(prompt=prompt, expected=needle.answer, depth=depth, kind=kind)


def _fill(
    tokenizer: PreTrainedTokenizerFast,
    haystack: list[int],
    length: int,
    needle: Needle,
    depth: float,
    draw: random.Random,
) -> list[int]:
    """Return a prompt of at most `length` tokens: a piece of the haystack with the needle in it."""
    room = length - len(chat_prompt(tokenizer, _question(needle, needle.said)))
    if not 0 < room <= len(haystack):
        raise ConfigError(
            f"eval.contexts: a needle's prompt of {length} tokens needs {length - room} for its "
            f"question and a text of at least {max(room, 1)} (this one has {len(haystack)})"
        )
    start = draw.randrange(len(haystack) - room + 1)
    while True:
        piece = cast(str, tokenizer.decode(haystack[start : start + room]))
        at = piece.rfind(" ", 0, round(depth * len(piece)) + 1) + 1
        hidden = f"{piece[:at]}\n\n{needle.said}\n\n{piece[at:]}"
        prompt = chat_prompt(tokenizer, _question(needle, hidden))
        if len(prompt) <= length:
            return prompt
        room -= len(prompt) - length


def _question(needle: Needle, hidden: str) -> str:
    return f"Read this text, then answer the question.\n\n{hidden}\n\n{needle.asked}"
