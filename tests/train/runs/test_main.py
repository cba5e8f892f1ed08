"""`llamahome runs`, as a user types it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.train.runs.saved import save_run
from train.runs.__main__ import app
from train.runs.environment import write_environment
from train.runs.folder import RUN_FILE

PROGRAM = str(Path(sys.executable).with_name("llamahome"))


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache's runs folder, with the runs `small` and, started later, `large`."""
    monkeypatch.setenv("LLAMAHOME_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    save_run(tmp_path / "runs", "small", budget=192)
    save_run(tmp_path / "runs", "large", budget=512, started=1)
    return tmp_path / "runs"


def run(*arguments: str, answer: str | None = None) -> Result:
    return CliRunner().invoke(app, arguments, input=answer)


def test_list_has_the_newest_first_and_leaves_damaged_runs_out(runs: Path) -> None:
    (save_run(runs, "broken") / RUN_FILE).write_text("{")
    result = run("list")
    assert result.exit_code == 0
    assert result.stdout.index("large") < result.stdout.index("small")
    assert result.stderr.startswith("left out: run broken cannot be read")
    assert result.stderr.count("\n") == 1


def test_list_of_another_folder(runs: Path, tmp_path: Path) -> None:
    save_run(tmp_path / "mine", "other")
    shown = run("list", "--dir", str(tmp_path / "mine")).stdout
    assert "other" in shown
    assert "large" not in shown
    assert run("list", "--dir", str(tmp_path / "none")).stdout == f"no runs in {tmp_path}/none\n"


def test_show(runs: Path) -> None:
    write_environment(runs / "small")
    result = run("show", "small")
    assert result.exit_code == 0, result.output
    for part in ("policy.budget", "192", "git_revision", "held-out loss, last", "step 2  loss 2.7"):
        assert part in result.stdout
    assert "trainer.learning_rate" not in result.stdout
    assert f"plot in {runs}/small/loss.png" in result.stdout
    assert (runs / "small" / "loss.png").is_file()
    assert "not recorded" in run("show", "large").stdout


def test_show_goes_without_a_plot(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = run("show", "small")
    assert result.exit_code == 0
    assert "uv pip install" in result.stderr


def test_compare(runs: Path, tmp_path: Path) -> None:
    result = run("compare", "small", "large", "--output", "both.png")
    assert result.exit_code == 0, result.output
    assert "policy.budget" in result.stdout
    assert "plot in both.png" in result.stdout
    assert (tmp_path / "both.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "x"], "no run 'x' in"),
        (["compare", "small", "x"], "no run 'x' in"),
        (["compare", "small", "small"], "name at least two runs"),
        (["remove", "x", "--yes"], "runs there: large, small"),
        (["remove", "..", "--yes"], "no run '..' in"),
    ],
)
def test_refusals_are_one_line(runs: Path, arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert message in result.stderr
    assert len(list(runs.glob(f"*/{RUN_FILE}"))) == 2


def test_remove_asks(runs: Path) -> None:
    assert run("remove", "small", answer="n\n").exit_code == 1
    assert (runs / "small").is_dir()
    result = run("remove", "small", answer="y\n")
    assert result.exit_code == 0
    assert "small is removed; " in result.stdout
    assert not (runs / "small").exists()
    assert (runs / "large").is_dir()


def test_remove_warns_of_runs_that_need_this_one(runs: Path) -> None:
    save_run(runs, "large-dense")
    save_run(runs, "two", dense_steps=1, method="lora", export="adapter")
    save_run(runs, "two-dense")
    base = {"base_model_name_or_path": str(runs / "large-dense" / "model")}
    (runs / "large" / "model" / "adapter_config.json").write_text(json.dumps(base))
    for name, needing in (("large-dense", "large"), ("two-dense", "two")):
        result = run("remove", name, answer="n\n")
        assert result.stderr.startswith(f"warning: its model is the base of {needing}\n")
    assert "warning" not in run("remove", "two", "--yes").stderr
    assert "warning" not in run("remove", "two-dense", "--yes").stderr


def test_remove_says_what_it_freed(runs: Path) -> None:
    (runs / "small" / "model" / "weights").write_bytes(b"x" * 3_000_000)
    assert run("remove", "small", "--yes").stdout == "small is removed; 3.0 MB freed\n"


def test_a_folder_that_is_no_run_stays(runs: Path) -> None:
    (runs / "notes").mkdir()
    assert run("remove", "notes", "--yes").exit_code == 2
    assert (runs / "notes").is_dir()


def test_the_terminals_command(runs: Path) -> None:
    listed = subprocess.run([PROGRAM, "runs", "list"], capture_output=True, text=True, check=True)
    assert "large" in listed.stdout
    helped = subprocess.run([PROGRAM, "runs", "--help"], capture_output=True, text=True, check=True)
    assert "Usage: llamahome runs" in helped.stdout
