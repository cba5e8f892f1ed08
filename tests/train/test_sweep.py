"""The table at the end of a sweep."""

from __future__ import annotations

from pathlib import Path

from train.sweep import Outcome, sweep_table


def test_each_run_has_a_line_with_the_overrides_that_differ() -> None:
    shared = ["trainer=lora", "data=text"]
    done = Outcome(
        overrides=[*shared, "policy=h2o", "trainer.seed=0"],
        name="run-h2o",
        losses=(2.5, 1.25),
        model_dir=Path("/runs/run-h2o/model"),
    )
    failed = Outcome(overrides=[*shared, "policy=window", "trainer.seed=0"])
    assert sweep_table([done, failed]).splitlines() == [
        "run      overrides      held-out loss     model",
        "run-h2o  policy=h2o     2.5000 -> 1.2500  /runs/run-h2o/model",
        "-        policy=window  failed            -",
    ]
