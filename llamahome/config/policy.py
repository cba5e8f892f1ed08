"""The eviction policy: which keys a cache of fixed size keeps."""

from __future__ import annotations

from dataclasses import dataclass

from llamahome.config.checks import at_least, one_of, require

POLICIES = ("h2o", "window", "random", "full")
CARRIED = "carried"


@dataclass(kw_only=True)
class PolicyConfig:
    """One eviction policy.

    Attributes:
        name: how keys are scored, or `carried`: whatever the checkpoint says it was trained under.
        budget: entries kept per KV head after compaction; None never evicts (`full`).
        sink: first tokens that always stay.
        recent: newest tokens that always stay. What is left of the budget goes to heavy hitters.
        interval: tokens in a chunk, between two compactions. 1 is the paper's H2O.
        seed: of the `random` policy.
    """

    name: str = "h2o"
    budget: int | None = 256
    sink: int = 4
    recent: int = 128
    interval: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        one_of("policy.name", self.name, (*POLICIES, CARRIED))
        at_least("policy.sink", self.sink, 0)
        at_least("policy.seed", self.seed, 0)
        at_least("policy.recent", self.recent, 1)
        at_least("policy.interval", self.interval, 1)
        if self.name in ("full", CARRIED):
            require(
                self.budget is None,
                "policy.budget",
                self.budget,
                f"policy.name={self.name} takes no budget; set policy.budget=null",
            )
            return
        require(
            self.budget is not None,
            "policy.budget",
            self.budget,
            f"policy.name={self.name} needs a number of entries; only `full` goes without",
        )
        assert self.budget is not None
        require(
            self.budget >= self.sink + self.recent,
            "policy.budget",
            self.budget,
            f"it must hold sink + recent = {self.sink} + {self.recent} entries; "
            "raise policy.budget or lower policy.recent",
        )
        require(
            self.interval <= self.recent,
            "policy.interval",
            self.interval,
            f"it must not exceed policy.recent={self.recent}, or a chunk's own keys would be "
            "judged before any later query saw them",
        )
