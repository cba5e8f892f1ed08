"""The output of a run, in a terminal and in a log file."""

from __future__ import annotations

import io

from rich.console import Console

from train.metrics import Record
from train.progress import show_progress


def step(number: int) -> Record:
    return {"step": number, "loss": 2.0 / number, "tokens_per_second": 1234.4}


def shown(records: list[Record], steps: int, terminal: bool) -> str:
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=120, highlight=False)
    with show_progress(console, steps) as observe:
        for record in records:
            observe(record)
    return file.getvalue()


def test_a_log_gets_a_line_every_tenth() -> None:
    lines = shown([step(n) for n in range(1, 101)], 100, terminal=False).splitlines()
    assert len(lines) == 11  # the first step, then ten tenths
    assert lines[0] == "step 1/100  loss 2.000  1,234 tokens/s"
    assert lines[-1].startswith("step 100/100  loss 0.020")


def test_a_step_shows_speed_memory_and_time_left() -> None:
    measured = {"grad_norm": 0.514, "mfu": 0.314, "memory_gb": [1.52, 2.04], "seconds_left": 3725.4}
    for terminal in (False, True):
        text = shown([{**step(1), **measured}], 4, terminal)
        assert "gradient 0.51  1,234 tokens/s  MFU 31.4%  2.0 GB  1:02:05 left" in text


def test_a_short_run_shows_every_step() -> None:
    assert len(shown([step(1), step(2), step(3)], 3, terminal=False).splitlines()) == 3


def test_a_terminal_gets_a_bar_with_loss_and_speed() -> None:
    text = shown([step(1), step(2)], 4, terminal=True)
    assert "starting workers" in text
    assert "2/4" in text
    assert "loss 1.000  1,234 tokens/s" in text


def test_evaluations_failures_and_warnings_are_shown_as_they_come() -> None:
    records = [
        {"step": 5, "eval_loss": 1.5},
        {"failure": "worker 1: it died"},
        {"warning": "DeepSpeed: odd"},
    ]
    for terminal in (False, True):
        text = shown(records, 10, terminal)
        assert "step 5: held-out loss 1.5000" in text
        assert "a worker failed: worker 1: it died" in text
        assert "warning: DeepSpeed: odd" in text


def test_brackets_in_a_failure_are_no_markup() -> None:
    failure = "worker 1: RuntimeError: [/gloo/tcp/pair.cc:537] Read error"
    for terminal in (False, True):
        assert failure in shown([{"failure": failure}], 10, terminal)


def test_a_record_of_a_later_version_is_ignored() -> None:
    assert shown([{"news": 1}], 10, terminal=False) == ""
