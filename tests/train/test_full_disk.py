"""A disk that takes no more: one line, and the finished checkpoints stay."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llamahome.config import TrainRoot
from tests.train.engine import QUIET, one_worker
from tests.train.test_run import changed
from tests.train.test_worker import start, values
from train.checkpoint import checkpoints, find_intact
from train.errors import FullDiskError
from train.full_disk import full_disk_ends

pytestmark = QUIET


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Make the system refuse larger files, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_checkpoint_that_does_not_fit_leaves_the_last_one_to_resume(
    root: TrainRoot, tmp_path: Path
) -> None:
    run_dir, alone = tmp_path / "run", changed(root, "trainer", num_workers=1)
    with one_worker(tmp_path / "meet"):
        training = start(alone, run_dir)
        full = pytest.raises(FullDiskError, match=r"run takes no more data .* free\): free some")
        with full as said, full_disk_ends(run_dir):
            while training.progress.step < 3:
                training.step()
            training.save()
            training.step()
            with files_of_at_most(50_000):
                training.save()
    assert str(said.value).endswith("trainer.run_name=run goes on from step-000003")
    assert "\n" not in str(said.value)
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["step-000003"]
    assert find_intact(run_dir) == (3, [])
    before = values(run_dir, "loss")
    with one_worker(tmp_path / "again"):
        again = start(alone, run_dir)
        again.step()
    assert again.progress.step == 4
    assert values(run_dir, "loss") == before  # step 4 once more, to the same value
    assert len(checkpoints(run_dir)) == 1


def test_other_errors_pass(tmp_path: Path) -> None:
    for error in (RuntimeError("Connection closed by peer"), FileNotFoundError(2, "gone")):
        with pytest.raises(type(error)) as same, full_disk_ends(tmp_path):
            raise error
        assert same.value is error


def test_a_run_without_a_checkpoint_begins_again(tmp_path: Path) -> None:
    with pytest.raises(FullDiskError, match="from the beginning"), full_disk_ends(tmp_path):
        raise OSError(28, "No space left on device")
