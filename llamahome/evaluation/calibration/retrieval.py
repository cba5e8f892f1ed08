"""Search for the KV heads that retrieve, and a pattern that lets them keep everything.

A few heads do the retrieving (Wu et al. 2024, "Retrieval Head Mechanistically Explains Long-Context
Factuality", arXiv 2404.15574): while a model repeats something from far back, they look at it.

Axes: L layers, G KV heads, H query heads, N tokens, A queries that answer, D head_dim.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from llamahome.attention import HybridAttention, Policy, build_policy
from llamahome.config import ConfigError, PolicyConfig
from llamahome.evaluation.text import encode

# Words that the needles of evaluation do not use, so that heads are not chosen for them.
TEAMS = ("red", "blue", "green", "amber", "violet", "silver", "crimson", "golden", "indigo")
PLANTS = (
    "oak", "willow", "maple", "orchid", "cedar", "thistle", "poppy", "bamboo", "ivy", "clover",
    "birch", "daisy", "fern", "lilac", "heather", "juniper", "lotus", "holly", "moss", "nettle",
)  # fmt: skip
FIRST = (
    "Thomas", "Laura", "Victor", "Hannah", "Simon", "Claire", "Walter", "Lydia", "Peter", "Nina",
    "Edgar", "Teresa", "Hugo", "Marta", "Julian", "Rosa",
)  # fmt: skip
LAST = (
    "Baker", "Lindqvist", "Moreau", "Sandoval", "Fischer", "Okafor", "Petrov", "Hughes", "Tanaka",
    "Carver", "Novak", "Bianchi", "Keller", "Santos", "Wood", "Marsh",
)  # fmt: skip

# Statement, question, and how an answer is drawn; {} is a team.
KINDS: tuple[tuple[str, str, Callable[[random.Random], str]], ...] = (
    (
        "The access code of the {} team is",
        "what is the access code of the {} team?",
        lambda draw: str(draw.randrange(100_000, 1_000_000)),
    ),
    (
        "The {} team has chosen its emblem, which is",
        "which emblem has the {} team chosen?",
        lambda draw: draw.choice(PLANTS),
    ),
    (
        "The captain of the {} team is",
        "who is the captain of the {} team?",
        lambda draw: f"{draw.choice(FIRST)} {draw.choice(LAST)}",
    ),
)


MOST_FACTS = 9


@dataclass(frozen=True, kw_only=True)
class Lookup:
    """A fact of a probe.

    Attributes:
        given: positions of the answer where it is given.
        answering: positions at the end whose next token belongs to the answer.
    """

    given: slice
    answering: slice


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A text (N,) that gives some facts and, at its end, asks for them and answers."""

    ids: Tensor
    lookups: list[Lookup]


@dataclass(frozen=True)
class _Fact:
    said: list[int]
    asked: list[int]
    answer: list[int]

    @property
    def tokens(self) -> int:
        return len(self.said) + len(self.asked) + 2 * len(self.answer)


def probes(
    tokenizer: PreTrainedTokenizerFast, text: str, *, length: int, count: int, seed: int
) -> list[Probe]:
    """Return probes of `length` tokens, whose facts are inserted into a random piece of `text`.

    Numbers, words and names take turns as answers. There are as many facts, up to `MOST_FACTS`, as
    half of the length has room for. The same `seed` gives the same probes.

    Raises:
        ConfigError: for a length that a fact or the text does not fit.
    """
    haystack = encode(tokenizer, text)
    return [
        _probe(haystack, _facts(tokenizer, length, draw), length, draw)
        for draw in (random.Random(f"{seed}:probe:{number}") for number in range(count))
    ]


def _facts(tokenizer: PreTrainedTokenizerFast, length: int, draw: random.Random) -> list[_Fact]:
    """Draw facts, each of another team."""
    kinds = draw.sample(range(len(KINDS)), len(KINDS))
    facts: list[_Fact] = []
    room = length // 2
    for turn, team in enumerate(draw.sample(TEAMS, MOST_FACTS)):
        statement, question, answers = KINDS[kinds[turn % len(KINDS)]]
        fact = _Fact(
            said=encode(tokenizer, f"\n\n{statement.format(team)}"),
            asked=encode(tokenizer, f".\n\nQuestion: {question.format(team)}\nAnswer:"),
            answer=encode(tokenizer, f" {answers(draw)}"),
        )
        room -= fact.tokens
        if facts and room < 0:
            break
        facts.append(fact)
    return facts


def _probe(haystack: list[int], facts: list[_Fact], length: int, draw: random.Random) -> Probe:
    room = length - sum(fact.tokens for fact in facts)
    if not 0 < room < len(haystack):
        raise ConfigError(
            f"--context={length}: a probe needs {length - room} tokens and a text that is "
            f"longer (this one has {len(haystack)})"
        )
    start = draw.randrange(len(haystack) - room)
    cuts = sorted(draw.randrange(room + 1) for _ in facts)
    ids: list[int] = []
    given = []
    for at, cut, fact in zip([0, *cuts], cuts, facts, strict=False):
        ids += [*haystack[start + at : start + cut], *fact.said, *fact.answer]
        given.append(slice(len(ids) - len(fact.answer), len(ids)))
    ids += haystack[start + cuts[-1] : start + room]
    lookups = []
    for place in draw.sample(range(len(facts)), len(facts)):
        fact = facts[place]
        ids += [*fact.asked, *fact.answer]
        answering = slice(len(ids) - len(fact.answer) - 1, len(ids) - 1)
        lookups.append(Lookup(given=given[place], answering=answering))
    return Probe(ids=torch.tensor(ids), lookups=lookups)


class _Watch:
    """Dense attention that notes how much of it goes from answers to where they were given."""

    def __init__(self, probe: Probe, dense: Policy) -> None:
        self.policy = dense
        self.probe = probe
        self.scores: list[Tensor] = []  # per layer: (G,)

    def attend(
        self, layer_idx: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        own = [self._score(lookup, query, key, scaling) for lookup in self.probe.lookups]
        self.scores.append(torch.stack(own).mean(dim=0))
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            is_causal=True,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )

    def _score(self, lookup: Lookup, query: Tensor, key: Tensor, scaling: float) -> Tensor:
        answering = lookup.answering
        grouped = query[0].unflatten(0, (key.shape[1], -1))[:, :, answering]  # (G, R, A, D)
        logits = torch.einsum("grad,gnd->gran", grouped, key[0]).float() * scaling
        places = torch.arange(key.shape[2], device=key.device)
        later = places > places[answering][:, None]
        probs = logits.masked_fill(later, float("-inf")).softmax(dim=-1)
        # The best query head decides, because the keys that it needs serve its whole group.
        return probs[..., lookup.given].sum(dim=-1).mean(dim=-1).amax(dim=1)


@torch.inference_mode()
def retrieval_scores(
    model: PreTrainedModel, asked: list[Probe], on_probe: Callable[[], None] = lambda: None
) -> Tensor:
    """Return the share of its attention that each KV head gives to what it repeats: (L, G)."""
    HybridAttention.attach(model)
    dense = build_policy(PolicyConfig.dense())
    totals = []
    for probe in asked:
        watch = _Watch(probe, dense)
        ids = probe.ids[None].to(model.device)
        model(input_ids=ids, use_cache=False, logits_to_keep=1, hybrid=watch)
        totals.append(torch.stack(watch.scores).cpu())
        on_probe()
    return torch.stack(totals).mean(dim=0)


def best_heads(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return layers and heads of the `count` highest scores (L, G)."""
    best = scores.flatten().argsort(descending=True, stable=True)[:count].cpu()
    return best // scores.shape[1], best % scores.shape[1]


def propose(
    scores: Tensor, base: PolicyConfig, *, total: int, context: int, full_heads: int | None = None
) -> PolicyConfig:
    """Return a policy whose best heads keep everything and whose others share what is left.

    Args:
        scores: (L, G).
        base: everything else about the policy; half of what the others keep is recent.
        total: entries per KV head, on average over all heads, in a context of `context` tokens.
        full_heads: heads that keep everything; None takes as many as leave the others a quarter
            of the average.

    Raises:
        ConfigError: when that leaves the others too little.
    """
    heads = scores.numel()
    if full_heads is None:
        full_heads = int(heads * 0.75 * total / (context - total / 4))
    rest = (total * heads - full_heads * context) // max(1, heads - full_heads)
    least = base.sink + 2
    if not (0 <= full_heads < heads and rest >= least):
        raise ConfigError(
            f"--full-heads={full_heads}: at {total} entries a head of {context}, they leave the "
            f"other {heads - full_heads} heads {rest} entries, of which sinks and recent ones "
            f"take {least}; ask for fewer, or raise --budget"
        )
    best = scores.flatten().argsort(descending=True)[:full_heads].tolist()
    groups = scores.shape[1]
    names = sorted((head // groups, head % groups) for head in best)
    recent = max(1, min(rest // 2, rest - base.sink))
    return replace(
        base,
        budget=rest,
        recent=recent,
        interval=min(base.interval, recent),
        pattern={f"L{layer}H{head}": None for layer, head in names},
    )
