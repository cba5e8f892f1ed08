"""The shipped records, and the script that makes them, on a dictionary of a few words."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

import make_wordnet
from llamahome.data import Chat, parse_record, raw_records
from wordnet_topics import (
    Topic,
    as_sentence,
    is_circular,
    is_sentence,
    parse_gloss,
    parse_synset,
    read_topics,
)

FOLDER = Path(make_wordnet.__file__).parent

# Offset, file, type, words, pointers | gloss: the layout of WordNet's data files.
NOUNS = """\
  1 A licence stands here in the real file.
00000001 06 n 01 vehicle 0 002 ~ 00000002 n 0000 ~ 00000003 n 0000 | a thing that moves people about
00000002 06 n 02 car 0 auto 0 001 @ 00000001 n 0000 | a carriage with four wheels; "he has a car"
00000003 06 n 01 wagon 0 001 @ 00000001 n 0000 | any of several kinds of cart drawn by an animal
00000004 18 n 01 baker 0 000 | a maker of bread
00000005 06 n 01 Rover 0 000 | a make of fine carriages
"""
VERBS = """\
00000011 38 v 01 drive 0 001 ! 00000012 v 0101 01 + 08 00 | to operate a carriage; "she drives fast"
00000012 38 v 01 park 0 001 ! 00000011 v 0101 01 + 08 00 | leave standing for a while
"""
ADJECTIVES = """\
00000021 00 a 01 fast(p) 0 001 ! 00000022 a 0101 | taking little time; "a fast one"
00000022 00 a 01 slow 0 001 ! 00000021 a 0101 | taking a lot of time
"""
ADVERBS = "00000031 02 r 01 slowly 0 000 | in a slow manner\n"


@pytest.fixture
def dictionary(tmp_path: Path) -> Path:
    """Words by part, each with a count of nine, and one irregular form."""
    texts = {"noun": NOUNS, "verb": VERBS, "adj": ADJECTIVES, "adv": ADVERBS}
    letters = {"noun": ("n", 1), "verb": ("v", 2), "adj": ("a", 3), "adv": ("r", 4)}
    counts = []
    for part, text in texts.items():
        letter, number = letters[part]
        (tmp_path / f"data.{part}").write_text(text)
        (tmp_path / f"{part}.exc").write_text("drove drive\n" if part == "verb" else "")
        index = []
        for line in text.splitlines():
            if not line.startswith(" "):
                words = line.split()[4 : 4 + 2 * int(line.split()[3], 16) : 2]
                lemmas = [word.partition("(")[0].lower() for word in words]
                index += [f"{word} {letter} 1 1 @ 1 1 {line[:8]}" for word in lemmas]
                counts += [f"{word}%{number}:00:00:: 1 9" for word in lemmas]
        (tmp_path / f"index.{part}").write_text("\n".join(index) + "\n")
    (tmp_path / "cntlist.rev").write_text("\n".join(counts) + "\n")
    return tmp_path


def topics_of(dictionary: Path) -> dict[str, Topic]:
    return {topic.word: topic for group in read_topics(dictionary, 1) for topic in group}


def shipped(name: str) -> list[dict[str, Any]]:
    return [
        json.loads(line) for line in (FOLDER / f"wordnet_{name}.jsonl").read_text().splitlines()
    ]


def chats(file: Path) -> list[Chat]:
    read = [parse_record(raw, "chat", where) for where, raw in raw_records(str(file))]
    return [record for record in read if isinstance(record, Chat)]


@pytest.mark.parametrize(("name", "count"), [("train", 2600), ("eval", 300)])
def test_shipped_records_are_valid_chats(name: str, count: int) -> None:
    records = chats(FOLDER / f"wordnet_{name}.jsonl")
    texts = [message["content"] for record in records for message in record.messages]
    assert len(records) == count
    assert all(re.fullmatch(r"[A-Z\"].*[.?!]", text) for text in texts)
    assert not any(re.search(r"[{}_]|  |\ba a\b|\ba adj|\bor or\b", text) for text in texts)
    turns = [sum(m["role"] == "user" for m in record.messages) for record in records]
    assert min(turns) == 1
    assert max(turns) >= 5


def test_shipped_held_out_records_are_about_other_words() -> None:
    synsets = {
        name: {synset for record in shipped(name) for synset in record["synsets"]}
        for name in ("train", "eval")
    }
    assert len(synsets["train"]) > 1500
    assert not synsets["train"] & synsets["eval"]
    first = [
        next(m["content"] for m in record["messages"] if m["role"] == "user")
        for name in ("train", "eval")
        for record in shipped(name)
    ]
    assert len(set(first)) == len(first)


def test_shipped_data_is_small_and_licensed() -> None:
    files = [FOLDER / f"wordnet_{name}.jsonl" for name in ("train", "eval")]
    assert sum(file.stat().st_size for file in files) < 1_000_000
    licence = (FOLDER / "LICENSE.wordnet").read_text()
    assert "Permission to use, copy, modify and distribute this software" in licence
    assert "WordNet 3.0 Copyright 2006 by Princeton University" in licence


def test_synset_line_is_read() -> None:
    synset = parse_synset(NOUNS.splitlines()[2], "n")
    assert synset.words == ["car", "auto"]
    assert synset.pointers == [("@", "n00000001", 0, 0)]
    assert synset.meaning == "a carriage with four wheels"
    assert synset.examples == ["he has a car"]
    marked = parse_synset(ADJECTIVES.splitlines()[0], "a")
    assert marked.words == ["fast"]
    assert marked.pointers == [("!", "a00000022", 1, 1)]


@pytest.mark.parametrize(
    ("gloss", "meaning", "examples"),
    [
        ("a long meaning of words; and more", "a long meaning of words", []),
        ("brief; or longer than that", "brief, or longer than that", []),
        ('a, b and c d; "one"; "two"- Somebody', "a, b and c d", ["one"]),
    ],
)
def test_gloss_gives_its_first_clause_and_examples(
    gloss: str, meaning: str, examples: list[str]
) -> None:
    assert parse_gloss(gloss) == (meaning, examples)


@pytest.mark.parametrize(
    ("example", "whole"),
    [
        ("he has a warm smile", True),
        ("the road is long today", True),
        ("a warm room", False),
        ("a man who was warm", False),
        ("had a warm coat on", False),
        ("is there a warm coat?", True),
        ("She met John at the door", False),
    ],
)
def test_only_whole_sentences_are_examples(example: str, whole: bool) -> None:
    assert is_sentence(example) == whole
    assert as_sentence("it works") == "It works."


def test_meaning_that_repeats_the_word_is_circular() -> None:
    assert is_circular("wisely", "in a wise manner")
    assert not is_circular("wisely", "with good judgment")


def test_topics_have_what_the_dictionary_says(dictionary: Path) -> None:
    topics = topics_of(dictionary)
    # People and names are left out, and so is what defines a word by itself.
    assert sorted(topics) == ["auto", "drive", "fast", "park", "slow", "vehicle", "wagon"]
    auto, drive = topics["auto"], topics["drive"]
    assert (auto.part, auto.synset, auto.synonyms) == ("noun", "n00000002", ["car"])
    assert (auto.broader, auto.meaning) == ("vehicle", "a carriage with four wheels")
    assert sorted(topics["vehicle"].narrower) == ["car", "wagon"]
    assert drive.meaning == "to operate a carriage"
    assert (drive.opposite, topics["fast"].opposite) == ("park", "slow")
    assert (drive.sentence, topics["wagon"].sentence) == ("She drives fast.", None)


def test_related_words_stay_together(dictionary: Path) -> None:
    groups = [{topic.word for topic in group} for group in read_topics(dictionary, 1)]
    assert {"auto", "wagon"} in groups
    assert {"drive", "park"} in groups
    assert {"fast", "slow"} in groups


def test_same_seed_makes_the_same_records(dictionary: Path) -> None:
    groups = read_topics(dictionary, 1)
    made = [make_wordnet.records(groups, 12, random.Random(seed)) for seed in (1, 1, 2)]
    assert made[0] == made[1] != made[2]
    assert len(made[0]) == 12


def test_script_writes_both_files_without_a_synset_in_common(dictionary: Path) -> None:
    sizes = ["--train", "20", "--eval", "4", "--least", "1", "--seed", "5"]
    make_wordnet.main([str(dictionary), "--out", str(dictionary), *sizes])
    synsets = []
    for name, count in (("train", 20), ("eval", 4)):
        file = dictionary / f"wordnet_{name}.jsonl"
        assert len(chats(file)) == count
        lines = file.read_text().splitlines()
        synsets.append({synset for line in lines for synset in json.loads(line)["synsets"]})
    assert synsets[0]
    assert synsets[1]
    assert not synsets[0] & synsets[1]


def test_more_records_than_there_are_questions_is_an_error(dictionary: Path) -> None:
    with pytest.raises(SystemExit, match=r"only \d+ of 500 records"):
        make_wordnet.records(read_topics(dictionary, 1), 500, random.Random(0))
