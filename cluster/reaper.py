"""Program that cleans up after a driver that was killed: its local Ray, and their folder.

Standard input brings the folder in its first line. It ends when the driver does, however that
happens; a driver that has cleaned up itself leaves no folder.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

WAIT_S = 10.0


def main() -> None:
    folder = Path(sys.stdin.readline().rstrip("\n"))
    sys.stdin.read()
    if not folder.is_dir():
        return
    left = list(_processes(folder))
    for process in left:
        process.terminate()
    _, alive = psutil.wait_procs(left, timeout=WAIT_S)
    for process in alive:
        process.kill()
    shutil.rmtree(folder, ignore_errors=True)


def _processes(folder: Path) -> Iterator[psutil.Process]:
    """Yield the processes whose token is in the folder, so Ray's and those that it started."""
    for process in psutil.process_iter():
        try:
            token = process.environ().get("RAY_AUTH_TOKEN_PATH")
        except psutil.Error:  # it has ended, or belongs to someone else
            continue
        if token is not None and folder in Path(token).parents:
            yield process


if __name__ == "__main__":
    main()
