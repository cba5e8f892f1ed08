"""Amount of work in a run, and the policies that models are served under."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llamahome.config import PolicyConfig
from llamahome.evaluation import at_budget
from llamahome.evaluation.calibration.retrieval import probes, propose, retrieval_scores
from llamahome.evaluation.text import load_text
from llamahome.models import LoadedModel

Policies = list[PolicyConfig]
TOTALS = (0.1, 0.2)  # entries of the pattern, as shares of the context
TRAINED = 0.1  # the total that the hybrid arm trains under


@dataclass(frozen=True, kw_only=True)
class Form:
    """Amount of work in a run."""

    name: str
    seeds: int
    steps: int
    context: int
    windows: int
    samples: int
    budgets: tuple[float, ...]


SHORT = Form(
    name="short", seeds=1, steps=30, context=2048, windows=3, samples=1, budgets=(0.1, 0.2)
)
LONG = Form(
    name="long",
    seeds=3,
    steps=30,
    context=2048,
    windows=3,
    samples=2,
    budgets=(0.05, 0.1, 0.2, 0.5),
)


def patterns(loaded: LoadedModel, form: Form) -> dict[float, PolicyConfig]:
    """Return what `llamahome calibrate` proposes for each total."""
    length = min(1024, form.context)
    asked = probes(loaded.tokenizer, load_text("pydoc"), length=length, count=5, seed=0)
    scores = retrieval_scores(loaded.model, asked)
    return {
        share: propose(
            scores, PolicyConfig(), total=round(share * form.context), context=form.context
        )
        for share in TOTALS
    }


def at_equal_budgets(names: Sequence[str], budgets: Sequence[float], form: Form) -> Policies:
    """Return each policy at each budget, the same for every KV head."""
    entries = [round(budget * form.context) for budget in budgets]
    return [at_budget(PolicyConfig(), name, count) for name in names for count in entries]
