"""Ctrl-C: once, the workers save a checkpoint and the run ends; twice, it ends at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TypeVar

import torch
import torch.distributed as dist
from rich.console import Console

Value = TypeVar("Value")
REQUEST = "stop"  # a file in the run's folder: only the folder connects driver and workers


def request_stop(run_dir: Path) -> None:
    """Ask the workers to save a checkpoint before their next step, and to end."""
    (run_dir / REQUEST).touch()


def forget_request(run_dir: Path) -> None:
    """Take a request back that no worker has to follow any more."""
    (run_dir / REQUEST).unlink(missing_ok=True)


@contextmanager
def ctrl_c_saves(run_dir: Path, console: Console) -> Iterator[None]:
    """Turn the first Ctrl-C of the block into a request to the workers, the second into an error.

    A caller in another thread than the main one handles Ctrl-C itself.
    """
    request = run_dir / REQUEST
    forget_request(run_dir)  # left by a driver that was killed
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(signum: int, frame: FrameType | None) -> None:
        if request.exists():
            raise KeyboardInterrupt
        request_stop(run_dir)
        console.print("saving a checkpoint before leaving; Ctrl-C again leaves at once")

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        forget_request(run_dir)


def in_a_thread(work: Callable[[], Value]) -> Value:
    """Call `work` in a thread, so that it cannot take the signals, and wait for it here.

    The thread does not outlive the process when the wait is interrupted.
    """
    result: Future[Value] = Future()

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as error:  # noqa: BLE001  # raised again where it is waited for
            result.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return result.result()


def is_asked_to_stop(run_dir: Path, device: torch.device) -> bool:
    """Return whether the driver has asked for the run's end, the same on all workers."""
    asked = dist.get_rank() == 0 and (run_dir / REQUEST).exists()
    flag = torch.tensor(int(asked), device=device)
    dist.all_reduce(flag)
    return bool(flag)
