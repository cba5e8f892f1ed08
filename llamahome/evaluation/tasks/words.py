"""Word lists of needles and lists of keys, and the sentences of needles; `words.json` holds them.

Training data and calibration have lists of their own, so that nothing here is learned or chosen
for.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

KINDS = ("digits", "words", "names", "paraphrase")
NUMBERS = "numbers"


@dataclass(frozen=True, kw_only=True)
class Wording:
    """A sentence that holds an answer, and the question that asks for it.

    Attributes:
        kind: one of `KINDS`; a `paraphrase` shares no word with its question but the subject.
        subject: list of the subjects.
        answer: list of the answers; `numbers` are five digits.
        said: the sentence, with {subject} and {answer}.
        asked: the question, with {subject}.
    """

    kind: str
    subject: str
    answer: str
    said: str
    asked: str


@dataclass(frozen=True, kw_only=True)
class Needle:
    """A sentence to hide, its question and its answer."""

    said: str
    asked: str
    answer: str


_DATA = json.loads(Path(__file__).with_name("words.json").read_text(encoding="utf-8"))
LISTS: dict[str, list[str]] = _DATA["lists"]
WORDINGS = tuple(Wording(**wording) for wording in _DATA["wordings"])


def draw_needle(kind: str, draw: random.Random) -> Needle:
    """Return a needle of a kind, its wording, subject and answer drawn from `draw`."""
    wording = draw.choice([wording for wording in WORDINGS if wording.kind == kind])
    subject = draw.choice(LISTS[wording.subject])
    answer = (
        str(draw.randrange(10_000, 100_000))
        if wording.answer == NUMBERS
        else draw.choice(LISTS[wording.answer])
    )
    return Needle(
        said=wording.said.format(subject=subject, answer=answer),
        asked=wording.asked.format(subject=subject),
        answer=answer,
    )
