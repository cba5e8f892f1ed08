"""Warnings of workers, as records of the run."""

from __future__ import annotations

import logging
from pathlib import Path

from train import metrics
from train.logs import RecordWarnings


def test_warnings_are_recorded_but_those_that_tell_nothing(tmp_path: Path) -> None:
    logger = logging.Logger("DeepSpeed")
    logger.addHandler(RecordWarnings(tmp_path))
    logger.warning("MPU is not provided, setting tp size to 1 in checkpoint loading.")
    logger.info("a step")
    logger.warning("the disk is slow")
    assert metrics.read(tmp_path) == [{"warning": "DeepSpeed: the disk is slow"}]
