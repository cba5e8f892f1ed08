"""JSON objects in a model's folder, which may come from anyone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llamahome.models.errors import ModelCorruptError


def read_json(file: Path) -> dict[str, Any]:
    """Return the object that `file` holds.

    Raises:
        ModelCorruptError: for a file that is lost, or holds something else.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelCorruptError(f"{file} cannot be read: {error.strerror}; get it again") from error
    except ValueError as error:  # no JSON, or no UTF-8
        raise ModelCorruptError(f"{file} is no JSON: {error}; get it again") from error
    if not isinstance(content, dict):
        raise ModelCorruptError(f"{file} holds no object; get it again")
    return content
