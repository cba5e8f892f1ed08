"""The command line as a user types it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from llamahome.cli import app

PROGRAM = str(Path(sys.executable).with_name("llamahome"))
TEXT = "It was a bright cold day in April, and the clocks were striking thirteen. "


def run(*arguments: str, stdin: str | None = None) -> Result:
    """Run `llamahome` in this process."""
    return CliRunner().invoke(app, arguments, input=stdin)


def summary(stdout: str) -> Any:
    """Return the JSON that a command prints last."""
    return json.loads(stdout.splitlines()[-1])
