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

# Questions that stand alone, questions within a talk about the word, and answers.
Phrases = tuple[list[str], list[str], list[str]]
PHRASES: dict[str, Phrases] = {
    "meaning": (
        [
            "What does {name} mean?",
            "Define {name}.",
            "What is the meaning of {name}?",
            "I came across {name}. What does it mean?",
            "Please explain {name} to me.",
        ],
        ["What does {name} mean?", "Tell me what {name} means.", "And {name}?"],
        [
            "{Name} means {value}.",
            '"{Word}" means {value}.',
            'As {a_part}, "{word}" means {value}.',
        ],
    ),
    "reverse": (
        [
            'Which {part} means "{meaning}"?',
            'I am looking for {a_part} that means "{meaning}".',
            'What is the word for "{meaning}"? It is {a_part}.',
        ],
        [],
        ["That is {name}.", 'The word is "{value}".', '"{Value}" is the {part} with that meaning.'],
    ),
    "sentence": (
        [
            "Use {name} in a sentence.",
            "Give an example sentence with {name}.",
            "How is {name} used? Show me one sentence.",
        ],
        ["Can you use it in a sentence?", "Give me an example.", "How is it used?"],
        ["{value}", "Here is an example: {value}", "For example: {value}"],
    ),
    "synonyms": (
        [
            "Give a synonym for {name}.",
            "What is another word for {name}?",
            'What is a synonym for {name}, in the sense of "{meaning}"?',
        ],
        ["Is there another word for it?", "What is a synonym?"],
        ['A synonym is "{value}".', 'Another word for "{word}" is "{value}".'],
    ),
    "opposite": (
        ["What is the opposite of {name}?", "Give an antonym of {name}."],
        ["What is its opposite?", "And the opposite?"],
        ['The opposite of "{word}" is "{value}".', '"{Value}" is the opposite of "{word}".'],
    ),
    "broader": (
        [
            "What is a broader term for {name}?",
            "Name a more general word than {name}.",
            'Which more general {part} covers "{word}"?',
        ],
        ["What is a more general word?", "Is there a broader term?"],
        ['A broader term for "{word}" is "{value}".', '"{Value}" is more general than "{word}".'],
    ),
    "narrower": (
        ["Name a more specific word than {name}.", "What is a narrower term for {name}?"],
        ["What is a more specific word?", "Is there a narrower term?"],
        ['A more specific word is "{value}".', '"{Value}" is more specific than "{word}".'],
    ),
}
SYSTEMS = [
    "You are a concise English dictionary.",
    "You help people learn English words.",
    "Answer questions about words in one short sentence.",
]
RECALLS = [
    'Remind me: which of these words means "{meaning}"?',
    'Which of the words above means "{meaning}"?',
]

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
    questions, follow_ups, answers = PHRASES[kind]
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
    question = rng.choice(follow_ups if within else questions)
    return question.format(**parts), rng.choice(answers).format(**parts)


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
    others = [kind for kind in kinds(topic) if PHRASES[kind][1] and kind != "meaning"]
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
