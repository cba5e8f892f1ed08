"""An eviction policy: which entries a KV head keeps when its cache is compacted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from llamahome.attention import policies
from llamahome.attention.entries import Entries
from llamahome.attention.mass import Mass
from llamahome.config import PolicyConfig


@dataclass(frozen=True, kw_only=True)
class Policy:
    """A policy ready to use; build it with `build_policy`.

    Where KV heads have budgets of their own, `planes` splits it into policies of one budget each;
    what speaks of `budget` entries below is for such a one.

    Attributes:
        config: its numbers.
        score: from entries to scores (B, G, S); the highest stay. None for one that never evicts.
        mass: how the mass that `score` reads adds up; None when it reads none.
    """

    config: PolicyConfig
    score: Callable[[Entries, PolicyConfig], Tensor] | None
    mass: Mass | None

    @property
    def interval(self) -> int:
        return self.config.interval

    @property
    def rolling(self) -> bool:
        return self.config.positions == "rolling"

    def kept(self, count: int) -> int:
        """Entries left of `count` after a compaction."""
        budget = self.config.budget
        return count if budget is None else min(count, budget)

    def held(self, length: int) -> int:
        """Entries a KV head holds after `length` tokens."""
        chunk = length % self.interval
        return self.kept(length - chunk) + chunk

    def capacity(self, max_length: int) -> int:
        """Entries a KV head ever holds at once for a sequence of up to `max_length` tokens."""
        budget = self.config.budget
        return max_length if budget is None else min(budget + self.interval, max_length)

    def evicts(self, length: int) -> bool:
        """Whether a sequence of `length` tokens loses entries before its last token attends."""
        complete = (length - 1) // self.interval * self.interval
        return self.kept(complete) < complete

    def planes(self, layer_idx: int, num_layers: int, num_kv_heads: int) -> tuple[Plane, ...]:
        """One layer's KV heads, those of equal budget together."""
        by_budget: dict[int | None, list[int]] = {}
        for head in range(num_kv_heads):
            budget = self.config.budget_of(layer_idx, head, num_layers)
            by_budget.setdefault(budget, []).append(head)
        return tuple(
            Plane(heads=tuple(heads), policy=self._of_budget(budget))
            for budget, heads in by_budget.items()
        )

    def within(self, room: int | None, cap: int | None = None) -> Policy:
        """What this policy does in a head with a budget of `room`, at most `cap` of it."""
        if self.score is None:
            return self
        return self._of_budget(min((b for b in (room, cap) if b is not None), default=None))

    def _of_budget(self, budget: int | None) -> Policy:
        name = "full" if budget is None else self.config.name
        config = replace(self.config, name=name, budget=budget, pattern={}, layers="flat")
        return self if config == self.config else build_policy(config)

    @torch.no_grad()
    def select(
        self, entries: Entries, length: Tensor | int, sink: Tensor | int | None = None
    ) -> Tensor:
        """Indices of the entries to keep, oldest first: (B, G, budget).

        Args:
            entries: of more than `budget` keys per head.
            length: tokens seen so far, an int or (B,).
            sink: first tokens that stay, an int or (B,); None is the policy's own.
        """
        config = self.config
        if self.score is None or config.budget is None:
            raise ValueError(f"policy {config.name!r} never evicts, so it selects nothing")
        device = entries.positions.device
        newest = torch.as_tensor(length, device=device).reshape(-1, 1, 1)
        first = torch.as_tensor(config.sink if sink is None else sink, device=device)
        protected = (entries.positions < first.reshape(-1, 1, 1)) | (
            entries.positions >= newest - config.recent
        )
        scores = self.score(entries, config).masked_fill(protected, float("inf"))
        # A stable sort, not topk: equal scores must fall the same way wherever they are computed.
        order = torch.sort(scores, dim=-1, descending=True, stable=True).indices
        return order[..., : config.budget].sort(dim=-1).values


@dataclass(frozen=True, kw_only=True)
class Plane:
    """KV heads of one layer that keep equally many entries, and the policy of that budget."""

    heads: tuple[int, ...]
    policy: Policy

    @cached_property
    def index(self) -> Tensor:
        """`heads` as a tensor on the CPU."""
        return torch.tensor(self.heads)


def build_policy(config: PolicyConfig) -> Policy:
    """The policy that `config` names."""
    if config.name == "full":
        return Policy(config=config, score=None, mass=None)
    try:
        scorer = policies.SCORERS[config.name]
    except KeyError:
        raise ValueError(
            f"policy.name={config.name!r} cannot be built; a carried policy is read from its "
            "checkpoint first"
        ) from None
    return Policy(config=config, score=scorer.score, mass=scorer.mass(config))
