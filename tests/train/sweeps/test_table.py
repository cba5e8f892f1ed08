"""The table at the end of a sweep, and its best run."""

from __future__ import annotations

from pathlib import Path

from llamahome.config import TrainRoot
from llamahome.models import ModelManager
from tests.train.runs.saved import CURVE, save_run
from tests.train.sweeps.sweeping import job
from train.sweeps.jobs import Job, State, Sweep, build_sweep
from train.sweeps.table import best_lines, sweep_table


def ended(root: TrainRoot, manager: ModelManager, tmp_path: Path) -> Sweep:
    """Make a sweep: two runs finished, one ended early with the lowest loss, one was refused."""
    jobs = [job(root, rate, steps=2) for rate in (0.001, 0.01, 0.1)]
    refused = Job(["data=chats", "trainer.learning_rate=-1"], None, State.REFUSED, "a reason")
    sweep = build_sweep([*jobs, refused], manager)
    save_run(tmp_path / "runs", "tiny-01")
    save_run(tmp_path / "runs", "tiny-02", [*CURVE[:-1], {"step": 2, "eval_loss": 2.25}])
    save_run(tmp_path / "runs", "tiny-03", [*CURVE[:3], {"step": 1, "eval_loss": 1.0}])
    jobs[0].state = jobs[1].state = State.FINISHED
    jobs[2].state, jobs[2].reason = State.EARLY, "behind"
    return sweep


def test_each_run_has_a_line_with_what_it_changed_and_what_became_of_it(
    root: TrainRoot, manager: ModelManager, tmp_path: Path
) -> None:
    assert sweep_table(ended(root, manager, tmp_path)).splitlines() == [
        "run      overrides                    steps  held-out loss     tokens/s  state",
        "tiny-01  trainer.learning_rate=0.001  2/2    3.0000 -> 2.5000  60        finished",
        "tiny-02  trainer.learning_rate=0.01   2/2    3.0000 -> 2.2500  60        finished",
        "tiny-03  trainer.learning_rate=0.1    1/2    3.0000 -> 1.0000  50        "
        "stopped early: behind",
        "-        trainer.learning_rate=-1     -      -                 -         "
        "refused: a reason",
    ]


def test_the_best_finished_run_is_named_with_the_way_to_serve_it(
    root: TrainRoot, manager: ModelManager, tmp_path: Path
) -> None:
    sweep = ended(root, manager, tmp_path)
    model = tmp_path / "runs" / "tiny-02" / "model"
    assert best_lines(sweep, "eval_loss", by_name=True).splitlines() == [
        "best eval_loss 2.2500: tiny-02 (trainer.learning_rate=0.01)",
        f"model in {model}; serve it with",
        "  python -m serve model.name=tiny-02",
    ]
    assert f"model.name={model}" in best_lines(sweep, "eval_loss", by_name=False)
    assert best_lines(sweep, "tokens", by_name=True).startswith("best tokens 2000.0000: tiny-01")
    for each in sweep.jobs:
        each.state = State.FAILED
    assert "no run has finished" in best_lines(sweep, "eval_loss", by_name=True)
