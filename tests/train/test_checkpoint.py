"""Checkpoints: complete, checked before a run is resumed, the damaged ones set aside."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llamahome.config import TrainRoot
from tests.train.engine import QUIET, engine_for, one_worker
from train import checkpoint
from train.checkpoint import Progress, checkpoints, find_intact
from train.errors import CheckpointError

pytestmark = QUIET


@pytest.fixture
def saved(root: TrainRoot, tmp_path: Path) -> Path:
    """A run with the checkpoints of steps 3 and 6, whose weights are all 3 and all 6."""
    run_dir = tmp_path / "run"
    with one_worker(tmp_path / "meet"):
        engine, _ = engine_for(root)
        for step in (0, 3, 6):
            for group in engine.optimizer.single_partition_of_fp32_groups:
                group.data.fill_(step)
            checkpoint.save(engine, run_dir, Progress(step, 10 * step), frozen=False, keep=2)
    return run_dir


def test_the_newest_are_kept_and_the_last_is_resumed(
    saved: Path, root: TrainRoot, tmp_path: Path
) -> None:
    assert [path.name for path in checkpoints(saved)] == ["step-000006", "step-000003"]
    assert sorted(path.name for path in (saved / "checkpoints").iterdir()) == [
        "step-000003",
        "step-000006",
    ]
    with one_worker(tmp_path / "again"):
        engine, _ = engine_for(root)
        assert checkpoint.resume(engine, saved, frozen=False) == Progress(6, 60)
        assert all(
            torch.all(group == 6) for group in engine.optimizer.single_partition_of_fp32_groups
        )
        # The same step once more, as after a restart.
        checkpoint.save(engine, saved, Progress(6, 60), frozen=False, keep=2)
    assert find_intact(saved) == (6, [])


def test_a_run_without_checkpoints_starts_at_the_beginning(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "step-000003.partial").mkdir(parents=True)
    assert find_intact(tmp_path) == (0, [])


def largest(folder: Path) -> Path:
    return max((path for path in folder.rglob("*.pt")), key=lambda path: path.stat().st_size)


def truncate(folder: Path) -> None:
    file = largest(folder)
    file.write_bytes(file.read_bytes()[:100])


def flip(folder: Path) -> None:
    file = largest(folder)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)


def lose(folder: Path) -> None:
    largest(folder).unlink()


def lose_checksums(folder: Path) -> None:
    (folder / "checksums.json").unlink()


def spoil_checksums(folder: Path) -> None:
    (folder / "checksums.json").write_text("{")


DAMAGES = [truncate, flip, lose, lose_checksums, spoil_checksums]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_checkpoint_is_set_aside(saved: Path, damage: Callable[[Path], None]) -> None:
    damage(saved / "checkpoints" / "step-000006")
    done, (line,) = find_intact(saved)
    assert done == 3
    assert line.startswith("checkpoint step-000006.damaged: ")
    assert "\n" not in line
    assert [path.name for path in checkpoints(saved)] == ["step-000003"]
    assert find_intact(saved) == (3, [])


def test_without_an_intact_one_the_cure_is_named_and_nothing_moves(saved: Path) -> None:
    for path in checkpoints(saved):
        truncate(path)
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is intact .*restore one") as no:
        find_intact(saved)
    assert "\n" not in str(no.value)
    assert len(checkpoints(saved)) == 2


def test_those_set_aside_go_when_the_run_has_passed_them(
    saved: Path, root: TrainRoot, tmp_path: Path
) -> None:
    place = saved / "checkpoints"
    for name in ("2.damaged", "6.diverged", "7.diverged", "5.partial", "5.universal"):
        (place / f"step-00000{name}").mkdir()
    with one_worker(tmp_path / "again"):
        engine, _ = engine_for(root)
        checkpoint.resume(engine, saved, frozen=False)
        checkpoint.save(engine, saved, Progress(6, 60), frozen=False, keep=2)
    left = sorted(path.name for path in place.iterdir())
    assert left == ["step-000003", "step-000006", "step-000007.diverged"]
