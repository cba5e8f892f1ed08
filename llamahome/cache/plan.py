"""The plan of a step, in plain integers: torch, CUDA graphs and C++ kernels compute the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from llamahome.attention import Policy
from llamahome.attention.mass import Mass


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """A forward over some slots. Row i of the batch brings `tokens[i]` tokens for `slots[i]`.

    Attributes:
        slots, tokens: of each row; at least one token.
        lengths: tokens of each row's request before the step.
        held: by budget, as in `Slots.budgets`, the entries in each row's slot before the step.
        counts_mass: by budget, whether each row's request reads the mass of its entries there.
        weights: of each row's queries in the mass, as many as its tokens; 0 where none is read.
    """

    slots: list[int]
    tokens: list[int]
    lengths: list[int]
    held: list[list[int]]
    counts_mass: list[list[bool]]
    weights: list[Sequence[float]]


@dataclass(frozen=True)
class SlotPolicies:
    """The policies of one request, one for each of `Slots.budgets`."""

    by_budget: tuple[Policy, ...]

    @cached_property
    def counts_mass(self) -> tuple[bool, ...]:
        """Whether the request's score reads mass, by budget."""
        return tuple(policy.mass is not None for policy in self.by_budget)

    @cached_property
    def mass(self) -> Mass | None:
        """How mass adds up, the same in every budget that evicts; None when no score reads it."""
        return next((policy.mass for policy in self.by_budget if policy.mass is not None), None)

    @cached_property
    def max_sink(self) -> int | None:
        """First tokens that the smallest head can protect; None when nothing evicts."""
        room = [
            policy.config.budget - policy.config.recent
            for policy in self.by_budget
            if policy.config.budget is not None
        ]
        return min(room, default=None)

    def weights(self, offset: int, tokens: int) -> Sequence[float]:
        """Return the weights in the mass of the queries from `offset` in their chunk on."""
        mass = self.mass
        return (0.0,) * tokens if mass is None else mass.weights[offset : offset + tokens]
