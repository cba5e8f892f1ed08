"""Result files."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.record import RESULTS, write_result


def test_results_are_kept_together_with_those_of_earlier_runs() -> None:
    kinds = {file.name.split("-2")[0] for file in RESULTS.glob("*.json")}
    assert kinds >= {"engine", "kvpress", "quality-long", "speculation", "train-cost"}


def test_a_result_names_its_origin(tmp_path: Path) -> None:
    file = write_result("some", {"ratio": 2.0}, tmp_path / "some.json")
    kept = json.loads(file.read_text())
    assert kept["ratio"] == 2.0
    assert {"date", "machine", "torch", "transformers"} < set(kept)
