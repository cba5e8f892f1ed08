"""Early ends: those of successive halving as the paper has it, and after an interruption."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamahome.config import ConfigError, SearchConfig, TrainerConfig
from train.sweeps.halving import Halving, check_search

SEARCH = SearchConfig(samples=9, space={"a": "uniform(0,1)"}, grace=10, reduction=3)
# Held-out loss of nine runs at steps 10, 30 and 90: the first three lead, in the same order.
LOSSES = {f"run-{n}": {10: 1.0 + n, 30: 0.5 + n, 90: 0.1 + n} for n in range(9)}


def train_in_order(halving: Halving) -> dict[str, int]:
    """Return the step at which each run ends, one run after another, the best first."""
    ends = {}
    for run, losses in LOSSES.items():
        for step, loss in losses.items():
            ends[run] = step
            if halving.observe(run, {"step": step, "eval_loss": loss}):
                break
    return ends


def test_the_best_third_goes_on_at_each_rung(tmp_path: Path) -> None:
    """The best comes first, so nobody who follows is in the best third of those before."""
    halving = Halving(SEARCH, 90, tmp_path)
    ends = train_in_order(halving)
    assert ends == {"run-0": 90, **{f"run-{n}": 10 for n in range(1, 9)}}
    assert halving.early["run-2"] == (
        "eval_loss 3.0000 at step 10 is not in the best 1/3 of 3 runs there (run-0 had 1.0000)"
    )


def test_a_run_that_leads_goes_on_and_one_behind_it_ends_later(tmp_path: Path) -> None:
    halving = Halving(SEARCH, 90, tmp_path)
    for run in reversed(LOSSES):  # the worst first: each is the best so far
        assert not halving.observe(run, {"step": 10, "eval_loss": LOSSES[run][10]})
    assert not halving.observe("run-0", {"step": 30, "eval_loss": 0.5})
    assert halving.observe("run-4", {"step": 30, "eval_loss": 4.5})
    assert list(halving.early) == ["run-4"]


def test_nothing_is_decided_before_the_grace_or_at_the_end(tmp_path: Path) -> None:
    halving = Halving(SEARCH, 90, tmp_path)
    assert not halving.observe("run-0", {"step": 90, "eval_loss": 0.1})
    assert not halving.observe("run-1", {"step": 0, "eval_loss": 9.0})
    assert not halving.observe("run-1", {"step": 9, "eval_loss": 9.0})
    assert not halving.observe("run-1", {"step": 12, "loss": 9.0})
    assert not halving.observe("run-1", {"warning": "x"})
    assert not halving.observe("run-1", {"step": 90, "eval_loss": 9.0})
    assert halving.early == {}


def test_an_interrupted_search_decides_as_an_uninterrupted_one(tmp_path: Path) -> None:
    Halving(SEARCH, 90, tmp_path).observe("run-0", {"step": 10, "eval_loss": 1.0})
    Halving(SEARCH, 90, tmp_path).observe("run-1", {"step": 10, "eval_loss": 2.0})
    again = Halving(SEARCH, 90, tmp_path)
    assert list(again.early) == ["run-1"]
    # A run that is resumed reports once more, and is not taken for another.
    assert again.observe("run-1", {"step": 10, "eval_loss": 2.0})
    assert train_in_order(again)["run-0"] == 90
    assert again.early.keys() == Halving(SEARCH, 90, tmp_path).early.keys()


def test_the_higher_accuracy_leads(tmp_path: Path) -> None:
    search = SearchConfig(samples=2, space={"a": "x"}, metric="accuracy", grace=1)
    halving = Halving(search, 9, tmp_path)
    assert not halving.observe("good", {"step": 1, "accuracy": 0.9})
    assert halving.observe("bad", {"step": 1, "accuracy": 0.2})
    assert "good had 0.9000" in halving.early["bad"]


@pytest.mark.parametrize(
    ("search", "trainer", "named"),
    [
        ({"metric": "margin"}, {}, "search.metric='margin'"),
        ({"grace": 200}, {"steps": 200}, "search.grace=200"),
        ({"grace": 10}, {"eval_every": 0}, "trainer.eval_every=0"),
        ({"grace": 10}, {"eval_every": 200}, "trainer.eval_every=200"),
    ],
)
def test_a_search_that_cannot_end_runs_early_is_refused(
    search: dict[str, object], trainer: dict[str, object], named: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        check_search(SearchConfig(**search), TrainerConfig(**trainer))
    assert str(refused.value).startswith(named)


def test_a_search_to_the_end_needs_no_evaluation_on_the_way() -> None:
    check_search(SearchConfig(scheduler="none"), TrainerConfig(eval_every=0, steps=5))
    pairs = TrainerConfig(objective="dpo", method="lora")
    check_search(SearchConfig(metric="margin", grace=10), pairs)
