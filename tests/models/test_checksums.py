from __future__ import annotations

from pathlib import Path

import pytest

from llamahome.models.checksums import CHECKSUMS, verify_checksums, write_checksums
from llamahome.models.errors import ModelCorruptError, ModelError


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    (tmp_path / "weights").write_bytes(bytes(range(256)))
    (tmp_path / "sub" / "config").write_text("{}")
    write_checksums(tmp_path)
    return tmp_path


def test_unchanged_files_are_verified_and_counted(recorded: Path) -> None:
    assert verify_checksums(recorded, "cure") == 2


def test_a_file_with_one_flipped_bit_is_named(recorded: Path) -> None:
    data = bytearray((recorded / "weights").read_bytes())
    data[100] ^= 1
    (recorded / "weights").write_bytes(data)
    with pytest.raises(ModelCorruptError, match=r"weights is not the file.*; do this"):
        verify_checksums(recorded, "do this")


def test_a_missing_file_is_named(recorded: Path) -> None:
    (recorded / "sub" / "config").unlink()
    with pytest.raises(ModelCorruptError, match=r"config is missing; do this"):
        verify_checksums(recorded, "do this")


def test_a_folder_without_checksums_cannot_be_verified(recorded: Path) -> None:
    (recorded / CHECKSUMS).unlink()
    with pytest.raises(ModelError, match=r"has no checksums\.json"):
        verify_checksums(recorded, "cure")
