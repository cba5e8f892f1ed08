"""Ratios, tables and the plot of the engine benchmark, from known figures."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.engine.load import arrivals, percentile
from benchmarks.engine.report import plot, show
from benchmarks.engine.results import DENSE, TENTH, Decode, Prefill, Results, ratios


def _decode(arm: str, batch: int, context: int, *rounds: float) -> Decode:
    return Decode(
        arm=arm, batch=batch, context=context, rounds=list(rounds), peak_mib=1.0, kv_bytes=2**20
    )


def _results() -> Results:
    return Results(
        headline=4096,
        dense_context=2048,
        many=8,
        decode=[
            _decode(TENTH, 8, 4096, 900.0, 1000.0, 5000.0),
            _decode("llama_cpp Q4_1", 8, 4096, 40.0),
            _decode("llama_cpp Q8_0", 8, 4096, 50.0),
            _decode("transformers", 8, 4096, 25.0),
            _decode(DENSE, 1, 2048, 150.0),
            _decode("llama_cpp Q4_1", 1, 2048, 50.0),
        ],
        prefill=[
            Prefill(arm=TENTH, context=4096, rounds=[1200.0], peak_mib=1.0),
            Prefill(arm="transformers", context=4096, rounds=[600.0], peak_mib=1.0),
            Prefill(arm="llama_cpp Q4_1", context=4096, rounds=[300.0], peak_mib=1.0),
        ],
        slot_bytes={4096: {DENSE: 9000, TENTH: 1000}, 8000: {DENSE: 20000, TENTH: 2000}},
        dense_fp16_bytes={4096: 9500, 8000: 18500},
        flat={1000: 0.001, 8000: 0.00105},
        missing={"vllm_cpu": "no wheel"},
    )


def test_ratios_are_ours_over_the_median_of_an_engines_fastest_arm() -> None:
    found = ratios(_results(), ("llama_cpp", "vllm_cpu", "transformers"))
    assert found == {
        "decode_ratio": {"llama_cpp": 20.0, "vllm_cpu": None, "transformers": 40.0},
        "dense_ratio_llama_cpp_b1": 3.0,
        "dense_ratio_llama_cpp_b8": None,
        "prefill_ratio_best_peer": 2.0,
        "requests_ratio_dense": 10.0,
        "requests_ratio_dense_headline": 9.0,
        "requests_ratio_dense_fp16": 9.5,
        "flatness": pytest.approx(1.05),
        "int8_ppl_ratio": None,
        "peers_missing": {"vllm_cpu": "no wheel"},
    }


def test_the_tables_show_figures_and_name_what_is_missing() -> None:
    console = Console(record=True, width=160)
    show(_results(), console)
    said = console.export_text()
    assert "8 x 4,096" in said
    assert "1000.0" in said
    assert "missing: vllm_cpu: no wheel" in said


@pytest.mark.parametrize(("percent", "expected"), [(0, 1.0), (50, 2.5), (99, 3.97), (100, 4.0)])
def test_percentiles_interpolate_between_neighbours(percent: float, expected: float) -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], percent) == pytest.approx(expected)


def test_arrivals_follow_the_seed_and_the_rate() -> None:
    times = arrivals(4000, rate=20.0, seed=1)
    assert times == arrivals(4000, rate=20.0, seed=1)
    assert times == sorted(times)
    assert times[-1] == pytest.approx(200.0, rel=0.05)


def test_the_plot_leaves_out_missing_engines(tmp_path: Path) -> None:
    plot(_results(), tmp_path / "images" / "engine.png")
    assert (tmp_path / "images" / "engine.png").stat().st_size > 1000
