"""Early ends in a search: Ray Tune's ASHA decides, and the sweep's folder remembers.

The scheduler sees metrics and answers, as it does in a Tuner. It needs no Tuner, whose trials would
each hold one more process that waits for a Ray Train run.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from llamahome.config import ConfigError, SearchConfig, TrainerConfig
from train.metrics import Record
from train.sweeps.table import HIGHER_IS_BETTER

FILE_NAME = "reports.jsonl"
_NO_TUNER: Any = None  # the scheduler takes one and does not use it


@dataclass(frozen=True)
class _Trial:
    """Part of a trial that the scheduler reads."""

    trial_id: str


def check_search(search: SearchConfig, trainer: TrainerConfig) -> None:
    """Compare a search with the runs that it makes.

    Raises:
        ConfigError: for a metric that no run reports, or too late for an early end.
    """
    if search.metric in HIGHER_IS_BETTER and trainer.objective == "cross_entropy":
        raise ConfigError(
            f"search.metric={search.metric!r}: trainer.objective=cross_entropy does not report it; "
            "choose eval_loss or loss"
        )
    if search.scheduler != "asha":
        return
    if search.grace >= trainer.steps:
        raise ConfigError(
            f"search.grace={search.grace}: runs of trainer.steps={trainer.steps} have ended by "
            "then; lower it, or take search=random"
        )
    if search.metric == "eval_loss" and not 0 < trainer.eval_every < trainer.steps:
        raise ConfigError(
            f"trainer.eval_every={trainer.eval_every}: a run can only end early after an "
            f"evaluation before step {trainer.steps}; set it to search.grace={search.grace}"
        )


class Halving:
    """Asynchronous successive halving over the runs of one search.

    Args:
        search: metric, grace and reduction.
        steps: steps of a run that goes to its end.
        directory: the sweep's folder, whose reports of an interrupted search are taken in again.
    """

    def __init__(self, search: SearchConfig, steps: int, directory: Path) -> None:
        self.search, self.steps = search, steps
        self.file = directory / FILE_NAME
        self.early: dict[str, str] = {}  # reasons by run
        self._lock = threading.Lock()
        self._rungs: dict[int, dict[str, float]] = {}  # values by run, at each rung
        self._scheduler = ASHAScheduler(
            time_attr="step",
            metric=search.metric,
            mode="max" if search.metric in HIGHER_IS_BETTER else "min",
            max_t=steps,
            grace_period=search.grace,
            reduction_factor=search.reduction,
        )
        if self.file.is_file():
            for line in self.file.read_text().splitlines():
                self._decide(*json.loads(line))

    def observe(self, run: str, record: Record) -> bool:
        """Take in a record of a run, and return whether the run should end now."""
        value, step = record.get(self.search.metric), record.get("step", 0)
        if value is None or step < self.search.grace:
            return False
        with self._lock:
            if run not in self._rungs.get(self._rung(step), {}):
                with self.file.open("a") as file:
                    file.write(json.dumps([run, step, value]) + "\n")
                self._decide(run, step, value)
            return run in self.early

    def _decide(self, run: str, step: int, value: float) -> None:
        trial: Any = _Trial(run)
        if not any(run in rung for rung in self._rungs.values()):
            self._scheduler.on_trial_add(_NO_TUNER, trial)
        rung = self._rungs.setdefault(self._rung(step), {})
        others = dict(rung)
        rung[run] = value
        result = {"step": step, self.search.metric: value}
        said = self._scheduler.on_trial_result(_NO_TUNER, trial, result)
        if said == TrialScheduler.STOP and step < self.steps:
            self.early[run] = self._reason(step, value, others)

    def _rung(self, step: int) -> int:
        """Return the last of the steps grace, grace * reduction, ... that is not beyond `step`."""
        rung = self.search.grace
        while rung * self.search.reduction <= step:
            rung *= self.search.reduction
        return rung

    def _reason(self, step: int, value: float, others: Mapping[str, float]) -> str:
        """Say at which step a run fell behind, and behind whom."""
        best = max if self.search.metric in HIGHER_IS_BETTER else min
        leader = best(others, key=others.__getitem__)
        return (
            f"{self.search.metric} {value:.4f} at step {step} is not in the best "
            f"1/{self.search.reduction} of {len(others) + 1} runs there "
            f"({leader} had {others[leader]:.4f})"
        )
