"""The machine that a benchmark ran on."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def machine() -> dict[str, object]:
    cpuinfo = Path("/proc/cpuinfo")
    pairs = (line.partition(":") for line in cpuinfo.read_text().splitlines())
    said = {key.strip(): value.strip() for key, _, value in pairs}
    flags = said.get("flags", "").split()
    return {
        "processor": said.get("model name", platform.machine()),
        "cores": os.cpu_count(),
        "instructions": sorted(flag for flag in flags if flag.startswith(("avx", "amx"))),
    }
