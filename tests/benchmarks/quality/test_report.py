"""The page of a result, and the figures in it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from benchmarks.quality.figures import figures, nested, student
from benchmarks.quality.measure import Measured
from benchmarks.quality.report import REPORT, write_report
from benchmarks.record import RESULTS


def measured(way: str, share: float, nats: float, right: int) -> list[Measured]:
    """Return what one model gives under one policy: two windows of two blocks of ten tokens."""
    blocks = [[10 * nats, 10 * nats], [10 * nats, 10 * nats]]
    where = {"context": 2048, "way": way, "share": share}
    return [
        Measured(task="perplexity", values={"blocks": blocks, "tokens": 40}, **where),
        Measured(task="needle", values={"right": right, "asked": 24}, **where),
    ]


def test_the_page_in_docs_is_that_of_the_newest_long_result(tmp_path: Path) -> None:
    newest = max(RESULTS.glob("quality-long-*.json"))
    page = write_report(json.loads(newest.read_text()), tmp_path / "quality.md")
    assert page.read_text() == REPORT.read_text()
    assert (tmp_path / "images" / "quality.png").stat().st_size > 1000


def test_trained_models_are_measured_against_the_one_that_was_trained_and_served_dense() -> None:
    dense, full = measured("full", 1.0, 3.0, 20), measured("full", 1.0, 3.5, 16)
    evicting = measured("h2o", 0.1, 3.1, 10)
    found = figures(
        {
            "untrained": [[*full, *measured("h2o", 0.1, 3.7, 8)]],
            "dense": [[*dense, *measured("h2o", 0.1, 3.2, 5)]],
            "policy": [[*measured("full", 1.0, 3.01, 20), *evicting]],
        }
    )
    perplexities, needles = (nested(found, task) for task in ("perplexity", "needle"))
    assert perplexities["untrained"]["h2o"]["0.1"]["2048"] == pytest.approx(math.exp(0.2))
    assert perplexities["dense"]["h2o"]["0.1"]["2048"] == pytest.approx(math.exp(0.2))
    assert perplexities["policy"]["h2o"]["0.1"]["2048"] == pytest.approx(math.exp(0.1))
    assert perplexities["policy"]["full"]["1"]["2048"] == pytest.approx(math.exp(0.01))
    assert needles["untrained"]["h2o"]["0.1"]["2048"] == 0.5
    assert needles["policy"]["h2o"]["0.1"]["2048"] == 0.5


def test_the_interval_of_seeds_is_that_of_students_t() -> None:
    mean, low, high = student([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert high - mean == pytest.approx(4.303 / 3**0.5)
    assert mean - low == pytest.approx(4.303 / 3**0.5)
