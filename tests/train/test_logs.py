"""Warnings of workers, as records of the run."""

from __future__ import annotations

import logging
from pathlib import Path

from train import metrics
from train.logs import RecordWarnings


def test_warnings_are_recorded_but_those_that_tell_nothing(tmp_path: Path) -> None:
    handler = RecordWarnings(tmp_path)
    for text in ("MPU is not provided, setting tp size to 1.", "the disk is slow"):
        handler.handle(logging.makeLogRecord({"name": "DeepSpeed", "msg": text}))
    assert metrics.read(tmp_path) == [{"warning": "DeepSpeed: the disk is slow"}]
