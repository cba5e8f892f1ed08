"""Software and machine of a run, in its folder: with its config they repeat it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from llamahome.config import ConfigError, checkout

ENVIRONMENT_FILE = "environment.json"
PACKAGES = ("torch", "transformers", "ray", "deepspeed")
GIT_TIMEOUT_S = 10


def write_environment(run_dir: Path) -> None:
    """Write the driver's environment; a run that is resumed has that of its last start."""
    text = json.dumps(describe_environment(), indent=1)
    (run_dir / ENVIRONMENT_FILE).write_text(text + "\n")


def read_environment(run_dir: Path) -> dict[str, Any]:
    """Return the environment of a run; empty for one that was started before there was any."""
    try:
        environment = json.loads((run_dir / ENVIRONMENT_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return environment if isinstance(environment, dict) else {}


def describe_environment() -> dict[str, Any]:
    """Return versions, machine and git revision; None for what is not there."""
    status = _git("status", "--porcelain")
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
        "machine": f"{platform.node()}, {platform.platform()}, {os.cpu_count()} CPUs",
        "git_revision": _git("rev-parse", "HEAD"),
        "git_changes": None if status is None else bool(status),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """Return what git prints in the checkout; None without git, or outside a repository."""
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(checkout()), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=GIT_TIMEOUT_S,
        )
    except (ConfigError, OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
