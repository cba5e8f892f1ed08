"""`llamahome eval` as a user types it."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import Result

from tests.cli.terminal import TEXT, run, summary


def evaluate(folder: Path, *overrides: str) -> Result:
    text = folder.parent / "text.txt"
    text.write_text(TEXT * 30)
    return run(
        "eval",
        f"model.name={folder}",
        f"eval.text={text}",
        f"eval.output={folder.parent / 'out' / 'results.jsonl'}",
        "eval.context=384",
        "eval.windows=2",
        "eval.depths=2",
        "eval.samples=1",
        "eval.policies=[h2o,window]",
        "eval.budgets=[0.25,64]",
        "policy.interval=16",
        *overrides,
    )


def test_policies_are_shown_with_dense_and_measured_once(tiny_folder: Path) -> None:
    result = evaluate(tiny_folder)
    assert result.exit_code == 0, result.output
    rows = summary(result.stdout)
    measured = [(row["task"], row["policy"], row["budget"]) for row in rows]
    policies = [("full", None), ("h2o", 96), ("h2o", 64), ("window", 96), ("window", 64)]
    assert measured == [
        (task, *policy) for task in ("perplexity", "needle", "recall") for policy in policies
    ]
    assert all(row["perplexity"] > 1 for row in rows if row["task"] == "perplexity")
    output = tiny_folder.parent / "out" / "results.jsonl"
    lines = output.read_text().splitlines()
    assert len(lines) == 15
    for name in ("quality", "depths", "kept"):
        picture = output.with_name(f"results-{name}.png")
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert str(picture) in result.output.replace("\n", "")

    again = evaluate(tiny_folder)
    assert summary(again.stdout) == rows
    assert output.read_text().splitlines() == lines


def test_figures_of_another_precision_are_measured_apart(tiny_folder: Path) -> None:
    exact = evaluate(tiny_folder, "eval.tasks=[perplexity]", "engine.weights=fp32")
    asked = evaluate(tiny_folder, "eval.tasks=[perplexity]", "model.dtype=float32")
    served = evaluate(tiny_folder, "eval.tasks=[perplexity]")
    summaries = [summary(result.stdout) for result in (exact, asked, served)]
    assert summaries[1] == summaries[0]  # not measured again
    assert len((tiny_folder.parent / "out" / "results.jsonl").read_text().splitlines()) == 10
    for result, rows, precision in (
        (exact, summaries[0], "float32"),
        (served, summaries[2], "int8"),
    ):
        assert all(f"{precision} weights" in row["runner"] for row in rows)
        title = " ".join(result.stdout.split("policy")[0].split())
        assert f"{precision} weights" in title
    pairs = zip(summaries[0], summaries[2], strict=True)
    assert all(a["perplexity"] != pytest.approx(b["perplexity"], rel=1e-6) for a, b in pairs)


def test_help_lists_the_options_and_keys() -> None:
    for flag in ("--help", "-h"):
        result = run("eval", flag)
        assert result.exit_code == 0
        assert "llamahome eval eval=quick" in result.stdout
        assert "eval: default, quick\n" in result.stdout
        assert "\neval:\n  tasks:\n  - perplexity\n" in result.stdout


def test_a_text_that_is_no_utf8_is_one_line(tiny_folder: Path) -> None:
    file = tiny_folder / "model.safetensors"
    result = evaluate(tiny_folder, f"eval.text={file}")
    assert result.exit_code == 2
    assert f"error: eval.text={file}: is no UTF-8 text" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_evaluation_that_was_cut_short_goes_on(tiny_folder: Path) -> None:
    first = evaluate(tiny_folder, "eval.tasks=[perplexity]")
    output = tiny_folder.parent / "out" / "results.jsonl"
    whole = output.read_text()
    output.write_text(whole[: len(whole) - 20])  # killed while it wrote its last line
    again = evaluate(tiny_folder, "eval.tasks=[perplexity]")
    assert again.exit_code == 0, again.output
    assert summary(again.stdout) == summary(first.stdout)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("eval.windows=900", "eval.windows=900 of eval.context=384 need 345600 tokens"),
        ("eval.text=nowhere.txt", "eval.text='nowhere.txt': no such file; or one of northanger"),
        ("eval.task=[needle]", "eval.task is not a config key: did you mean eval.tasks?"),
        ("eval.policies=[h3o]", "eval.policies='h3o' is not allowed: choose one of h2o"),
        ("eval.policies=[carried]", "eval.policies: the model carries no policy"),
        ("eval.budgets=[4]", "policy.budget=4 is not allowed: it must hold sink + recent"),
        ("eval.context=64", "eval.context=64: a needle's prompt needs"),
    ],
)
def test_mistakes_are_named(tiny_folder: Path, override: str, message: str) -> None:
    tasks = "eval.tasks=[needle]" if "context" in override else "eval.tasks=[perplexity]"
    result = evaluate(tiny_folder, tasks, override)
    assert result.exit_code == 2
    assert message in result.stderr
