"""The folder of what LlamaHome can make again: models, runs, tokens."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

CACHE = "LLAMAHOME_CACHE"  # an environment variable


def cache_folder(named: Path | None = None) -> Path:
    """Return `named`, or LLAMAHOME_CACHE of the environment, or the user's cache directory."""
    chosen = named or os.environ.get(CACHE)
    folder = Path(chosen) if chosen else platformdirs.user_cache_path("llamahome")
    return folder.expanduser().resolve()
