"""Amount of work in a run, and the policies that models are served under."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from llamahome.config import PolicyConfig
from llamahome.config.policy import entries, rescaled
from llamahome.evaluation import at_budget

TRAINED = 0.1  # entries that the evicting arm trains under, as a share of the context
FLOORS = ("window", "random")
# Each step of the ablation, by the name that tables and results have for it.
LADDER = ("h2o", "h2o, measured budgets", "learned, measured budgets")
LEARNED = LADDER[-1]
TOKENS = 2048  # windows of longer contexts are fewer, so that each context reads as much


@dataclass(frozen=True, kw_only=True)
class Form:
    """Amount of work in a run.

    Attributes:
        dense_steps: of the stage that both arms share.
        steps: of each arm after it.
        windows: of 2,048 tokens; of longer contexts as many as read as much, at least two.
        samples: questions at each of six depths; numbers, words, names and other words take turns.
    """

    name: str
    seeds: int
    dense_steps: int
    steps: int
    contexts: tuple[int, ...]
    windows: int
    samples: int
    budgets: tuple[float, ...]

    def windows_of(self, context: int) -> int:
        return max(2, self.windows * TOKENS // context)


SHORT = Form(
    name="short",
    seeds=1,
    dense_steps=10,
    steps=30,
    contexts=(2048,),
    windows=4,
    samples=1,
    budgets=(0.1, 0.2),
)
LONG = Form(
    name="long",
    seeds=3,
    dense_steps=100,
    steps=300,
    contexts=(2048, 4096, 8192),
    windows=8,
    samples=4,
    budgets=(0.05, 0.1, 0.2, 0.5),
)


@dataclass(frozen=True)
class Way:
    """A policy at a budget, by the names that tables have for them."""

    name: str
    share: float
    policy: PolicyConfig


def ways(carried: PolicyConfig, layers: int, kv_heads: int, form: Form, context: int) -> list[Way]:
    """Return the steps of the ablation and the floors at each budget."""
    return [
        Way(name, share, policy)
        for share in form.budgets
        for name, policy in _at(carried, layers, kv_heads, entries(share, context))
    ]


def _at(
    carried: PolicyConfig, layers: int, kv_heads: int, count: int
) -> Iterator[tuple[str, PolicyConfig]]:
    learned = rescaled(carried, count, layers, kv_heads)
    equal, measured, score = LADDER
    yield equal, at_budget(PolicyConfig(), "h2o", count)
    yield measured, replace(learned, name="h2o")
    yield score, learned
    for floor in FLOORS:
        yield floor, at_budget(PolicyConfig(), floor, count)
