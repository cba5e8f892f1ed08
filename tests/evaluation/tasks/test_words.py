"""Words of needles: nobody has seen them before, and a paraphrase shares none."""

from __future__ import annotations

import ast
import random
import re
from pathlib import Path

import pytest

from llamahome.config import checkout
from llamahome.data import read_text
from llamahome.evaluation import calibration
from llamahome.evaluation.tasks.words import KINDS, LISTS, NUMBERS, WORDINGS, Wording, draw_needle
from llamahome.evaluation.text import load_text

IN_NEEDLES = {list_ for wording in WORDINGS for list_ in (wording.subject, wording.answer)}
OWN = {word.lower() for list_ in IN_NEEDLES - {NUMBERS} for word in LISTS[list_]}
STOPWORDS = {"a", "at", "for", "her", "in", "is", "of", "on", "the", "to", "what", "where", "which"}


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text.lower()))


def test_every_kind_has_three_wordings() -> None:
    for kind in KINDS:
        assert sum(wording.kind == kind for wording in WORDINGS) >= 3
    assert {wording.kind for wording in WORDINGS} == set(KINDS)
    assert len({wording.said for wording in WORDINGS}) == len(WORDINGS)
    assert len({wording.asked for wording in WORDINGS}) == len(WORDINGS)
    assert IN_NEEDLES | {"objects"} == {*LISTS, NUMBERS}
    assert all(len(set(words)) == len(words) >= 10 for words in LISTS.values())


@pytest.mark.parametrize(
    "wording", [w for w in WORDINGS if w.kind == "paraphrase"], ids=lambda w: w.answer
)
def test_a_paraphrase_is_asked_for_in_other_words(wording: Wording) -> None:
    said, asked = _words(wording.said) - STOPWORDS, _words(wording.asked) - STOPWORDS
    assert said & asked == {"subject"}
    assert len(said - {"subject", "answer"}) >= 2
    assert len(asked - {"subject"}) >= 1


@pytest.mark.parametrize("name", ["persuasion", "northanger_abbey", "pydoc"])
def test_no_text_that_ships_holds_a_needles_words(name: str) -> None:
    assert OWN & _words(load_text(name)) == set()


def test_no_training_data_holds_a_needles_answers_in_its_lists() -> None:
    facts = checkout() / "datasets" / "retrieval_facts.json"
    assert OWN & _words(facts.read_text()) == set()
    for novel in ("emma", "pride_and_prejudice"):
        assert OWN & _words(read_text(checkout() / "datasets" / f"{novel}.txt.gz")) == set()


def test_calibration_has_other_words() -> None:
    """Check every list of strings in the modules of calibration."""
    folder = Path(calibration.__path__[0])
    trees = [ast.parse(file.read_text()) for file in folder.glob("*.py")]
    listed = {
        item.value.lower()
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Tuple | ast.List | ast.Set)
        for item in node.elts
        if isinstance(item, ast.Constant) and isinstance(item.value, str)
    }
    assert len(listed) > 5
    assert listed & (OWN | set(LISTS["objects"])) == set()


@pytest.mark.parametrize("kind", KINDS)
def test_a_needle_is_drawn_from_its_lists(kind: str) -> None:
    drawn = [draw_needle(kind, random.Random(seed)) for seed in range(300)]
    assert len({re.sub(r"\d+", "", needle.said) for needle in drawn}) > 60
    for needle in drawn:
        assert needle.said.count(needle.answer) == 1
        assert needle.answer not in needle.asked
        assert needle.asked.endswith("?")
        assert "{" not in needle.said + needle.asked
        if kind == "digits":
            assert re.fullmatch(r"[1-9]\d{4}", needle.answer)
        else:
            assert any(needle.answer in words for words in LISTS.values())
    assert drawn == [draw_needle(kind, random.Random(seed)) for seed in range(300)]
