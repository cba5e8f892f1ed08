"""Pictures of losses; what cannot be drawn fails no run."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

from tests.train.runs.saved import CURVE, save_run
from train.runs.folder import RunsError, read_run
from train.runs.plots import draw_after_run, draw_comparison, draw_losses

PNG = b"\x89PNG"


@pytest.fixture
def no_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)


def test_losses_are_drawn_into_the_runs_folder(tmp_path: Path) -> None:
    run = read_run(save_run(tmp_path, "a $1 $2 run"))
    file = draw_losses(run)
    assert file == run.directory / "loss.png"
    assert file.read_bytes().startswith(PNG)


def test_pyplots_state_is_left_alone(tmp_path: Path) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    draw_losses(read_run(save_run(tmp_path, "a")))
    assert pyplot.get_fignums() == []


@pytest.mark.parametrize("records", [CURVE[1:2], CURVE[2:3]], ids=["held out", "training"])
def test_one_curve_alone_is_drawn(tmp_path: Path, records: list) -> None:
    assert draw_losses(read_run(save_run(tmp_path, "a", records))).is_file()


def test_many_runs_share_a_picture(tmp_path: Path) -> None:
    runs = [read_run(save_run(tmp_path, f"run-{i}")) for i in range(12)]
    file = draw_comparison(runs, tmp_path / "new" / "all.png")
    assert file.read_bytes().startswith(PNG)


def test_what_cannot_be_drawn_is_one_error(tmp_path: Path) -> None:
    empty, run = read_run(save_run(tmp_path, "empty", [])), read_run(save_run(tmp_path, "a"))
    with pytest.raises(RunsError, match="run empty has no loss yet"):
        draw_losses(empty)
    with pytest.raises(RunsError, match="none of these runs"):
        draw_comparison([empty], tmp_path / "x.png")
    with pytest.raises(RunsError, match=r"x\.nothing cannot be written"):
        draw_comparison([run], tmp_path / "x.nothing")


@pytest.mark.usefixtures("no_matplotlib")
def test_without_matplotlib_the_error_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(RunsError, match="uv pip install"):
        draw_losses(read_run(save_run(tmp_path, "a")))


@pytest.mark.usefixtures("no_matplotlib")
def test_a_run_ends_without_a_picture_where_matplotlib_is_missing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = save_run(tmp_path, "a")
    with caplog.at_level(logging.WARNING):
        draw_after_run(directory)
    assert not (directory / "loss.png").exists()
    assert caplog.messages == []


def test_a_failure_to_draw_fails_no_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise RuntimeError("no fonts")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", broken)
    draw_after_run(save_run(tmp_path, "a"))
    assert caplog.messages == ["loss.png of run a is not drawn: no fonts"]
