"""The page of a result, and the figures in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.quality.figures import interval
from benchmarks.quality.report import REPORT, write_report
from benchmarks.record import RESULTS


def test_the_page_in_docs_is_that_of_the_newest_long_result(tmp_path: Path) -> None:
    newest = max(RESULTS.glob("quality-long-*.json"))
    page = write_report(json.loads(newest.read_text()), tmp_path / "quality.md")
    assert page.read_text() == REPORT.read_text()
    assert (tmp_path / "images" / "quality.png").stat().st_size > 1000


def test_an_interval_is_that_of_students_t() -> None:
    assert interval([2.0]) == (2.0, None)
    mean, half = interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half == pytest.approx(4.303 / 3**0.5)
