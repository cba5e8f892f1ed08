"""The tasks of `llamahome eval`."""

from __future__ import annotations

from dataclasses import dataclass, field

from llamahome.config.checks import above, at_least, one_of, require
from llamahome.config.policy import CARRIED, POLICIES

TASKS = ("perplexity", "needle", "recall")


@dataclass(kw_only=True)
class EvalConfig:
    """Tasks x policies x budgets; dense attention is always measured as well.

    Attributes:
        tasks: `perplexity` (and KL to dense) of a text, `needle` (a number hidden in a long text),
            `recall` (the value of a key in a long list).
        policies: names, or `carried`; everything else about them is in the `policy` section.
        budgets: entries kept per KV head, or, up to 1, the share of `context`.
        recent_share: share of the budget that is for the newest tokens.
        text: `persuasion`, `northanger_abbey`, `pydoc`, or a file.
        context: tokens of a window of the text, and of a needle's or list's prompt.
        windows: windows of the text, counted from its start.
        depths: places in the prompt at which needles are hidden, evenly from its start to its end.
        samples: prompts per depth, for needles and for lists.
        seed: seed of needles and lists.
        output: JSON lines, one per task, policy, budget and runner; figures that it holds are not
            measured again. None is `evaluations` in the cache directory.
    """

    tasks: list[str] = field(default_factory=lambda: list(TASKS))
    policies: list[str] = field(default_factory=lambda: ["h2o", "window", "random"])
    budgets: list[float] = field(default_factory=lambda: [0.1, 0.2])
    recent_share: float = 0.5
    text: str = "persuasion"
    context: int = 2048
    windows: int = 4
    depths: int = 6
    samples: int = 2
    seed: int = 0
    output: str | None = None

    def __post_init__(self) -> None:
        for key, values, choices in (
            ("eval.tasks", self.tasks, TASKS),
            ("eval.policies", self.policies, (*POLICIES, CARRIED)),
        ):
            require(bool(values), key, values, "name at least one")
            for value in values:
                one_of(key, value, choices)
        require(bool(self.budgets), "eval.budgets", self.budgets, "name at least one")
        for budget in self.budgets:
            above("eval.budgets", budget, 0)
        above("eval.recent_share", self.recent_share, 0)
        require(self.recent_share <= 1, "eval.recent_share", self.recent_share, "at most 1")
        require(bool(self.text), "eval.text", self.text, "name a text or a file")
        at_least("eval.context", self.context, 16)
        for name in ("windows", "depths", "samples"):
            at_least(f"eval.{name}", getattr(self, name), 1)
        at_least("eval.seed", self.seed, 0)

    def entries(self, budget: float) -> int:
        """Return a budget in entries per KV head."""
        return round(budget * self.context) if budget <= 1 else round(budget)
