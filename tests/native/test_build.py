"""Builds that fail: the user reads one line, and decoding goes on in torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from llamahome.native import load_native

SCRIPT = Path(__file__).parent / "no_compiler.py"


def test_without_a_compiler_torch_decodes_and_one_warning_says_why(tmp_path: Path) -> None:
    broken = tmp_path / "broken-g++"
    broken.write_text('#!/bin/sh\ntest "$1" = --version && echo broken 1.0\n')
    broken.chmod(0o700)
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(broken), "false", "no-such-g++"],
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    fails, cannot_start, missing = found["reasons"]
    assert "the CPU kernels cannot be built or loaded" in fails
    assert "the CPU kernels cannot be built or loaded" in cannot_start
    assert "'false'" in cannot_start
    assert missing == (
        "there is no C++ compiler: 'no-such-g++' is not on PATH; install g++ 11 or later, or "
        "set CXX"
    )
    assert found["runner"].startswith("torch, int8 weights")
    assert found["tokens"] == 3
    assert found["warnings"] == [f"decoding on the slow path of torch: {missing}"]
    assert found["native"] == f"engine.runner='native': {missing}; use engine.runner=auto"


def test_loading_twice_is_harmless() -> None:
    load_native()
    load_native()
