"""SHA-256 of every file of a model, kept in the model's folder as `checksums.json`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from llamahome.models.errors import ModelCorruptError, ModelError
from llamahome.models.json_files import read_json

CHECKSUMS = "checksums.json"


def file_sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_checksums(folder: Path) -> None:
    """Record the hashes of a finished model folder's files. Call it last."""
    record_checksums(folder, file_digests(folder))


def file_digests(folder: Path, share: int = 0, shares: int = 1) -> dict[str, str]:
    """Return the hashes of a folder's files, or of one of several equal shares of them."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CHECKSUMS)
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in files[share::shares]}


def record_checksums(folder: Path, digests: Mapping[str, str]) -> None:
    """Write the hashes of a folder's files into it."""
    (folder / CHECKSUMS).write_text(json.dumps({"sha256": dict(digests)}, indent=1) + "\n")


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
    digests = read_json(recorded).get("sha256")
    if not isinstance(digests, dict):
        raise ModelCorruptError(f"{recorded} lists no hashes; {cure}")
    for name, digest in digests.items():
        file = folder / name
        if not file.is_file():
            raise ModelCorruptError(f"{file} is missing; {cure}")
        if file_sha256(file) != digest:
            raise ModelCorruptError(f"{file} is not the file that was recorded; {cure}")
    return len(digests)
