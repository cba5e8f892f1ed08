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
        f"eval.texts=[{text}]",
        f"eval.output={folder.parent / 'out' / 'results.jsonl'}",
        "eval.contexts=[384]",
        "eval.windows=2",
        "eval.depths=2",
        "eval.samples=1",
        "eval.policies=[h2o]",
        "eval.budgets=[0.25,64]",
        "policy.interval=16",
        *overrides,
    )


def test_policies_are_shown_with_dense_and_measured_once(tiny_folder: Path) -> None:
    result = evaluate(tiny_folder)
    assert result.exit_code == 0, result.output
    rows = summary(result.stdout)
    measured = [(row["task"], row["policy"], row["budget"]) for row in rows]
    policies: list[tuple[str, int | None]] = [("full", None)]
    policies += [(name, budget) for name in ("h2o", "window", "random") for budget in (96, 64)]
    assert measured == [
        (task, *policy) for task in ("perplexity", "needle", "recall") for policy in policies
    ]
    assert all(row["perplexity"] > 1 for row in rows if row["task"] == "perplexity")
    output = tiny_folder.parent / "out" / "results.jsonl"
    lines = output.read_text().splitlines()
    assert len(lines) == 21
    for name in ("quality", "depths", "kinds", "kept"):
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
    assert len((tiny_folder.parent / "out" / "results.jsonl").read_text().splitlines()) == 14
    for result, rows, precision in (
        (exact, summaries[0], "float32"),
        (served, summaries[2], "int8"),
    ):
        assert all(f"{precision} weights" in row["runner"] for row in rows)
        title = " ".join(result.stdout.split("policy")[0].split())
        assert f"{precision} weights" in title
    pairs = zip(summaries[0], summaries[2], strict=True)
    assert all(a["perplexity"] != pytest.approx(b["perplexity"], rel=1e-6) for a, b in pairs)


def test_every_text_and_context_has_figures_of_its_own(tiny_folder: Path) -> None:
    other = tiny_folder.parent / "other.txt"
    other.write_text(TEXT.upper() * 30)
    texts = [str(tiny_folder.parent / "text.txt"), str(other)]
    result = evaluate(
        tiny_folder,
        f"eval.texts=[{','.join(texts)}]",
        "eval.contexts=[384,512]",
        "eval.tasks=[perplexity,needle]",
        "eval.budgets=[0.25]",
    )
    assert result.exit_code == 0, result.output
    rows = summary(result.stdout)
    cells = [(384, texts[0]), (384, texts[1]), (512, texts[0]), (512, texts[1])]
    assert [(row["context"], row["text"], row["task"], row["policy"]) for row in rows] == [
        (*cell, task, policy)
        for cell in cells
        for task in ("perplexity", "needle")
        if task == "perplexity" or cell[1] == texts[0]
        for policy in ("full", "h2o", "window", "random")
    ]
    assert {(row["context"], row["budget"]) for row in rows if row["budget"]} == {
        (384, 96),
        (512, 128),
    }
    for context, text in cells:
        assert f"{context} tokens of {Path(text).name}" in " ".join(result.stdout.split())
    assert len({row["perplexity"] for row in rows if "perplexity" in row}) == 16


def test_every_figure_has_an_interval(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # no cell of the table is folded
    result = evaluate(tiny_folder, "eval.budgets=[0.25]")
    shown = [line for line in result.stdout.splitlines() if line.startswith("│")]
    rows = summary(result.stdout)
    dense = next(row for row in rows if row["task"] == "perplexity")
    assert dense["over_dense"] == 0
    for row in rows:
        low, high = row["interval"]
        if row["task"] == "perplexity":
            ratio = row["perplexity"] / dense["perplexity"] - 1
            assert row["over_dense"] == pytest.approx(ratio, abs=1e-9)
            assert low <= row["over_dense"] <= high
            assert (low < high) is (row["policy"] != "full")
            half = f"{ratio:+.1%} ±{100 * (high - low) / 2:.1f}"
            assert any(half in line for line in shown if f" {row['policy']} " in line)
        else:
            assert low <= row["accuracy"] <= high
            assert 0.5 < high - low < 1  # two questions say little
            share = f"{round(2 * row['accuracy'])}/2 ({100 * low:.0f}-{high:.0%})"
            assert any(share in line for line in shown if f" {row['policy']} " in line)
            assert sum(asked for _, asked in row["by_kind"].values()) == 2


def test_help_lists_the_options_and_keys() -> None:
    for flag in ("--help", "-h"):
        result = run("eval", flag)
        assert result.exit_code == 0
        assert "llamahome eval eval=quick" in result.stdout
        assert "eval: default, quick\n" in result.stdout
        assert "\neval:\n  tasks:\n  - perplexity\n" in result.stdout


def test_a_text_that_is_no_utf8_is_one_line(tiny_folder: Path) -> None:
    file = tiny_folder / "model.safetensors"
    result = evaluate(tiny_folder, f"eval.texts=[{file}]")
    assert result.exit_code == 2
    assert f"error: eval.texts={file}: is no UTF-8 text" in result.stderr
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
        ("eval.windows=900", "eval.windows=900 of eval.contexts=384 need 345600 tokens"),
        (
            "eval.texts=[nowhere.txt]",
            "eval.texts='nowhere.txt': no such file; or one of northanger",
        ),
        ("eval.task=[needle]", "eval.task is not a config key: did you mean eval.tasks?"),
        ("eval.policies=[h3o]", "eval.policies='h3o' is not allowed: choose one of h2o"),
        ("eval.policies=[carried]", "eval.policies: the model carries no policy"),
        ("eval.budgets=[4]", "policy.budget=4 is not allowed: it must hold sink + recent"),
        ("eval.contexts=[64]", "eval.contexts: a needle's prompt of 40 tokens needs"),
        ("eval.contexts=[384,2049]", "eval.contexts=2049 exceeds the model's context of 2048"),
    ],
)
def test_mistakes_are_named(tiny_folder: Path, override: str, message: str) -> None:
    tasks = "eval.tasks=[needle]" if "context" in override else "eval.tasks=[perplexity]"
    result = evaluate(tiny_folder, tasks, override)
    assert result.exit_code == 2
    assert message in result.stderr
