"""Prompts whose answer is given once, far from the end: needles in a text, and lists of keys.

Kamradt 2023, "Needle In A Haystack", github.com/gkamradt/LLMTest_NeedleInAHaystack; Liu et al.
2023, "Lost in the Middle", arXiv 2307.03172, section 3 (key-value retrieval). Everything is drawn
from a seed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from transformers import PreTrainedTokenizerFast

from llamahome.config import ConfigError
from llamahome.evaluation.text import encode

CITIES = [
    "Paris", "London", "Berlin", "Madrid", "Rome", "Vienna", "Prague", "Lisbon", "Dublin",
    "Oslo", "Athens", "Warsaw", "Cairo", "Tokyo", "Delhi", "Sydney", "Toronto", "Chicago",
    "Boston", "Lima", "Nairobi", "Seoul", "Moscow", "Havana",
]  # fmt: skip
OBJECTS = [
    "apple", "bridge", "candle", "desert", "engine", "forest", "garden", "hammer", "island",
    "jacket", "kettle", "ladder", "mirror", "needle", "orange", "pencil", "quarry", "river",
    "saddle", "temple", "umbrella", "violin", "window", "yellow", "anchor", "basket", "copper",
    "dragon", "eagle", "feather",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Question:
    """A prompt and its answer.

    Attributes:
        expected: the number that a right answer holds.
        depth: place of that number in the prompt, 0 (start) to 1 (end).
    """

    prompt: list[int]
    expected: str
    depth: float


def needles(
    tokenizer: PreTrainedTokenizerFast,
    text: str,
    *,
    length: int,
    depths: int,
    samples: int,
    seed: int,
) -> Iterator[Question]:
    """Yield questions for a city's magic number, hidden in a text of up to `length` tokens.

    Args:
        depths: places of the needle, evenly from the text's start to its end.
        samples: questions per place.
        seed: seed of cities, numbers and pieces of `text`.

    Raises:
        ConfigError: for a length that the question or the text does not fit.
    """
    haystack = encode(tokenizer, text)
    for depth, draw in _draws(f"{seed}:needle:{length}", depths, samples):
        city, number = draw.choice(CITIES), str(draw.randrange(10_000, 100_000))
        needle = f"\n\nThe magic number for {city} is {number}.\n\n"
        prompt = _fill(tokenizer, haystack, length, city, needle, depth, draw)
        yield Question(prompt=prompt, expected=number, depth=depth)


def _draws(seed: str, depths: int, samples: int) -> Iterator[tuple[float, random.Random]]:
    """Yield the depth of each question, from 0 to 1, and its own random numbers."""
    for sample in range(samples):
        for place in range(depths):
            yield place / max(1, depths - 1), random.Random(f"{seed}:{place}:{sample}")


def _needle_question(city: str, hidden: str) -> str:
    return (
        "Read this text and remember the magic number in it.\n\n"
        f"{hidden}\n\nWhat is the magic number for {city}?"
    )


def recalls(
    tokenizer: PreTrainedTokenizerFast, *, length: int, depths: int, samples: int, seed: int
) -> Iterator[Question]:
    """Yield questions for one object's number, in a list of objects of up to `length` tokens."""
    for depth, draw in _draws(f"{seed}:recall:{length}", depths, samples):
        pairs = _pairs(tokenizer, length, draw)
        asked, number = pairs[round(depth * (len(pairs) - 1))]
        prompt = _chat(tokenizer, _list_question(pairs, asked))
        yield Question(prompt=prompt, expected=number, depth=depth)


def _pairs(
    tokenizer: PreTrainedTokenizerFast, length: int, draw: random.Random
) -> list[tuple[str, str]]:
    """Return as many objects with their numbers as a prompt of `length` tokens has room for."""
    names = [f"{a} {b}" for a in OBJECTS for b in OBJECTS if a != b]
    draw.shuffle(names)
    pairs = [(name, str(draw.randrange(100, 1000))) for name in names]
    low, high = 1, len(pairs)
    while low < high:
        middle = (low + high + 1) // 2
        tokens = len(_chat(tokenizer, _list_question(pairs[:middle], pairs[0][0])))
        low, high = (middle, high) if tokens <= length else (low, middle - 1)
    return pairs[:low]


def _list_question(pairs: list[tuple[str, str]], asked: str) -> str:
    listed = "\n".join(f"{name}: {number}" for name, number in pairs)
    return f"Here is a list.\n\n{listed}\n\nWhich number stands beside '{asked}' in the list?"


def _fill(
    tokenizer: PreTrainedTokenizerFast,
    haystack: list[int],
    length: int,
    city: str,
    needle: str,
    depth: float,
    draw: random.Random,
) -> list[int]:
    """Return a prompt of at most `length` tokens: a piece of the haystack with the needle in it."""
    room = length - len(_chat(tokenizer, _needle_question(city, needle)))
    if not 0 < room <= len(haystack):
        raise ConfigError(
            f"eval.context={length}: a needle's prompt needs {length - room} tokens for its "
            f"question and a text of at least {max(room, 1)} (this one has {len(haystack)})"
        )
    start = draw.randrange(len(haystack) - room + 1)
    while True:
        piece = cast(str, tokenizer.decode(haystack[start : start + room]))
        at = piece.rfind(" ", 0, round(depth * len(piece)) + 1) + 1
        hidden = piece[:at] + needle + piece[at:]
        prompt = _chat(tokenizer, _needle_question(city, hidden))
        if len(prompt) <= length:
            return prompt
        room -= len(prompt) - length


def _chat(tokenizer: PreTrainedTokenizerFast, content: str) -> list[int]:
    """Return a question in the model's chat template, or plain where it has none."""
    if tokenizer.chat_template is None:
        return encode(tokenizer, f"{content}\nAnswer:")
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    return encode(tokenizer, cast(str, text))
