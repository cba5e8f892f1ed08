"""Sweeps on disk, and `llamahome runs` of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.train.runs.saved import save_run
from train.runs.__main__ import app
from train.runs.folder import RunsError, read_run
from train.runs.sweeps import (
    SWEEP_FILE,
    SweptRun,
    folders_of,
    read_sweep,
    sweeps_of_runs,
    together,
    write_sweep,
)

SWEPT = [
    SweptRun("s-01", ["trainer.seed=0"], "finished"),
    SweptRun("s-02", ["trainer.seed=1"], "stopped early: behind"),
    SweptRun(None, ["trainer.seed=-1"], "refused: a reason"),
]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Runs of a sweep that started before and after one that is in no sweep."""
    save_run(tmp_path, "s-01", started=1)
    save_run(tmp_path, "alone", started=2)
    save_run(tmp_path, "s-02", started=3, finished=False)
    write_sweep(tmp_path / "s", SWEPT)
    return tmp_path


def run(runs: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--dir", str(runs)])


def test_a_sweep_is_read_as_it_was_written(runs: Path) -> None:
    assert read_sweep(runs / "s") == SWEPT
    assert read_sweep(runs / "alone") == []
    assert sweeps_of_runs(runs) == {"s-01": ("s", SWEPT[0]), "s-02": ("s", SWEPT[1])}
    assert [f.name for f in folders_of(runs, "s")] == ["s-01", "s-02"]
    assert folders_of(runs, "alone") == [runs / "alone"]


@pytest.mark.parametrize("text", ["{", '["s-01"]', '[{"name": "s-01"}]'])
def test_a_damaged_file_is_one_error(runs: Path, text: str) -> None:
    (runs / "s" / SWEEP_FILE).write_text(text)
    with pytest.raises(RunsError, match="sweep s cannot be read"):
        read_sweep(runs / "s")


def test_runs_of_a_sweep_are_listed_together(runs: Path) -> None:
    newest_first = [read_run(runs / name) for name in ("s-02", "alone", "s-01")]
    names = [each.name for each in together(newest_first, sweeps_of_runs(runs))]
    assert names == ["s-01", "s-02", "alone"]
    shown = run(runs, "list").stdout
    assert shown.index("s-01") < shown.index("s-02") < shown.index("alone")
    assert "trainer.seed=1" in shown
    assert "stopped early: behind" in shown


def test_a_sweep_is_compared_by_its_name(runs: Path) -> None:
    picture = runs / "picture.png"
    result = run(runs, "compare", "s", "s-01", "--output", str(picture))
    assert result.exit_code == 0, result.output
    head = result.stdout.splitlines()[1]
    assert head.count("s-01") == head.count("s-02") == 1
    assert picture.is_file()


def test_a_sweep_is_removed_with_its_runs(runs: Path) -> None:
    result = CliRunner().invoke(app, ["remove", "s", "--dir", str(runs)], input="n\n")
    assert f"Delete {runs}/s (" in result.stdout
    assert "with its 2 runs?" in result.stdout
    assert (runs / "s-01").is_dir()
    assert run(runs, "remove", "s", "--yes").exit_code == 0
    assert [path.name for path in runs.iterdir() if path.is_dir()] == ["alone"]


@pytest.mark.parametrize("name", ["..", ".", "", "s/../s"])
def test_a_path_is_no_name(runs: Path, name: str) -> None:
    with pytest.raises(RunsError, match="no run"):
        folders_of(runs, name)
