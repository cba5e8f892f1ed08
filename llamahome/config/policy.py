"""The eviction policy: which entries a cache of fixed size keeps."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace

from llamahome.config.checks import above, at_least, one_of, require

POLICIES = (
    "h2o", "value_norm", "snapkv", "tova", "window", "keydiff", "random", "learned", "full"
)  # fmt: skip
CARRIED = "carried"

_HEADS = re.compile(r"L(\d+)(?:H(\d+))?")


@dataclass(kw_only=True)
class PolicyConfig:
    """One eviction policy.

    Attributes:
        name: how keys are scored, or `carried`: whatever the checkpoint says it was trained under.
        budget: entries kept per KV head after compaction; None never evicts (`full`). Of a carried
            policy: what its budgets become on average; None leaves them.
        sink: first tokens that always stay.
        recent: newest tokens that always stay. What is left of the budget goes to heavy hitters.
        interval: tokens in a chunk, between two compactions. 1 is the paper's H2O.
        decay: for h2o and value_norm: tokens after which mass counts 1/e of what it did; None
            never forgets.
        normalize: for h2o and value_norm: divide a key's mass by the queries that could see it.
        group: a key's mass is the `sum`, or the `max`, over the query heads of its KV group.
        window: for snapkv: last queries of a chunk whose attention counts.
        seed: for random.
        layers: `flat` gives every layer `budget`, `pyramid` from 3/2 (first layer) down to 1/2
            (last) of it, the same in all.
        pattern: budgets that differ: {"L18H2": None, "L0": 512}. A key is a layer, or one of its
            KV heads, which wins over its layer; None never evicts.
        positions: `absolute` rotates a key for its place in the text, `rolling` for its place in
            the cache, so that a text may run past the trained context.
    """

    name: str = "h2o"
    budget: int | None = 256
    sink: int = 4
    recent: int = 128
    interval: int = 64
    decay: int | None = 256
    normalize: bool = False
    group: str = "sum"
    window: int = 32
    seed: int = 0
    layers: str = "flat"
    pattern: dict[str, int | None] = field(default_factory=dict)
    positions: str = "absolute"

    @classmethod
    def dense(cls, *, interval: int = 64, positions: str = "absolute") -> PolicyConfig:
        """Return the policy that never evicts."""
        return cls(name="full", budget=None, interval=interval, positions=positions)

    def __post_init__(self) -> None:
        one_of("policy.name", self.name, (*POLICIES, CARRIED))
        one_of("policy.group", self.group, ("sum", "max"))
        one_of("policy.layers", self.layers, ("flat", "pyramid"))
        one_of("policy.positions", self.positions, ("absolute", "rolling"))
        at_least("policy.sink", self.sink, 0)
        at_least("policy.seed", self.seed, 0)
        at_least("policy.recent", self.recent, 1)
        at_least("policy.interval", self.interval, 1)
        at_least("policy.window", self.window, 1)
        if self.decay is not None:
            at_least("policy.decay", self.decay, 1)
        if self.name in ("full", CARRIED):
            self._check_without_pattern()
            if self.name == CARRIED:
                self._check_nothing_else()
        else:
            self._check_budgets()

    def _check_without_pattern(self) -> None:
        require(
            not self.pattern,
            "policy.pattern",
            self.pattern,
            f"policy.name={self.name} takes no pattern; leave it out",
        )
        if self.budget is not None:
            require(
                self.name == CARRIED,
                "policy.budget",
                self.budget,
                f"policy.name={self.name} takes no budget; leave it out, or set policy.budget=null",
            )
            at_least("policy.budget", self.budget, 1)

    def _check_nothing_else(self) -> None:
        plain = PolicyConfig()
        for own in fields(self):
            if own.name not in ("name", "budget"):
                value = getattr(self, own.name)
                require(
                    value == getattr(plain, own.name),
                    f"policy.{own.name}",
                    value,
                    "policy=carried brings its own; leave it out, or name a policy, like h2o",
                )

    def _check_budgets(self) -> None:
        require(
            self.budget is not None,
            "policy.budget",
            self.budget,
            f"policy.name={self.name} needs a number of entries; only `full` goes without",
        )
        assert self.budget is not None
        self._check_fits("policy.budget", self.budget)
        if self.layers == "pyramid":
            self._check_fits("policy.budget", self.budget, self.budget - self.budget // 2)
        for name, budget in self.pattern.items():
            require(
                _HEADS.fullmatch(name) is not None,
                "policy.pattern",
                name,
                "its keys name a layer or a KV head of one, like L18 or L18H2",
            )
            if budget is not None:
                self._check_fits(f"policy.pattern.{name}", budget)
        require(
            self.interval <= self.recent,
            "policy.interval",
            self.interval,
            f"it must not exceed policy.recent={self.recent}, or a chunk's own keys would be "
            "judged before any later query saw them",
        )

    def _check_fits(self, key: str, budget: int, smallest: int | None = None) -> None:
        """Require room for what is protected; else a head would silently evict some of it."""
        held = budget if smallest is None else smallest
        least = "" if smallest is None else f" (the last layer of the pyramid has {smallest})"
        require(
            held >= self.sink + self.recent,
            key,
            budget,
            f"it must hold sink + recent = {self.sink} + {self.recent} entries{least}; "
            f"raise {key} or lower policy.recent",
        )

    def budget_of(self, layer_idx: int, head: int, num_layers: int) -> int | None:
        """Return the entries kept for one KV head; None never evicts."""
        for name in (f"L{layer_idx}H{head}", f"L{layer_idx}"):
            if name in self.pattern:
                return self.pattern[name]
        if self.layers == "flat" or self.budget is None or num_layers == 1:
            return self.budget
        # Cut towards zero, so that what the upper half loses is what the lower half gains.
        return self.budget + int(self.budget / 2 * (1 - 2 * layer_idx / (num_layers - 1)))

    def average(self, num_layers: int, num_kv_heads: int, context: int) -> int | None:
        """Return the entries kept of `context` tokens per KV head on average; None: all of them."""
        if self.budget is None:
            return None
        budgets = [
            self.budget_of(layer, head, num_layers)
            for layer in range(num_layers)
            for head in range(num_kv_heads)
        ]
        held = sum(context if budget is None else min(budget, context) for budget in budgets)
        return round(held / len(budgets))

    def check_model(self, num_layers: int, num_kv_heads: int) -> None:
        """Raise `ConfigError` for a pattern that names layers or heads a model does not have."""
        for name in self.pattern:
            layer, head = _HEADS.fullmatch(name).groups()  # type: ignore[union-attr]  # checked
            require(
                int(layer) < num_layers and int(head or 0) < num_kv_heads,
                "policy.pattern",
                name,
                f"the model has layers L0..L{num_layers - 1} with KV heads H0..H{num_kv_heads - 1}",
            )


MULTIPLE = 16  # entries; tiles of the C++ kernels


def entries(budget: float, context: int) -> int:
    """Return a budget in entries per KV head; up to 1 it is a share of `context` tokens."""
    return round(budget * context) if budget <= 1 else round(budget)


def with_budgets(policy: PolicyConfig, budgets: Sequence[Sequence[int | None]]) -> PolicyConfig:
    """Return `policy` with a budget for each layer and KV head, the most common one as `budget`."""
    flat = [budget for layer in budgets for budget in layer]
    limited = sorted({budget for budget in flat if budget is not None})
    common = max(limited, key=flat.count)
    pattern: dict[str, int | None] = {}
    for index, layer in enumerate(budgets):
        if len(set(layer)) == 1:
            named = {f"L{index}": layer[0]}
        else:
            named = {f"L{index}H{head}": budget for head, budget in enumerate(layer)}
        pattern |= {name: budget for name, budget in named.items() if budget != common}
    return replace(policy, budget=common, pattern=pattern, layers="flat")


def rescaled(policy: PolicyConfig, total: int, num_layers: int, num_kv_heads: int) -> PolicyConfig:
    """Return `policy` with budgets of `total` entries per KV head on average.

    They fall in proportion. As they grow they become more even, since the large ones come near the
    whole context: in proportion to b ** (growth ** -1/3), which at twice and five times the total
    of the embedded model's policy lowers the KL to dense by a tenth and by a half. Heads that never
    evict go on so, and do not count. Recent entries become fewer with the budgets, but not more.

    Raises:
        ConfigError: for a total that has no room for sinks and recent entries.
    """
    if policy.budget is None:
        return policy
    budgets = [
        [policy.budget_of(layer, head, num_layers) for head in range(num_kv_heads)]
        for layer in range(num_layers)
    ]
    limited = [budget for layer in budgets for budget in layer if budget is not None]
    share = total * len(limited) / sum(limited)
    recent = max(policy.interval, round(policy.recent * min(1.0, share)))
    scaled = replace(policy, recent=recent, budget=total, pattern={}, layers="flat")
    flatter = max(1.0, share) ** (-1 / 3)
    sizes = _in_proportion([b**flatter for b in limited], total, scaled.sink + recent)
    return with_budgets(
        scaled,
        [[None if budget is None else next(sizes) for budget in layer] for layer in budgets],
    )


def _in_proportion(budgets: list[float], total: int, least: int) -> Iterator[int]:
    """Yield `budgets` scaled to `total` on average: round numbers but one, none below `least`."""
    if len(set(budgets)) == 1:
        yield from [total] * len(budgets)
        return

    def at(factor: float) -> list[int]:
        return [max(least, int(b * factor / MULTIPLE) * MULTIPLE) for b in budgets]

    low, high = 0.0, float(total * len(budgets))
    for _ in range(64):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(at(middle)) <= total * len(budgets) else (low, middle)
    sizes = at(low)
    sizes[budgets.index(max(budgets))] += total * len(budgets) - sum(sizes)
    yield from sizes


def policy_config(
    name: str,
    budget: float | None,
    sink: int | None,
    recent: int | None,
    interval: int | None,
    context: int,
) -> PolicyConfig:
    """Build the policy that a command's options spell.

    A carried policy is rescaled to a budget that comes alone; if other numbers come too, the policy
    is h2o.

    Args:
        context: tokens that a budget of up to 1 is a share of.
    """
    if budget is not None:
        above("--budget", budget, 0)
    held = None if budget is None else entries(budget, context)
    if name == CARRIED and any(number is not None for number in (sink, recent, interval)):
        name = "h2o"
    if name in ("full", CARRIED):
        return PolicyConfig(name=name, budget=held)
    held = 256 if held is None else held
    recent = max(1, held // 2) if recent is None else recent
    interval = min(64, recent) if interval is None else interval
    sink = 4 if sink is None else sink
    return PolicyConfig(name=name, budget=held, sink=sink, recent=recent, interval=interval)
