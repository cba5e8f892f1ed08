"""A disk that takes no more: the run ends in one line, and its finished checkpoints stay."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.filesize import decimal

from train.checkpoint import checkpoints, remove_unfinished
from train.errors import FullDiskError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
# torch's writer of checkpoints keeps no errno.
TORCH = ("inline_container", "PytorchStreamWriter", "iostream error")


@contextmanager
def full_disk_ends(run_dir: Path) -> Iterator[None]:
    """Turn what a full disk raises in the block into one line, and free what is half written.

    Raises:
        FullDiskError: names the folder, what is free there, and the step that is kept.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        if not is_full(error):
            raise
        remove_unfinished(run_dir)
        raise FullDiskError(_message(error, run_dir)) from error


def is_full(error: BaseException) -> bool:
    """Return whether an error says that a disk, a quota or a file's largest size is reached."""
    if isinstance(error, OSError):
        return error.errno in FULL
    return any(part in str(error) for part in TORCH)


def _message(error: BaseException, run_dir: Path) -> str:
    reason = error.strerror if isinstance(error, OSError) else "a checkpoint is cut off"
    free = decimal(shutil.disk_usage(run_dir).free)
    kept = checkpoints(run_dir)
    step = f"from {kept[0].name}" if kept else "from the beginning: it has no checkpoint yet"
    return (
        f"{run_dir} takes no more data ({reason}; {free} free): free some space, or lower "
        f"trainer.keep_checkpoints; then trainer.run_name={run_dir.name} goes on {step}"
    )
