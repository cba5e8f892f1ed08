"""The record of what a run ran on."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from train.runs import environment
from train.runs.environment import describe_environment, read_environment, write_environment


def test_versions_and_machine_are_written(tmp_path: Path) -> None:
    write_environment(tmp_path)
    written = read_environment(tmp_path)
    assert written["python"] == platform.python_version()
    for package in ("torch", "transformers", "ray", "deepspeed"):
        assert written[package] == version(package)
    assert platform.node() in written["machine"]


def test_the_checkouts_revision_and_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e@x.org"]
        return subprocess.run(
            [*command, *arguments], check=True, capture_output=True, text=True
        ).stdout

    monkeypatch.setattr(environment, "checkout", lambda: tmp_path)
    git("init")
    git("commit", "--allow-empty", "-m", "first")
    clean = describe_environment()
    assert clean["git_revision"] == git("rev-parse", "HEAD").strip()
    assert clean["git_changes"] is False
    (tmp_path / "new.py").touch()
    assert describe_environment()["git_changes"] is True


def test_no_git_and_no_package_are_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(environment, "PACKAGES", ("torch", "no-such-package"))
    described = describe_environment()
    assert described["git_revision"] is described["git_changes"] is None
    assert described["no-such-package"] is None


def test_a_checkout_without_a_repository_has_no_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "checkout", lambda: tmp_path)
    assert describe_environment()["git_revision"] is None


@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_a_run_without_a_record_reads_as_empty(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "environment.json").write_text(text)
    assert read_environment(tmp_path) == {}
