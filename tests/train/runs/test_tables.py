"""Values in tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from tests.train.runs.saved import save_run
from train import metrics
from train.runs.folder import SavedRun, read_run
from train.runs.tables import answers, comparison, figures, last_records, rounded, run_list, spelled


def text(table: Table) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


@pytest.mark.parametrize(
    ("value", "shown"),
    [("h2o", "h2o"), (None, "null"), (True, "true"), (2048, "2048"), (1e-05, "1e-05")],
)
def test_config_is_spelled_as_the_command_line_takes_it(value: Any, shown: str) -> None:
    assert spelled(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(2.73456, "2.735"), (123456, "123,456"), (54321.9, "54,322"), (float("nan"), "nan")],
)
def test_measured_values_have_few_digits(value: float, shown: str) -> None:
    assert rounded(value) == shown


def test_figures_of_a_run(tmp_path: Path) -> None:
    shown = figures(read_run(save_run(tmp_path, "a")))
    del shown["size"]
    assert shown == {
        "steps": "2/2",
        "tokens": "2,000",
        "training loss, last": "2.7",
        "held-out loss, first": "3.0000",
        "held-out loss, lowest": "2.5000 (step 2)",
        "held-out loss, last": "2.5000",
        "gradient norm, last": "0.5",
        "tokens/s, median": "60",
        "MFU, median": "30.0% of 2 TFLOP/s (2 x CPU)",
        "memory by worker, most": "1.2 GB, 1.5 GB",
        "time left at the last step": "0:00:00",
        "state": "finished",
    }


def test_a_run_without_records_has_no_figures(tmp_path: Path) -> None:
    shown = figures(read_run(save_run(tmp_path, "a", [])))
    assert [name for name, figure in shown.items() if figure != "-"] == ["steps", "state", "size"]


@pytest.mark.parametrize(
    ("model", "shown"),
    [
        ("smollm2", "smollm2"),
        ("HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M"),
        ("/models/llama", "llama"),
        ("/cache/runs/first/model", "first"),
    ],
)
def test_a_line_of_the_list(tmp_path: Path, model: str, shown: str) -> None:
    run = read_run(save_run(tmp_path, "[b]a", method="lora", kl_weight=0.5))
    run = SavedRun(run.directory, {**run.config, "model.name": model}, run.records)
    line = text(run_list([run], {})).splitlines()[3]
    cells = [cell.strip() for cell in line.strip("│").split("│")]
    assert cells[:7] == [
        "[b]a", shown, "h2o 256", "lora, cross_entropy + KL", "2/2", "3.0000 -> 2.5000", "finished",
    ]  # fmt: skip


def test_records_are_lines() -> None:
    records = [{"step": 1200, "loss": 2.73456, "memory_gb": [1.0, 2.5]}, {"failure": "killed"}]
    shown = "step 1,200  loss 2.735  memory_gb 1, 2.5\nfailure killed"
    assert last_records(records) == shown


def test_answers_of_the_last_evaluation(tmp_path: Path) -> None:
    run = read_run(save_run(tmp_path, "a"))
    assert answers(run) is None
    for step in (0, 2):
        sample = {"step": step, "prompt": "who?", "answer": f"answer {step}"}
        metrics.append(run.directory, sample, metrics.SAMPLES)
    table = answers(run)
    assert table is not None
    shown = text(table)
    assert "samples at step 2" in shown
    assert "answer 2" in shown
    assert "answer 0" not in shown


def test_a_comparison_shows_what_differs(tmp_path: Path) -> None:
    runs = [read_run(save_run(tmp_path, f"run-{budget}", budget=budget)) for budget in (192, 512)]
    shown = text(comparison(runs))
    assert "policy.budget" in shown
    assert "512" in shown
    assert "held-out loss, last" in shown
    for same in ("policy.name", "trainer.steps", "trainer.run_name"):
        assert same not in shown
