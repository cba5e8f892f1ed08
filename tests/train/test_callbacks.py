"""Callbacks: what they are given, once each, and how a run ends that they stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llamahome.config import ConfigError
from train.callbacks import ActiveRun, calling, check_callbacks
from train.errors import StoppedError
from train.stopping import REQUEST


class Listener:
    """Writes down every call."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, Any]] = []

    def on_step(self, run: ActiveRun, record: dict[str, Any]) -> None:
        self.heard.append(("step", record["loss"]))
        record.clear()  # it is the callback's own

    def on_evaluate(self, run: ActiveRun, record: dict[str, Any]) -> None:
        self.heard.append(("evaluate", (record["step"], record["eval_loss"])))

    def on_checkpoint(self, run: ActiveRun, record: dict[str, Any]) -> None:
        self.heard.append(("checkpoint", record["checkpoint"]))

    def on_end(self, run: ActiveRun, error: BaseException | None) -> None:
        self.heard.append(("end", error))


class OnlySteps:
    """Stops a run at a loss."""

    def on_step(self, run: ActiveRun, record: dict[str, Any]) -> None:
        if record["loss"] < 2:
            run.stop()


class Broken:
    def on_step(self, run: ActiveRun, record: dict[str, Any]) -> None:
        raise ZeroDivisionError("in a callback")


def test_each_event_reaches_its_method_once(tmp_path: Path) -> None:
    listener, other = Listener(), Listener()
    with calling([listener, OnlySteps(), other], tmp_path) as observe:
        observe({"peak_flops": 1.0, "peak": "CPU"})
        observe({"step": 0, "eval_loss": 4.0})
        for step in (1, 2, 1, 2, 3):  # a worker failed after step 2
            observe({"step": step, "loss": 5.0 - step, "grad_norm": 1.0})
            if step == 2:
                observe({"step": 2, "checkpoint": "step-000002"})
        observe({"failure": "worker 0: killed"})
    assert listener.heard == [
        ("evaluate", (0, 4.0)),
        ("step", 4.0),
        ("step", 3.0),
        ("checkpoint", tmp_path / "checkpoints" / "step-000002"),
        ("step", 2.0),
        ("end", None),
    ]
    assert other.heard == listener.heard


def test_a_callback_asks_the_workers_to_stop(tmp_path: Path) -> None:
    listener = Listener()
    stopped = StoppedError("saved")
    with (  # noqa: PT012
        pytest.raises(StoppedError),
        calling([OnlySteps(), listener], tmp_path) as observe,
    ):
        observe({"step": 1, "loss": 3.0})
        assert not (tmp_path / REQUEST).exists()
        observe({"step": 2, "loss": 1.0})
        assert (tmp_path / REQUEST).exists()
        raise stopped
    assert listener.heard[-1] == ("end", stopped)
    assert not (tmp_path / REQUEST).exists()


def test_an_error_in_a_callback_stops_the_run_and_is_raised(tmp_path: Path) -> None:
    listener = Listener()
    with (  # noqa: PT012
        pytest.raises(ZeroDivisionError, match="in a callback"),
        calling([Broken(), listener], tmp_path) as observe,
    ):
        observe({"step": 1, "loss": 3.0})
        assert (tmp_path / REQUEST).exists()
        observe({"step": 2, "loss": 3.0})
        raise StoppedError("saved")
    (end,) = listener.heard
    assert isinstance(end[1], ZeroDivisionError)


class Misspelled:
    def on_steps(self) -> None: ...


class Nothing:
    pass


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (Misspelled(), r"nothing calls Misspelled\.on_steps; did you mean on_step\?"),
        (Nothing(), "Nothing has none of on_step, on_evaluate, on_checkpoint, on_end"),
        (Listener, r"Listener is a class; give an object, Listener\(\.\.\.\)"),
    ],
)
def test_callbacks_that_nothing_would_call_are_refused(callback: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_callbacks([OnlySteps(), callback])
