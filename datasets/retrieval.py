"""Parts of a novel with inserted facts, and questions about them: rows that train retrieval.

A dataset in llama-recipes' convention (conf/data/retrieval.yaml). Every row fills the context, and
all its tokens are learned: the text, and answers that the model must have kept. Names, facts and
wordings differ from those of `llamahome eval`'s needles or of `llamahome calibrate`'s probes.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from llamahome.data import read_text

NOVEL = Path(__file__).parent / "emma.txt.gz"
HELD_OUT = 0.05  # share of the novel, its end
FACTS = 6  # per row
# Names; and kinds of fact: a sentence about {who} and {code}, a question about it, the answer.
_FACTS = json.loads(Path(__file__).with_name("retrieval_facts.json").read_text(encoding="utf-8"))
PEOPLE: list[str] = _FACTS["people"]
KINDS: list[dict[str, str]] = _FACTS["kinds"]


class Fact(NamedTuple):
    """A sentence in a row, with the question and answer at the row's end."""

    said: str
    asked: str
    answered: str


def get_custom_dataset(
    dataset_config: Any,  # llama-recipes' config, with the context length
    tokenizer: PreTrainedTokenizerBase,
    split: str,
) -> list[dict[str, list[int]]]:
    """Build the rows of `split` ("train" or "validation"), each a part of the novel with facts."""
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
    """Encode a chat of at most `length` tokens: a text with facts, then a question about each."""
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
        # In proportion; since the questions stay, this never removes too much.
        count -= max(1, count * (len(ids) - length) // len(ids))


def _facts(draw: random.Random) -> list[Fact]:
    subjects = draw.sample([(who, kind) for who in PEOPLE for kind in KINDS], FACTS)
    facts = []
    for who, texts in subjects:
        code = str(draw.randrange(10_000, 1_000_000))
        facts.append(
            Fact(**{name: text.format(who=who, code=code) for name, text in texts.items()})
        )
    return facts


def _chat(words: list[str], facts: list[Fact], draw: random.Random) -> list[dict[str, str]]:
    """Insert each fact at a random place in the text, and ask for them in another order."""
    text = list(words)
    for fact in facts:
        text.insert(draw.randrange(len(text) + 1), f"\n\n{fact.said}\n\n")
    asked = draw.sample(facts, len(facts))
    opening = f"Here is a part of a novel.\n\n{' '.join(text)}\n\n{asked[0].asked}"
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
