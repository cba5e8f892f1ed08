"""Names of a sweep and its runs, and which are finished."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llamahome.config import ClusterConfig, ConfigError, TrackingConfig, TrainRoot
from llamahome.models import ModelManager
from tests.train.runs.saved import CURVE, save_run
from tests.train.sweeps.sweeping import job, sweep_of
from train.sweeps.jobs import Job, State, build_sweep


def names(root: TrainRoot, manager: ModelManager, *rates: float, **trainer: object) -> list[str]:
    return [str(each.name) for each in sweep_of(root, manager, *rates, **trainer).jobs]


def test_a_sweeps_name_is_the_given_one_and_its_runs_are_numbered(
    root: TrainRoot, manager: ModelManager, tmp_path: Path
) -> None:
    sweep = sweep_of(root, manager, 1e-3, 1e-2)
    assert sweep.directory == tmp_path / "runs" / "tiny"
    assert [each.name for each in sweep.jobs] == ["tiny-01", "tiny-02"]
    assert sweep.differing(sweep.jobs[1]) == ["trainer.learning_rate=0.01"]
    assert sweep.run_dir(sweep.jobs[1]) == tmp_path / "runs" / "tiny-02"


def test_the_same_command_finds_its_runs_and_another_has_others(
    root: TrainRoot, manager: ModelManager
) -> None:
    first = names(root, manager, 1e-3, 1e-2, run_name=None)
    assert first[0].startswith("sweep-")
    assert first == names(root, manager, 1e-3, 1e-2, run_name=None)
    around = replace(root, cluster=ClusterConfig(num_cpus=9), tracking=TrackingConfig())
    assert first == names(around, manager, 1e-3, 1e-2, run_name=None)
    assert set(first).isdisjoint(names(root, manager, 1e-3, 2e-2, run_name=None))
    assert set(first).isdisjoint(names(root, manager, 1e-3, 1e-2, 1e-1, run_name=None))


def test_runs_keep_names_that_all_differ(root: TrainRoot, manager: ModelManager) -> None:
    jobs = [job(root, rate, run_name=name) for rate, name in ((1e-3, "low"), (1e-2, "high"))]
    sweep = build_sweep(jobs, manager)
    assert [each.name for each in sweep.jobs] == ["low", "high"]
    assert sweep.name.startswith("sweep-")


def test_what_one_ray_and_one_folder_cannot_hold_is_refused(
    root: TrainRoot, manager: ModelManager, tmp_path: Path
) -> None:
    other_ray = Job([], replace(root, cluster=ClusterConfig(num_cpus=7)))
    for jobs, named in (
        ([job(root, 1e-3), other_ray], "cluster cannot differ"),
        ([job(root, 1e-3), job(root, 1e-2, output_dir="/x")], r"trainer\.output_dir cannot differ"),
        (
            [job(root, 1e-3), job(root, 1e-2), job(root, 1e-2, run_name="b")],
            r"trainer\.run_name='tiny' names 2 runs",
        ),
    ):
        with pytest.raises(ConfigError, match=named):
            build_sweep(jobs, manager)
    save_run(tmp_path / "runs", "tiny")
    with pytest.raises(ConfigError, match=r"trainer\.run_name='tiny' is a run in"):
        sweep_of(root, manager, 1e-3, 1e-2)


def test_a_run_is_finished_when_it_has_the_model_of_its_last_step(
    root: TrainRoot, manager: ModelManager, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    save_run(runs, "tiny-01")
    save_run(runs, "tiny-02", finished=False)
    save_run(runs, "tiny-03", CURVE[:2])  # a model of fewer steps than are asked for now
    sweep = sweep_of(root, manager, 1e-3, 1e-2, 1e-1, 1.0, steps=2)
    states = [each.state for each in sweep.jobs]
    assert states == [State.FINISHED, State.WAITING, State.WAITING, State.WAITING]
    patient = sweep_of(root, manager, 1e-3, 1e-2, 1e-1, steps=2, early_stopping_patience=1)
    assert patient.jobs[2].state == State.FINISHED
