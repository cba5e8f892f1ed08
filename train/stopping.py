"""Ctrl-C and SIGTERM: once, the workers save and the run ends; a second one ends it at once."""

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
AGAIN: dict[int, str] = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
REQUEST = "stop"  # a file in the run's folder: only the folder connects driver and workers


def request_stop(run_dir: Path) -> None:
    """Ask the workers to save a checkpoint before their next step, and to end."""
    (run_dir / REQUEST).touch()


def forget_request(run_dir: Path) -> None:
    """Take a request back that no worker has to follow any more."""
    (run_dir / REQUEST).unlink(missing_ok=True)


@contextmanager
def signals_save(run_dir: Path, console: Console) -> Iterator[None]:
    """Turn the first Ctrl-C or SIGTERM of the block into a request to the workers.

    The second one leaves. SIGTERM is what a scheduler sends before it takes a machine away. A
    caller in another thread than the main one handles signals itself.
    """
    request = run_dir / REQUEST
    forget_request(run_dir)  # left by a driver that was killed
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(signum: int, frame: FrameType | None) -> None:
        if request.exists():
            raise KeyboardInterrupt if signum == signal.SIGINT else SystemExit(128 + signum)
        request_stop(run_dir)
        console.print(f"saving a checkpoint before leaving; {AGAIN[signum]} again leaves at once")

    before = {signum: signal.signal(signum, ask) for signum in AGAIN}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler or signal.SIG_DFL)
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
