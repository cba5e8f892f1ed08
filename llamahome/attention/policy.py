"""An eviction policy: which entries a KV head keeps when its cache is compacted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from llamahome.attention import policies
from llamahome.attention.entries import Entries
from llamahome.config import PolicyConfig


@dataclass(frozen=True, kw_only=True)
class Policy:
    """A policy ready to use; build it with `build_policy`.

    Attributes:
        config: its numbers.
        score: from entries to scores (B, G, S); the highest stay. None for one that never evicts.
        needs_mass: whether `score` reads the mass, which then has to be accumulated.
    """

    config: PolicyConfig
    score: Callable[[Entries, PolicyConfig], Tensor] | None
    needs_mass: bool

    @property
    def interval(self) -> int:
        return self.config.interval

    def kept(self, count: int) -> int:
        """Entries left of `count` after a compaction."""
        budget = self.config.budget
        return count if budget is None else min(count, budget)

    def capacity(self, max_length: int) -> int:
        """Entries a KV head ever holds at once for a sequence of up to `max_length` tokens."""
        budget = self.config.budget
        return max_length if budget is None else min(budget + self.interval, max_length)

    def evicts(self, length: int) -> bool:
        """Whether a sequence of `length` tokens loses entries before its last token attends."""
        complete = (length - 1) // self.interval * self.interval
        return self.kept(complete) < complete

    @torch.no_grad()
    def select(self, entries: Entries, length: Tensor | int) -> Tensor:
        """Indices of the entries to keep, oldest first: (B, G, budget).

        Args:
            entries: of more than `budget` keys per head.
            length: tokens seen so far, an int or (B,).
        """
        config = self.config
        if self.score is None or config.budget is None:
            raise ValueError(f"policy {config.name!r} never evicts, so it selects nothing")
        newest = torch.as_tensor(length, device=entries.positions.device).reshape(-1, 1, 1)
        protected = (entries.positions < config.sink) | (
            entries.positions >= newest - config.recent
        )
        scores = self.score(entries, config).masked_fill(protected, float("inf"))
        # A stable sort, not topk: equal scores must fall the same way wherever they are computed.
        order = torch.sort(scores, dim=-1, descending=True, stable=True).indices
        return order[..., : config.budget].sort(dim=-1).values


def build_policy(config: PolicyConfig) -> Policy:
    """The policy that `config` names."""
    if config.name == "full":
        return Policy(config=config, score=None, needs_mass=False)
    try:
        scorer = policies.SCORERS[config.name]
    except KeyError:
        raise ValueError(
            f"policy.name={config.name!r} cannot be built; a carried policy is read from its "
            "checkpoint first"
        ) from None
    return Policy(config=config, score=scorer.score, needs_mass=scorer.needs_mass)
