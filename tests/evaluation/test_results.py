"""The file of figures."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

from llamahome.evaluation import Result
from llamahome.evaluation.results import drop_cut_line, read_results

RESULT = Result(
    model="tiny 0123",
    task="needle",
    text="persuasion",
    context=2048,
    policy={"name": "h2o", "budget": 205},
    entries=205,
    settings={"seed": 0, "runner": "torch"},
    values={"accuracy": 0.5},
)


def _line(result: Result) -> str:
    return json.dumps(asdict(result)) + "\n"


def test_a_figure_is_another_in_another_text_or_context() -> None:
    others = [
        replace(RESULT, text="pydoc"),
        replace(RESULT, context=4096),
        replace(RESULT, task="recall"),
        replace(RESULT, policy={"name": "h2o", "budget": 410}),
        replace(RESULT, settings={"seed": 1, "runner": "torch"}),
    ]
    assert len({RESULT.key, *(other.key for other in others)}) == 6
    assert replace(RESULT, values={"accuracy": 0.75}).key == RESULT.key


def test_a_line_that_was_cut_or_has_other_fields_is_measured_again(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    assert read_results(file) == []
    older = {name: value for name, value in asdict(RESULT).items() if name != "context"}
    file.write_text(json.dumps(older) + "\n" + _line(RESULT) + _line(RESULT)[:-9])
    assert read_results(file) == [RESULT]
    drop_cut_line(file)
    assert len(file.read_text().splitlines()) == 2
    assert read_results(file) == [RESULT]
