"""Ctrl-C once asks the workers to save, twice ends the driver; signals stay in the main thread."""

from __future__ import annotations

import io
import signal
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from rich.console import Console

from train.stopping import REQUEST, in_a_thread, is_asked_to_stop, signals_save


@pytest.mark.parametrize(
    ("signum", "left"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_the_first_signal_asks_and_the_second_leaves(
    tmp_path: Path, signum: signal.Signals, left: type[BaseException]
) -> None:
    said = Console(file=io.StringIO())
    before = signal.getsignal(signum)
    (tmp_path / REQUEST).touch()  # left by a driver that was killed
    with pytest.raises(left), signals_save(tmp_path, said):  # noqa: PT012
        assert not (tmp_path / REQUEST).exists()
        signal.raise_signal(signum)
        assert (tmp_path / REQUEST).exists()
        signal.raise_signal(signum)
    assert not (tmp_path / REQUEST).exists()
    assert signal.getsignal(signum) is before


def test_a_caller_in_another_thread_keeps_its_own_way(tmp_path: Path) -> None:
    def work() -> object:
        with signals_save(tmp_path, Console(file=io.StringIO())):
            return signal.getsignal(signal.SIGINT)

    assert in_a_thread(work) is signal.getsignal(signal.SIGINT)


def test_what_fails_in_the_thread_fails_here() -> None:
    with pytest.raises(ZeroDivisionError):
        in_a_thread(lambda: 1 / 0)


def test_workers_see_the_request(tmp_path: Path) -> None:
    dist.init_process_group("gloo", f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        assert not is_asked_to_stop(tmp_path, torch.device("cpu"))
        (tmp_path / REQUEST).touch()
        assert is_asked_to_stop(tmp_path, torch.device("cpu"))
    finally:
        dist.destroy_process_group()
