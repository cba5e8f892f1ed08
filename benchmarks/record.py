"""Result files: where they are kept, and what each says of its origin."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import torch
import transformers

RESULTS = Path(__file__).parent / "results"


def write_result(name: str, result: Mapping[str, object], file: Path | None = None) -> Path:
    """Write a result and its origin to `results/NAME-DATE.json`, or to `file`."""
    file = file or RESULTS / f"{name}-{today()}.json"
    file.write_text(json.dumps({**origin(), **result}, indent=1) + "\n")
    return file


def origin() -> dict[str, object]:
    """Return the date, the machine and the versions that figures depend on."""
    return {
        "date": today(),
        "machine": machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def today() -> str:
    return f"{datetime.now(UTC):%Y-%m-%d}"


def machine() -> dict[str, object]:
    """Return the processor's name, its cores and its vector instructions."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.is_file() else ""
    pairs = (line.partition(":") for line in text.splitlines())
    found = {key.strip(): value.strip() for key, _, value in pairs}
    flags = found.get("flags", "").split()
    return {
        "processor": found.get("model name", platform.machine()),
        "cores": os.cpu_count(),
        "instructions": sorted(flag for flag in flags if flag.startswith(("avx", "amx"))),
    }
