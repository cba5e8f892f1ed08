"""Start-up: what the engine and a first answer import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

MODELLING = ("transformers.modeling_utils", "transformers.integrations.hub_kernels", "peft")
PRINT_MODELLING = f"import sys; print([name for name in {MODELLING!r} if name in sys.modules])"


def _printed(code: str, *arguments: str) -> str:
    command = [sys.executable, "-c", f"{code}\n{PRINT_MODELLING}", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_the_engine_is_imported_without_modelling_code() -> None:
    assert _printed("import llamahome.engine, llamahome.models") == "[]\n"


def test_a_native_answer_needs_no_modelling_code(tiny_folder: Path) -> None:
    code = """
import sys
from typer.testing import CliRunner
from llamahome.cli.app import app
arguments = ["generate", "--model", sys.argv[1], "--max-tokens", "4", "hello"]
result = CliRunner().invoke(app, arguments)
assert result.exit_code == 0 and "4 tokens" in result.output, result.output
"""
    assert _printed(code, str(tiny_folder)) == "[]\n"


def test_torchs_answer_needs_it(tiny_folder: Path) -> None:
    code = """
import sys
from llamahome.config import EngineConfig, ModelConfig, PolicyConfig
from llamahome.engine import TextEngine
config = EngineConfig(slots=1, max_length=64, runner="torch")
TextEngine.load(ModelConfig(name=sys.argv[1]), PolicyConfig(), config)
"""
    assert "transformers.modeling_utils" in _printed(code, str(tiny_folder))
