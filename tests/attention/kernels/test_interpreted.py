"""Without a GPU: the kernels' tests in Triton's interpreter, and their compilation for GPUs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def _python(*arguments: str, **environment: str) -> str:
    run = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_kernels_in_tritons_interpreter() -> None:
    folder = str(Path(__file__).parent)
    said = _python("-m", "pytest", "-q", "-p", "no:cacheprovider", folder, TRITON_INTERPRET="1")
    assert " passed" in said
    assert "skipped" not in said


def test_kernels_compile_for_gpus_that_are_not_here() -> None:
    _python("-m", "tests.attention.kernels.compile_kernels", TRITON_INTERPRET="0")
