"""Run folders: which there are, what they hold, and what may be removed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.train.runs.saved import CURVE, save_run
from train.metrics import Record
from train.runs.folder import (
    RUN_FILE,
    RunsError,
    find_run,
    flattened,
    folder_size,
    read_run,
    remove_run,
    run_folders,
)


def test_runs_are_listed_by_their_last_start(tmp_path: Path) -> None:
    for name, started in (("a", 2), ("b", 3), ("c", 1)):
        save_run(tmp_path, name, started=started)
    (tmp_path / "no-run").mkdir()
    (tmp_path / "file").touch()
    assert [folder.name for folder in run_folders(tmp_path)] == ["b", "a", "c"]
    assert run_folders(tmp_path / "missing") == []


def test_an_unknown_run_names_those_that_are_there(tmp_path: Path) -> None:
    with pytest.raises(RunsError, match="there are no runs"):
        find_run(tmp_path, "x")
    save_run(tmp_path, "a", started=1)
    save_run(tmp_path, "b")
    for name in ("x", "", ".", "..", "a/model", str(tmp_path / "a")):
        with pytest.raises(RunsError, match=r"runs there: a, b$"):
            find_run(tmp_path, name)
    assert find_run(tmp_path, "b") == tmp_path / "b"


def test_a_config_is_keyed_as_the_command_line_spells_it() -> None:
    config = {"policy": {"pattern": {"L0": 5}}, "trainer": {"lora": {"r": 8}, "steps": 3}}
    assert flattened(config) == {
        "policy.pattern": {"L0": 5},
        "trainer.lora.r": 8,
        "trainer.steps": 3,
    }


def test_changes_leave_defaults_out(tmp_path: Path) -> None:
    run = read_run(save_run(tmp_path, "a", budget=512))
    assert run.changes == {
        "model.name": "small-llama",
        "policy.budget": 512,
        "trainer.run_name": "a",
        "trainer.steps": 2,
    }


def test_a_key_newer_than_the_run_has_its_default(tmp_path: Path) -> None:
    directory = save_run(tmp_path, "a")
    config = json.loads((directory / RUN_FILE).read_text())
    del config["trainer"]["objective"]
    config["trainer"]["removed"] = 1
    (directory / RUN_FILE).write_text(json.dumps(config))
    run = read_run(directory)
    assert run.value("trainer.objective") == "cross_entropy"
    assert run.changes["trainer.removed"] == 1


FAILURE: Record = {"failure": "worker 0: OSError: disk"}


@pytest.mark.parametrize(
    ("records", "finished", "state", "steps"),
    [
        (CURVE, True, "finished", 2),
        (CURVE, False, "stopped", 2),
        ([*CURVE, FAILURE], False, "failed: worker 0: OSError: disk", 2),
        ([*CURVE, FAILURE, {"warning": "w"}], False, "failed: worker 0: OSError: disk", 2),
        ([*CURVE, FAILURE, {"step": 1, "loss": 2.8}], False, "stopped", 1),
        ([], False, "stopped", 0),
    ],
    ids=["model", "no model", "failure", "warned after", "started again", "no records"],
)
def test_state(
    tmp_path: Path, records: list[Record], finished: bool, state: str, steps: int
) -> None:
    run = read_run(save_run(tmp_path, "a", records, finished=finished))
    assert (run.state, run.steps) == (state, steps)


@pytest.mark.parametrize(
    ("file", "text"),
    [(RUN_FILE, "{"), (RUN_FILE, "[]"), ("metrics.jsonl", '{"step": 1, "lo')],
)
def test_damaged_files_are_one_error(tmp_path: Path, file: str, text: str) -> None:
    directory = save_run(tmp_path, "a")
    (directory / file).write_text(text)
    with pytest.raises(RunsError, match="run a cannot be read"):
        read_run(directory)


def test_size_and_removal_follow_no_link(tmp_path: Path) -> None:
    others = tmp_path / "others"
    others.mkdir()
    (others / "weights").write_bytes(b"x" * 100_000)
    directory = save_run(tmp_path / "runs", "a")
    (directory / "base").symlink_to(others)
    assert 5000 < folder_size(directory) < 20_000
    remove_run(directory)
    assert not directory.exists()
    assert (others / "weights").is_file()


def test_a_link_to_a_run_is_not_removed(tmp_path: Path) -> None:
    target = save_run(tmp_path / "elsewhere", "a")
    (tmp_path / "runs").mkdir()
    link = tmp_path / "runs" / "a"
    link.symlink_to(target)
    with pytest.raises(RunsError, match="is a link to"):
        remove_run(find_run(tmp_path / "runs", "a"))
    assert link.is_symlink()
    assert (target / RUN_FILE).is_file()
