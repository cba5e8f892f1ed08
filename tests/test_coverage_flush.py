"""The coverage plugin in processes that fork, and in processes that are killed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import coverage

ROOT = Path(__file__).parents[1]
PARENT = "import subprocess, sys; sys.exit(subprocess.run([sys.executable, 'child.py']).returncode)"
FORKS = """
import multiprocessing, time
from pathlib import Path
from tests import coverage_flush

many = Path("many.py").absolute()
many.write_text("x = 1\\n" * 50_000)  # so that a save takes long
code = compile(many.read_text(), str(many), "exec")

coverage_flush.INTERVAL_S = 0
context = multiprocessing.get_context("fork")
started = time.monotonic()
while time.monotonic() < started + 4:
    exec(code)
    child = context.Process(target=time.sleep, args=(0,))
    child.start()
    child.join()
"""
KILLED = """
import os, signal, time
from pathlib import Path

measured = 1
while not any(path.stat().st_size for path in Path().glob(".coverage.*")):
    time.sleep(0.05)
time.sleep(1.5)  # three saves
os.kill(os.getpid(), signal.SIGKILL)
"""
CONFIG = """
[run]
parallel = true
concurrency = thread, multiprocessing
patch = subprocess, _exit
plugins = tests.coverage_flush
"""


def measure(child: str, folder: Path) -> int:
    """Run a program as the child of a measured process; return its exit status."""
    (folder / "parent.py").write_text(PARENT)
    (folder / "child.py").write_text(child)
    (folder / ".coveragerc").write_text(CONFIG)
    command = [sys.executable, "-m", "coverage", "run", "parent.py"]
    own = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "PYTHONUNBUFFERED": "1"}
    return subprocess.run(command, cwd=folder, env=own, check=False).returncode


def test_a_process_that_forks_amid_saves_ends(tmp_path: Path) -> None:
    assert measure(FORKS, tmp_path) == 0


def test_lines_of_a_killed_process_are_counted(tmp_path: Path) -> None:
    assert measure(KILLED, tmp_path) != 0
    measured = coverage.Coverage(str(tmp_path / ".coverage"), config_file=False)
    measured.combine([str(tmp_path)])
    lines = measured.get_data().lines(str(tmp_path / "child.py"))
    assert lines is not None
    assert {2, 5} <= set(lines)
