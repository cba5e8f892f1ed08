"""The installed package, far from the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from llamahome.config import checkout
from tests.cli.terminal import TEXT, summary

BUILD = "import sys; from setuptools.build_meta import build_wheel; print(build_wheel(sys.argv[1]))"
COMMAND = "from llamahome.cli import app; app()"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the wheel is installed, built from a copy of the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    sources = folder / "sources"
    for name in ("llamahome", "conf"):
        shutil.copytree(
            checkout() / name,
            sources / name,
            symlinks=True,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(checkout() / name, sources)
    built = subprocess.run(
        [sys.executable, "-c", BUILD, str(folder)],
        cwd=sources,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    with zipfile.ZipFile(folder / built.stdout.splitlines()[-1]) as wheel:
        wheel.extractall(folder / "site")
    return folder / "site"


def _run(site: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", COMMAND, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_eval_runs_from_a_wheel(site: Path, tiny_folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT * 10)
    done = _run(
        site,
        tmp_path,
        "eval",
        "eval=quick",
        "policy=window",
        f"model.name={tiny_folder}",
        f"eval.texts=[{text}]",
        "eval.tasks=[perplexity]",
        "eval.contexts=[256]",
        f"eval.output={tmp_path / 'results.jsonl'}",
    )
    assert done.returncode == 0, done.stderr
    rows = summary(done.stdout)
    expected = [("full", None), ("h2o", 51), ("window", 51), ("random", 51)]
    assert [(row["policy"], row["budget"]) for row in rows] == expected


def test_a_wheel_holds_the_words_of_needles(site: Path) -> None:
    assert (site / "llamahome" / "evaluation" / "tasks" / "words.json").is_file()


def test_a_wheel_says_that_training_is_part_of_the_repository(site: Path, tmp_path: Path) -> None:
    done = _run(site, tmp_path, "train", "trainer.steps=1")
    assert done.returncode == 2
    assert "clone the repository" in done.stderr


def test_a_wheel_holds_the_configs_of_eval_alone(site: Path) -> None:
    found = {path.relative_to(site / "llamahome" / "conf") for path in site.rglob("conf/**/*.yaml")}
    assert {path.parts[0] for path in found} == {"eval.yaml", "engine", "eval", "model", "policy"}
    assert not (site / "train").exists()
