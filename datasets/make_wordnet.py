"""Write instruction records about common English words, from WordNet 3.0.

    python datasets/make_wordnet.py /usr/share/wordnet

from the repository root writes wordnet_train.jsonl and wordnet_eval.jsonl next to this file; the
same arguments give the same bytes. /usr/share/wordnet is where Debian's package wordnet-base puts
the database. No synset is in both files: words under one broader term, opposites and similar words
are held out together.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from wordnet_topics import Topic, read_topics

logger = logging.getLogger("make_wordnet")

# By kind: questions that stand alone, follow-ups in a talk about the word, and answers.
_TEXTS = json.loads(Path(__file__).with_name("wordnet_phrases.json").read_text(encoding="utf-8"))
PHRASES: dict[str, dict[str, list[str]]] = _TEXTS["about"]
SYSTEMS: list[str] = _TEXTS["systems"]
RECALLS: list[str] = _TEXTS["recalls"]

Exchange = tuple[str, str]
Talk = tuple[list[Topic], list[Exchange]]
Maker = Callable[[list[Topic], random.Random], Talk]


def values(topic: Topic, kind: str) -> list[str]:
    """Return the possible answers about `topic`; none if the database has none."""
    single = {"meaning": topic.meaning, "reverse": topic.word}
    if kind in single:
        return [single[kind]]
    found = getattr(topic, kind)
    return found if isinstance(found, list) else [found] if found else []


def kinds(topic: Topic) -> list[str]:
    return [kind for kind in PHRASES if values(topic, kind)]


def ask(topic: Topic, kind: str, rng: random.Random, within: bool = False) -> Exchange:
    """Write a question of `kind` and its answer; `within` a talk it may call the word "it"."""
    phrases = PHRASES[kind]
    name = f'the {topic.part} "{topic.word}"'
    value = rng.choice(values(topic, kind))
    parts = {
        "word": topic.word,
        "Word": capital(topic.word),
        "name": name,
        "Name": capital(name),
        "part": topic.part,
        "a_part": a_part(topic),
        "meaning": topic.meaning,
        "value": value,
        "Value": capital(value),
    }
    question = rng.choice(phrases["follow_ups" if within else "questions"])
    return question.format(**parts), rng.choice(phrases["answers"]).format(**parts)


def a_part(topic: Topic) -> str:
    return f"an {topic.part}" if topic.part.startswith("a") else f"a {topic.part}"


def capital(text: str) -> str:
    return text[0].upper() + text[1:]


def single(group: list[Topic], rng: random.Random) -> Talk:
    topic = rng.choice(group)
    return [topic], [ask(topic, rng.choice(kinds(topic)), rng)]


def study(group: list[Topic], rng: random.Random) -> Talk:
    """Ask two to five questions about one word."""
    topic = rng.choice([topic for topic in group if len(kinds(topic)) > 2])
    others = [kind for kind in kinds(topic) if PHRASES[kind]["follow_ups"] and kind != "meaning"]
    rng.shuffle(others)
    exchanges = [ask(topic, "meaning", rng)]
    exchanges += [ask(topic, kind, rng, within=True) for kind in others[:4]]
    return [topic], exchanges


def tour(group: list[Topic], rng: random.Random) -> Talk:
    """Ask about two to five related words, then something that only the beginning answers."""
    topics = rng.sample(group, min(len(group), rng.randint(2, 5)))
    exchanges = [ask(topics[0], "meaning", rng)]
    exchanges += [ask(topic, "meaning", rng, within=True) for topic in topics[1:]]
    recalled = rng.choice(topics[:-1])
    question = rng.choice(RECALLS).format(meaning=recalled.meaning)
    return topics, [*exchanges, (question, f'That is "{recalled.word}".')]


def quiz(group: list[Topic], rng: random.Random) -> Talk:
    """Guess two to five words, then list them in order."""
    topics = rng.sample(group, min(len(group), rng.randint(2, 5)))
    leads = ["I describe words, you name them. First", *["Next"] * 4]
    exchanges = [
        (f"{lead} is {a_part(topic)}: {topic.meaning}.", f'The word is "{topic.word}".')
        for lead, topic in zip(leads, topics, strict=False)
    ]
    *most, last = [f'"{topic.word}"' for topic in topics]
    answer = f"We had {', '.join(most)} and {last}."
    return topics, [*exchanges, ("Which words did we have, in order?", answer)]


def talks(groups: list[list[Topic]], rng: random.Random) -> Iterator[Talk]:
    """Yield talks without end: six of ten are single questions."""
    related = [group for group in groups if len(group) > 1]
    rich = [group for group in groups if any(len(kinds(topic)) > 2 for topic in group)]
    pools: dict[Maker, list[list[Topic]]]
    pools = {single: groups, study: rich, tour: related, quiz: related}
    turns = {make: cycle(rng.sample(pool, len(pool))) for make, pool in pools.items()}
    order = [single, study, single, tour, single, single, study, single, quiz, single]
    for make in cycle([make for make in order if pools[make]]):
        yield make(next(turns[make]), rng)


def records(groups: list[list[Topic]], count: int, rng: random.Random) -> list[dict[str, Any]]:
    """Return `count` different chats about the words of `groups`."""
    made: dict[str, dict[str, Any]] = {}
    for topics, exchanges in islice(talks(groups, rng), 10 * count):
        if len(made) < count:
            made.setdefault(exchanges[0][0], as_record(topics, exchanges, rng))
    if len(made) < count:
        raise SystemExit(f"only {len(made)} of {count} records: lower --least or the count")
    ordered = list(made.values())
    rng.shuffle(ordered)
    return ordered


def as_record(topics: list[Topic], exchanges: list[Exchange], rng: random.Random) -> dict[str, Any]:
    messages = []
    if rng.random() < 0.1:
        messages.append({"role": "system", "content": rng.choice(SYSTEMS)})
    for question, answer in exchanges:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer})
    return {"synsets": [topic.synset for topic in topics], "messages": messages}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="holds data.noun, index.noun, cntlist.rev ...")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--train", type=int, default=2600, help="training records")
    parser.add_argument("--eval", type=int, default=300, help="held-out records")
    parser.add_argument("--least", type=int, default=4, help="times a word was met in tagged texts")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    rng = random.Random(args.seed)
    groups = read_topics(args.folder, args.least)
    rng.shuffle(groups)
    held = round(len(groups) * args.eval / (args.train + args.eval))
    for name, part, count in (
        ("eval", groups[:held], args.eval),
        ("train", groups[held:], args.train),
    ):
        path = args.out / f"wordnet_{name}.jsonl"
        lines = [
            json.dumps(record, separators=(",", ":")) + "\n" for record in records(part, count, rng)
        ]
        path.write_text("".join(lines), encoding="ascii")
        logger.info("%s: %d records, %d bytes", path, len(lines), path.stat().st_size)


if __name__ == "__main__":
    main()
