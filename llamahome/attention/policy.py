"""An eviction policy: which entries a KV head keeps when its cache is compacted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn

from llamahome.attention.entries import Entries
from llamahome.attention.mass import Mass
from llamahome.attention.policies import BUILDERS
from llamahome.attention.scorer import Scorer
from llamahome.attention.shape import Configured
from llamahome.config import ConfigError, PolicyConfig


@dataclass(frozen=True, kw_only=True)
class Policy:
    """A policy ready to use, built once by `build_policy`.

    Its scorer, with whatever weights it has, is shared by all budgets: where KV heads have budgets
    of their own, `planes` splits the policy into policies of one budget each. Properties and
    methods that speak of the budget below are for such a one.

    Attributes:
        config: its numbers.
        scorer: ranks entries; None for a policy that never evicts.
    """

    config: PolicyConfig
    scorer: Scorer | None

    @property
    def interval(self) -> int:
        """Tokens in a chunk."""
        return self.config.interval

    @property
    def rolling(self) -> bool:
        """Whether keys are rotated for their place in the cache."""
        return self.config.positions == "rolling"

    @property
    def mass(self) -> Mass | None:
        """How mass adds up; None when no score reads it."""
        return None if self.scorer is None else self.scorer.mass

    @property
    def has_features(self) -> bool:
        """Whether entries carry a feature that the scorer writes."""
        return self.scorer is not None and self.scorer.features is not None

    @property
    def weights(self) -> nn.Module | None:
        """Parameters of the scorer, which train with the model; None for a rule."""
        return None if self.scorer is None else self.scorer.weights

    def digest(self) -> str:
        """Return a text that differs between any two policies, and changes with the weights."""
        scorer = "" if self.scorer is None else self.scorer.digest()
        return json.dumps([asdict(self.config), scorer], sort_keys=True)

    def kept(self, count: int) -> int:
        """Return the entries left of `count` after a compaction."""
        budget = self.config.budget
        return count if budget is None else min(count, budget)

    def held(self, length: int) -> int:
        """Return the entries that a KV head holds after `length` tokens."""
        chunk = length % self.interval
        return self.kept(length - chunk) + chunk

    def capacity(self, max_length: int) -> int:
        """Return the most entries that a KV head holds for a sequence of `max_length` tokens."""
        budget = self.config.budget
        return max_length if budget is None else min(budget + self.interval, max_length)

    def evicts(self, length: int) -> bool:
        """Return whether a sequence of `length` tokens loses entries before its last attends."""
        complete = (length - 1) // self.interval * self.interval
        return self.kept(complete) < complete

    def planes(self, layer_idx: int, num_layers: int, num_kv_heads: int) -> tuple[Plane, ...]:
        """Group one layer's KV heads by their budget."""
        by_budget: dict[int | None, list[int]] = {}
        for head in range(num_kv_heads):
            budget = self.config.budget_of(layer_idx, head, num_layers)
            by_budget.setdefault(budget, []).append(head)
        return tuple(
            Plane(heads=tuple(heads), policy=self._of_budget(budget))
            for budget, heads in by_budget.items()
        )

    def within(self, room: int | None, cap: int | None = None) -> Policy:
        """Return what this policy does in a head with a budget of `room`, at most `cap` of it."""
        if self.scorer is None:
            return self
        return self._of_budget(min((b for b in (room, cap) if b is not None), default=None))

    def with_config(self, config: PolicyConfig) -> Policy:
        """Return this policy with other budgets; whatever the scorer depends on must be equal."""
        return replace(self, config=config, scorer=None if config.name == "full" else self.scorer)

    def _of_budget(self, budget: int | None) -> Policy:
        name = "full" if budget is None else self.config.name
        config = replace(self.config, name=name, budget=budget, pattern={}, layers="flat")
        return self if config == self.config else self.with_config(config)

    @torch.no_grad()
    def select(
        self, entries: Entries, length: Tensor | int, sink: Tensor | int | None = None
    ) -> Tensor:
        """Return the indices of the entries to keep, oldest first: (B, G, budget).

        Args:
            entries: of more than `budget` keys per head.
            length: tokens seen so far, an int or (B,).
            sink: first tokens that stay, an int or (B,); None is the policy's own.

        Raises:
            ValueError: for a policy that never evicts.
        """
        config = self.config
        if self.scorer is None or config.budget is None:
            raise ValueError(f"policy {config.name!r} never evicts, so it selects nothing")
        device = entries.positions.device
        newest = torch.as_tensor(length, device=device).reshape(-1, 1, 1)
        first = torch.as_tensor(config.sink if sink is None else sink, device=device)
        protected = (entries.positions < first.reshape(-1, 1, 1)) | (
            entries.positions >= newest - config.recent
        )
        scores = self.scorer.score(entries)
        # NaN ranks last wherever it is computed; sort alone would put it first.
        scores = scores.masked_fill(scores.isnan(), float("-inf"))
        scores = scores.masked_fill(protected, float("inf"))
        # A stable sort, not topk: equal scores must fall the same way wherever they are computed.
        order = torch.sort(scores, dim=-1, descending=True, stable=True).indices
        return order[..., : config.budget].sort(dim=-1).values


@dataclass(frozen=True, kw_only=True)
class Plane:
    """KV heads of one layer that keep equally many entries, and the policy of that budget."""

    heads: tuple[int, ...]
    policy: Policy


def build_policy(
    config: PolicyConfig,
    model: Configured | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> Policy:
    """Build the policy that `config` names.

    Args:
        model: the one that it is for; a policy with weights takes its shape and device from it.
        weights: of the scorer, as a checkpoint holds them; None initialises them.

    Raises:
        ConfigError: for `carried`, which is read from a checkpoint first, or weights that are not
            this policy's.
    """
    if config.name == "full":
        scorer = None
    elif config.name not in BUILDERS:
        raise ConfigError(
            f"policy.name={config.name!r} cannot be built; a carried policy is read from its "
            "checkpoint first"
        )
    else:
        scorer = BUILDERS[config.name](config, model)
    policy = Policy(config=config, scorer=scorer)
    if weights is not None:
        _load(policy, weights)
    if policy.weights is not None and model is not None:
        policy.weights.to(model.device)
    return policy


def _load(policy: Policy, weights: Mapping[str, Tensor]) -> None:
    name = policy.config.name
    if policy.weights is None:
        raise ConfigError(f"policy.name={name!r} has no weights, but {len(weights)} came")
    try:
        policy.weights.load_state_dict(dict(weights))
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"policy.name={name!r}: its weights do not fit: {reason}") from error
