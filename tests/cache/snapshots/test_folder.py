"""Snapshots in a folder: real files, damaged, shared, bounded, found again after a restart."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llamahome.cache import SlotState, SnapshotStore
from llamahome.cache.snapshots.folder import SnapshotFolder
from llamahome.config import ConfigError
from tests.cache.snapshots.states import SIZE, digest, equal, files, folder, prompt, state


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int8])
def test_a_state_comes_back_from_disk_as_it_was(tmp_path: Path, dtype: torch.dtype) -> None:
    whole = torch.arange(-60, 60).to(dtype)
    tensors: dict[str, Tensor] = {
        "one": whole[:60].view(3, 20),  # two views of one memory
        "other": whole[60:].view(20, 3).T,
        "empty": torch.empty(0, 3),
        "number": torch.tensor(7),
    }
    kept = SlotState(12, 3, tensors)
    disk = folder(tmp_path)
    disk.put(digest(0), kept)
    assert equal(disk.get(digest(0)), kept)
    assert disk.get(digest(1)) is None
    assert disk.nbytes == files(disk.path)[0].stat().st_size


def test_what_falls_out_of_memory_is_found_on_disk(tmp_path: Path) -> None:
    store = SnapshotStore(2 * SIZE, folder(tmp_path))
    for number in range(5):
        store.put(digest(number), state(seed=number))
    assert all(digest(number) in store for number in range(5))
    for number in range(5):
        assert digest(number) not in store._states  # each pushes out the one that would be next
        found = store.longest([digest(number)])
        assert found is not None
        assert equal(found[1], state(seed=number))
    stats = store.stats()
    assert stats.hits == 5
    assert stats.bytes == 2 * SIZE
    assert stats.disk_bytes == sum(f.stat().st_size for f in files(tmp_path / "snapshots"))


def test_snapshots_survive_a_restart(tmp_path: Path) -> None:
    store = SnapshotStore(2 * SIZE, folder(tmp_path))
    for number in range(4):
        store.put(digest(number), state(seed=number))
    store.flush()
    again = SnapshotStore(2 * SIZE, folder(tmp_path))
    for number in range(4):
        found = again.longest([digest(number)])
        assert found is not None
        assert equal(found[1], state(seed=number))


def test_a_folder_is_bounded_and_drops_the_least_recently_used(tmp_path: Path) -> None:
    disk = folder(tmp_path)
    disk.put(digest(0), state())
    size = disk.nbytes
    disk.max_bytes = 3 * size
    for number in (1, 2):
        disk.put(digest(number), state(seed=number))
    assert disk.get(digest(0)) is not None
    disk = folder(tmp_path, 3 * size)  # the order survives a restart
    disk.put(digest(3), state(seed=3))
    assert [digest(n) in disk for n in range(4)] == [True, False, True, True]
    assert len(files(disk.path)) == 3
    disk.put(digest(4), state(floats=10_000))  # does not fit, pushes nothing out
    assert len(files(disk.path)) == 3


def overwrite(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


DAMAGE = {
    "a bit": overwrite,
    "truncated": lambda content: content[:-8],
    "empty": lambda content: b"",
    "no safetensors": lambda content: b"x" * len(content),
    "another length": lambda content: content.replace(b'"length":"4"', b'"length":"8"'),
    "no number": lambda content: content.replace(b'"length":"4"', b'"length":"x"'),
    "another format": lambda content: content.replace(b"snapshot-1", b"snapshot-0"),
    "no metadata": lambda content: content.replace(b'"sink"', b'"sunk"'),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_a_miss_and_is_removed(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = SnapshotStore(SIZE, folder(tmp_path))
    store.put(digest(0), state())
    store.put(digest(1), state(seed=1))
    (file,) = files(tmp_path / "snapshots")
    content = DAMAGE[damage](file.read_bytes())
    assert content != file.read_bytes()
    file.write_bytes(content)
    for _ in range(2):
        assert store.longest([digest(0)]) is None
    assert not file.exists()
    assert digest(0) not in store
    assert len(caplog.records) == 1
    assert str(file) in caplog.text
    assert store.stats().misses == 2


def test_a_shorter_prefix_stands_in_for_a_damaged_one(tmp_path: Path) -> None:
    disk = folder(tmp_path)
    store = SnapshotStore(SIZE, disk)
    digests = prompt("abc")
    store.put(digests[0], state(4))
    disk.put(digests[2], state(12))
    (disk.path / f"{digests[2].hex()}.safetensors").write_bytes(b"")
    found = store.longest(digests)
    assert found is not None
    assert found[0] == 0


def test_the_file_of_another_prefix_is_not_believed(tmp_path: Path) -> None:
    disk = folder(tmp_path)
    disk.put(digest(0), state())
    (file,) = files(disk.path)
    file.rename(disk.path / f"{digest(1).hex()}.safetensors")
    disk = folder(tmp_path)
    assert digest(1) in disk
    assert disk.get(digest(1)) is None
    assert not files(disk.path)


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    disk = folder(tmp_path)
    for name in ("model.safetensors", "notes.txt"):
        (disk.path / name).write_text("mine")
    (disk.path / f"{digest(0).hex()}.safetensors").symlink_to(disk.path / "notes.txt")
    disk = folder(tmp_path, 1)
    disk.put(digest(1), state())
    assert disk.nbytes == 0
    assert len(list(disk.path.iterdir())) == 3


def test_a_write_that_was_cut_off_leaves_nothing(tmp_path: Path) -> None:
    disk = folder(tmp_path)
    old, young = (disk.path / f"{digest(n).hex()}.123.tmp" for n in (0, 1))
    for file in (old, young):
        file.write_bytes(b"half")
    os.utime(old, (0, 0))
    disk = folder(tmp_path)
    assert not old.exists()
    assert young.exists()  # another process may be writing it
    assert digest(0) not in disk


def test_two_processes_may_share_a_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one, other = folder(tmp_path), folder(tmp_path)
    one.put(digest(0), state())
    other.put(digest(1), state(seed=1))
    assert equal(other.get(digest(0)), state())
    files(one.path)[0].unlink()
    files(one.path)[0].unlink()
    assert one.get(digest(0)) is None  # evicted by the other: a miss, no damage
    assert digest(0) not in one
    assert not caplog.records


def test_a_disk_that_takes_nothing_costs_the_snapshot_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    disk = folder(tmp_path)
    store = SnapshotStore(SIZE, disk)
    disk.path.rmdir()
    for number in range(4):
        store.put(digest(number), state(seed=number))
    assert store.longest([digest(3)]) is not None
    assert store.longest([digest(0)]) is None
    assert len(caplog.records) == 1


def test_the_folder_is_for_its_owner_alone(tmp_path: Path) -> None:
    assert folder(tmp_path).path.stat().st_mode & 0o777 == 0o700
    public = tmp_path / "public"
    public.mkdir()
    public.chmod(0o755)
    with pytest.raises(ConfigError, match=r"engine\.snapshot_dir=.*mode 755"):
        SnapshotFolder(public, 1)
