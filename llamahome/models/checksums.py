"""SHA-256 of every file of a model, kept in the model's folder as `checksums.json`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from llamahome.models.errors import ModelCorruptError, ModelError

CHECKSUMS = "checksums.json"


def file_sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_checksums(folder: Path) -> None:
    """Record the hashes of a finished model folder's files. Call it last."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CHECKSUMS)
    digests = {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}
    (folder / CHECKSUMS).write_text(json.dumps({"sha256": digests}, indent=1) + "\n")


def verify_checksums(folder: Path, cure: str) -> int:
    """Compare `folder`'s files with their recorded hashes and return how many there are.

    Raises:
        ModelCorruptError: for the first file that is missing or differs; ends with `cure`.
        ModelError: when the folder has no checksums to compare with.
    """
    recorded = folder / CHECKSUMS
    if not recorded.is_file():
        raise ModelError(
            f"{folder} has no {CHECKSUMS}, so there is nothing to verify it against; models that "
            "LlamaHome converts, downloads or trains have one"
        )
    digests: dict[str, str] = json.loads(recorded.read_text())["sha256"]
    for name, digest in digests.items():
        file = folder / name
        if not file.is_file():
            raise ModelCorruptError(f"{file} is missing; {cure}")
        if file_sha256(file) != digest:
            raise ModelCorruptError(f"{file} is not the file that was recorded; {cure}")
    return len(digests)
