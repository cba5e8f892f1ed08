"""Search for good values of a run's keys."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from llamahome.config.checks import at_least, one_of, require

METRICS = ("eval_loss", "loss", "accuracy", "margin")


@dataclass(kw_only=True)
class SearchConfig:
    """Runs with values drawn at random, side by side.

    Attributes:
        samples: runs; 0 trains one run and searches nothing.
        space: a range for each key that is searched, in Ray Tune's words, such as
            `loguniform(1e-5,1e-3)`, `randint(1,9)` or `choice(h2o,window)`.
        scheduler: `asha` ends runs that fall behind (Li et al. 2018, arXiv 1810.05934), `none` lets
            all reach their end.
        metric: compared between runs: `eval_loss` or `loss`, the lower the better; of pairs of
            answers also `accuracy` or `margin`, the higher the better.
        grace: steps of a run before it may end early.
        reduction: share 1 / reduction of the runs goes on at steps grace, grace * reduction, ...
        seed: of the drawn values.
    """

    samples: int = 0
    space: dict[str, Any] = field(default_factory=dict)
    scheduler: str = "asha"
    metric: str = "eval_loss"
    grace: int = 50
    reduction: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        one_of("search.scheduler", self.scheduler, ("asha", "none"))
        one_of("search.metric", self.metric, METRICS)
        at_least("search.samples", self.samples, 0)
        at_least("search.seed", self.seed, 0)
        at_least("search.grace", self.grace, 1)
        at_least("search.reduction", self.reduction, 2)
        require(
            self.samples > 0 or not self.space,
            "search.space",
            self.space,
            "there is no search to use it; add search=asha or search=random",
        )
