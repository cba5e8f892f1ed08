"""Common English words, their meanings and relations, from the files of WordNet 3.0."""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

PARTS = {"noun": "n", "verb": "v", "adj": "a", "adv": "r"}
PART_NAMES = {"n": "noun", "v": "verb", "a": "adjective", "r": "adverb"}
# Lexicographer files about people, groups, bodies and their functions, religion, war: most
# hurtful words and examples are in these.
LEFT_OUT_FILES = {"08", "11", "14", "18", "26", "29", "33"}
# Words that leave a text out; "abet*" is every word that begins so.
_WORDS = Path(__file__).with_name("wordnet_left_out.txt").read_text(encoding="ascii").split()
LEFT_OUT = re.compile(rf"\b({'|'.join(_WORDS)})\b".replace("*", r"\w*"), re.IGNORECASE)
TOO_BROAD = {
    "abstraction", "act", "action", "activity", "artifact", "attribute", "be", "change", "entity",
    "event", "group", "have", "instrumentality", "make", "matter", "measure", "move", "object",
    "physical entity", "process", "property", "psychological feature", "quality", "relation",
    "state", "thing", "travel", "unit", "whole",
}  # fmt: skip
# A noun's definition that reads well after "means".
NOUN_PHRASE = re.compile(r"(a|an|the|any|one|some|something|anything|someone)\b")
SENTENCE = re.compile(
    r"^(he|she|it|we|they|you|i|there)\b|"
    r"\b(is|are|was|were|has|had|will|would|can|could|did|does|must|should|may|might)\b",
    re.IGNORECASE,
)
# No whole sentence either: begins with its verb, has it in a relative clause, asks without a
# question mark, or is an error of the database.
PHRASE = re.compile(
    r"^(is|are|was|were|has|had|have|did|does|where|what|how|why|who)\b.*[^?]$|"
    r"^(a|an|the)\b.*\b(who|that|which)\b|^(an estimate of|breathless at|given|glad)\b|"
    r"^(there no other|they weather|he exploit the|can i stay bit|they mounted the aerator)",
    re.IGNORECASE,
)


@dataclass
class Synset:
    """One meaning in the database."""

    part: str
    file: str
    words: list[str]
    pointers: list[tuple[str, str, int, int]]  # symbol, target, own word, target's word; 1-based
    meaning: str
    examples: list[str]


@dataclass(order=True)
class Topic:
    """A common word in its first meaning, with all that can be asked about it."""

    word: str
    part: str
    synset: str = field(compare=False)
    meaning: str = field(compare=False)
    sentence: str | None = field(compare=False)
    synonyms: list[str] = field(compare=False)
    opposite: str | None = field(compare=False)
    broader: str | None = field(compare=False)
    narrower: list[str] = field(compare=False)


def read_lines(folder: Path, name: str) -> Iterator[tuple[str, str]]:
    """Yield the lines of `data.{part}` and the like, each after the letter of its part."""
    for part, letter in PARTS.items():
        for line in (folder / name.format(part=part)).read_text(encoding="ascii").splitlines():
            if not line.startswith(" "):  # the licence comes first
                yield letter, line


def read_synsets(folder: Path) -> dict[str, Synset]:
    """Read all synsets, by part of speech and offset, such as n00001740."""
    lines = read_lines(folder, "data.{part}")
    return {letter + line[:8]: parse_synset(line, letter) for letter, line in lines}


def parse_synset(line: str, part: str) -> Synset:
    """Parse one line of a data file; the format is wndb(5WN)."""
    columns, _, gloss = line.partition(" | ")
    cells = columns.split()
    count = int(cells[3], 16)
    words = [
        re.sub(r"\(\w+\)$", "", cell).replace("_", " ") for cell in cells[4 : 4 + 2 * count : 2]
    ]
    rest = cells[4 + 2 * count :]
    pointers = []
    for i in range(1, 1 + 4 * int(rest[0]), 4):
        symbol, offset, letter, ends = rest[i : i + 4]
        pointers.append((symbol, letter + offset, int(ends[:2], 16), int(ends[2:], 16)))
    meaning, examples = parse_gloss(gloss)
    return Synset(part, cells[1], words, pointers, meaning, examples)


def parse_gloss(gloss: str) -> tuple[str, list[str]]:
    """Split off the definition's first clause (two if it is short) and the quoted examples."""
    definition, *_ = gloss.partition('"')
    clauses = [clause.strip() for clause in definition.split(";") if clause.strip()]
    meaning = clauses[0] if clauses else ""
    if len(clauses) > 1 and len(meaning.split()) < 4:
        meaning = f"{meaning}, or {clauses[1].removeprefix('or ')}"
    return meaning, re.findall(r'"([^"]+)"(?!\s*-)', gloss)


def read_counts(folder: Path) -> dict[tuple[str, str], int]:
    """Read how often the first sense of (word, part) occurs in the tagged texts."""
    letters = {"1": "n", "2": "v", "3": "a", "4": "r", "5": "a"}
    counts: dict[tuple[str, str], int] = {}
    for line in (folder / "cntlist.rev").read_text(encoding="ascii").splitlines():
        key, number, count = line.split()
        word, _, sense = key.partition("%")
        if number == "1":
            counts[word.replace("_", " "), letters[sense[0]]] = int(count)
    return counts


def read_first_senses(folder: Path) -> dict[tuple[str, str], str]:
    """Read the synset of each word's most frequent sense."""
    senses = {}
    for letter, line in read_lines(folder, "index.{part}"):
        cells = line.split()
        senses[cells[0].replace("_", " "), letter] = letter + cells[6 + int(cells[3])]
    return senses


def read_irregular(folder: Path) -> dict[str, str]:
    """Read irregular forms and their base words."""
    return {line.split()[0]: line.split()[1] for _, line in read_lines(folder, "{part}.exc")}


def read_topics(folder: Path, least: int) -> list[list[Topic]]:
    """Read topics whose word occurs at least `least` times in the tagged texts, one per synset.

    Returns:
        Groups that share no broader term, opposite or similar synset with one another.
    """
    synsets, counts = read_synsets(folder), read_counts(folder)
    senses, irregular = read_first_senses(folder), read_irregular(folder)
    common = {key: senses[key] for key in senses if counts.get(key, 0) >= least}
    topics: dict[str, Topic] = {}
    for word, part in sorted(common, key=lambda key: (-counts[key], key)):
        key = common[word, part]
        own = synsets[key]
        if key in topics or word not in own.words or is_circular(word, own.meaning):
            continue
        if is_plain(word) and is_clean(own):
            topics[key] = make_topic(word, key, synsets, common, irregular)
    return group_topics(sorted(topics.values()), synsets)


def is_plain(word: str) -> bool:
    return bool(re.fullmatch(r"[a-z]{3,14}( [a-z]{3,14})?", word)) and not LEFT_OUT.search(word)


def is_clean(synset: Synset) -> bool:
    if synset.part in "nv" and synset.file in LEFT_OUT_FILES:
        return False
    if synset.part == "n" and not NOUN_PHRASE.match(synset.meaning):
        return False
    text = " ".join([synset.meaning, *synset.words, *synset.examples])
    # Some adverbs are explained by their use, not their meaning.
    plain = re.fullmatch(r"(?!used )[a-z][a-z' ,-]{10,140}[a-z]", synset.meaning)
    return bool(plain) and not LEFT_OUT.search(text)


def is_circular(word: str, meaning: str) -> bool:
    stems = [part[: max(4, min(6, len(part) - 3))] for part in word.split()]
    return any(part.startswith(tuple(stems)) for part in re.findall(r"[a-z]+", meaning))


def make_topic(
    word: str,
    key: str,
    synsets: dict[str, Synset],
    common: dict[tuple[str, str], str],
    irregular: dict[str, str],
) -> Topic:
    own = synsets[key]

    def related(symbol: str) -> list[str]:
        """Return words of the synsets that `symbol` points to, if that is their usual meaning."""
        number = own.words.index(word) + 1
        ends = [(t, w) for s, t, source, w in own.pointers if s == symbol and source in (0, number)]
        words = [(synsets[target].words[max(at, 1) - 1], target) for target, at in ends]
        return [w for w, target in words if fits(w, target)]

    def fits(other: str, target: str) -> bool:
        return is_plain(other) and common.get((other, own.part)) == target

    sentences = [e for e in own.examples if is_sentence(e) and uses(e, word, irregular)]
    return Topic(
        word=word,
        part=PART_NAMES[own.part],
        synset=key,
        meaning="to " + own.meaning.removeprefix("to ") if own.part == "v" else own.meaning,
        sentence=as_sentence(min(sentences, key=len)) if sentences else None,
        synonyms=[w for w in own.words if fits(w, key) and not similar(w, word)],
        opposite=next(iter(related("!")), None),
        broader=next(
            (w for w in related("@") if w not in TOO_BROAD and not similar(w, word)), None
        ),
        narrower=[w for w in related("~") if not similar(w, word)],
    )


def is_sentence(example: str) -> bool:
    plain = re.fullmatch(r"[A-Za-z][a-zI' ,]{12,100}[a-z][.!?]?", example)
    return bool(plain and SENTENCE.search(example) and not PHRASE.search(example))


def as_sentence(example: str) -> str:
    return example[0].upper() + example[1:] + ("" if example[-1] in ".!?" else ".")


def uses(example: str, word: str, irregular: dict[str, str]) -> bool:
    stem = word[:-1] if word[-1] in "ey" else word
    found = re.findall(r"[a-z]+", example.lower())
    return any(form.startswith(stem) or irregular.get(form) == word for form in found)


def similar(one: str, other: str) -> bool:
    """Return whether two words are spellings of one, or one contains the other."""
    return one in other or other in one or difflib.SequenceMatcher(None, one, other).ratio() > 0.8


def group_topics(topics: list[Topic], synsets: dict[str, Synset]) -> list[list[Topic]]:
    parent: dict[str, str] = {}

    def find(key: str) -> str:
        while parent.setdefault(key, key) != key:
            key = parent[key]
        return key

    for topic in topics:
        for symbol, target, _, _ in synsets[topic.synset].pointers:
            if symbol in ("@", "!", "&"):
                # Sharing a broader term joins siblings; the term's own topic stays apart.
                end = f"below {target}" if symbol == "@" else target
                parent[find(topic.synset)] = find(end)
    groups = defaultdict(list)
    for topic in topics:
        groups[find(topic.synset)].append(topic)
    return sorted(groups.values())
