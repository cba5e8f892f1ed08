"""Novels with facts strewn into them, and questions about the facts: rows that train retrieval.

A dataset in llama-recipes' convention (conf/data/retrieval.yaml). Every row fills the context and
is learned whole: the text as text, the answers as what the model must have kept. Names, facts and
wordings are not those of `llamahome eval`'s needles or of `llamahome calibrate`'s probes.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from llamahome.data import read_text

NOVEL = Path(__file__).parent / "emma.txt.gz"
HELD_OUT = 0.05  # of the novel, its end
FACTS = 6  # a row
PEOPLE = (
    "Mr. Ashby",
    "Mrs. Calloway",
    "Miss Dunmore",
    "Dr. Ellery",
    "Captain Frost",
    "Lady Garrick",
    "Mr. Holloway",
    "Mrs. Inglis",
    "Miss Jarvis",
    "Colonel Kemp",
    "Mr. Lockhart",
    "Mrs. Merrow",
    "Miss Norwood",
    "Mr. Osgood",
)
# What is told, what is asked, and what is answered, of {who} and {code}.
KINDS = (
    (
        "The strongbox of {who} opens with {code}.",
        "With which digits does the strongbox of {who} open?",
        "The strongbox of {who} opens with {code}.",
    ),
    (
        "{who} lodges in a room with the number {code}.",
        "Which room does {who} lodge in?",
        "{who} lodges in room {code}.",
    ),
    (
        "The parcel for {who} carries the label {code}.",
        "What is written on the label of {who}'s parcel?",
        "The parcel for {who} carries the label {code}.",
    ),
    (
        "{who}'s ticket is number {code}.",
        "Give the number of {who}'s ticket.",
        "{who}'s ticket is number {code}.",
    ),
)


class Fact(NamedTuple):
    """Something said once in a row, and asked for at its end."""

    told: str
    asked: str
    answered: str


def get_custom_dataset(
    dataset_config: Any,  # llama-recipes hands it over; the context length is in it
    tokenizer: PreTrainedTokenizerBase,
    split: str,
) -> list[dict[str, list[int]]]:
    """Rows of `split` ("train" or "validation"), each a piece of the novel with facts in it."""
    length = getattr(dataset_config, "context_length", 2048)
    words = read_text(NOVEL).split(" ")
    border = round(len(words) * (1 - HELD_OUT))
    own = words[:border] if split == "train" else words[border:]
    pieces = [own[start : start + length] for start in range(0, len(own), length // 2)]
    rows = [
        _row(tokenizer, piece, length, random.Random(f"retrieval:{split}:{number}"))
        for number, piece in enumerate(pieces)
    ]
    return [{"input_ids": ids, "attention_mask": [1] * len(ids), "labels": ids[:]} for ids in rows]


def _row(
    tokenizer: PreTrainedTokenizerBase, words: list[str], length: int, draw: random.Random
) -> list[int]:
    """A chat of at most `length` tokens: a text with facts in it, then a question for each."""
    facts = _facts(draw)
    count = len(words)
    while True:
        ids = _encode(tokenizer, _chat(words[:count], facts, random.Random(draw.random())))
        if len(ids) <= length:
            return ids
        if count <= len(facts):
            raise ValueError(
                f"data.context_length={length}: {len(facts)} facts and their questions alone "
                "take more; raise it"
            )
        # In proportion: since the questions stay, this never leaves out too much.
        count -= max(1, count * (len(ids) - length) // len(ids))


def _facts(draw: random.Random) -> list[Fact]:
    subjects = draw.sample([(who, kind) for who in PEOPLE for kind in KINDS], FACTS)
    facts = []
    for who, texts in subjects:
        code = str(draw.randrange(10_000, 1_000_000))
        told, asked, answered = (text.format(who=who, code=code) for text in texts)
        facts.append(Fact(told=told, asked=asked, answered=answered))
    return facts


def _chat(words: list[str], facts: list[Fact], draw: random.Random) -> list[dict[str, str]]:
    """The talk about a text, every fact at a random place in it, asked for in another order."""
    told = list(words)
    for fact in facts:
        told.insert(draw.randrange(len(told) + 1), f"\n\n{fact.told}\n\n")
    asked = draw.sample(facts, len(facts))
    opening = f"Here is a part of a novel.\n\n{' '.join(told)}\n\n{asked[0].asked}"
    messages = []
    for number, fact in enumerate(asked):
        messages += [
            {"role": "user", "content": fact.asked if number else opening},
            {"role": "assistant", "content": fact.answered},
        ]
    return messages


def _encode(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> list[int]:
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    return list(tokenizer.encode(str(text), add_special_tokens=False, verbose=False))
