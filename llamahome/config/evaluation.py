"""The tasks of `llamahome eval`."""

from __future__ import annotations

from dataclasses import dataclass, field

from llamahome.config.checks import above, at_least, one_of, require
from llamahome.config.policy import CARRIED, POLICIES

TASKS = ("perplexity", "needle", "recall")


@dataclass(kw_only=True)
class EvalConfig:
    """Tasks x texts x contexts x policies x budgets.

    Dense attention is always measured as well, and so are `window` and `random` at each budget: a
    policy is worth no more than what it adds to them.

    Attributes:
        tasks: `perplexity` (and KL to dense) of a text, `needle` (a number, word, name or reworded
            sentence hidden in a long text), `recall` (the value of a key in a long list).
        policies: names, or `carried`; everything else about them is in the `policy` section.
        budgets: entries kept per KV head, or, up to 1, the share of a context.
        recent_share: share of the budget that is for the newest tokens.
        texts: each `persuasion`, `northanger_abbey`, `pydoc`, or a file; needles are hidden in the
            first.
        contexts: tokens of a window of the text, and of a needle's or list's prompt with its
            answer; each is measured, and none exceeds the model's.
        windows: windows of each text, counted from its start.
        depths: places in the prompt at which needles are hidden, evenly from its start to its end.
        samples: prompts per depth, for needles and for lists; the four kinds of needles take turns.
        seed: seed of needles and lists.
        output: JSON lines, one per task, text, context, policy, budget and runner; figures that it
            holds are not measured again. None is `evaluations` in the cache directory.
    """

    tasks: list[str] = field(default_factory=lambda: list(TASKS))
    policies: list[str] = field(default_factory=lambda: ["h2o"])
    budgets: list[float] = field(default_factory=lambda: [0.1, 0.2])
    recent_share: float = 0.5
    texts: list[str] = field(default_factory=lambda: ["persuasion"])
    contexts: list[int] = field(default_factory=lambda: [2048])
    windows: int = 4
    depths: int = 6
    samples: int = 4
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
        named = bool(self.texts) and all(self.texts)
        require(named, "eval.texts", self.texts, "name texts or files")
        long = bool(self.contexts) and min(self.contexts) >= 16
        require(long, "eval.contexts", self.contexts, "name lengths of at least 16 tokens")
        for name in ("windows", "depths", "samples"):
            at_least(f"eval.{name}", getattr(self, name), 1)
        at_least("eval.seed", self.seed, 0)
