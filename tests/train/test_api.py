"""`train_model` up to the run itself, which tests/train/test_pipeline.py has."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llamahome.config import ConfigError, TrainRoot
from llamahome.models import ModelManager
from tests.train.test_run import changed
from train.api import _root

RECORDS = [{"messages": [{"role": "user", "content": "hé"}]}, {"prompt": "a", "completion": "b"}]


def test_records_are_written_once_where_runs_live(root: TrainRoot, manager: ModelManager) -> None:
    first = _root(root, RECORDS, manager)
    again = _root(changed(root, "trainer", run_name="other"), iter(RECORDS), manager)
    file = Path(first.data.train_file)
    assert [json.loads(line) for line in file.read_text().splitlines()] == RECORDS
    assert file.parent == Path(str(root.trainer.output_dir)) / "data"
    assert again.data == first.data  # so that a run of the same name is resumed
    assert list(file.parent.iterdir()) == [file]
    assert _root(root, RECORDS[:1], manager).data.train_file != str(file)


def test_overrides_are_those_of_the_command_line(manager: ModelManager) -> None:
    root = _root(["trainer=lora", "policy.budget=300"], RECORDS, manager)
    assert (root.trainer.method, root.policy.budget) == ("lora", 300)
    assert Path(root.data.train_file).parent == manager.runs_dir / "data"
    assert root.data.eval_file is None  # a part of the records is held out
    assert _root([], "chats.jsonl", manager).data.train_file == "chats.jsonl"
    assert _root([], None, manager) == _root([], None, manager)
    assert _root([], None, manager).data.eval_file is not None
    assert _root(["data=auto"], Path("x.jsonl"), manager).data.train_file == "x.jsonl"


@pytest.mark.parametrize(
    ("config", "data", "message"),
    [
        ("trainer.steps=1", None, "give a list of overrides"),
        (["trainer.step=1"], None, "did you mean trainer.steps"),
        ([], [{"text": "a"}, ["b"]], r"data\[1\] is no JSON object"),
        ([], [{"text": object()}], r"data\[0\] is no JSON object"),
    ],
)
def test_mistakes_are_named(config: Any, data: Any, message: str, manager: ModelManager) -> None:
    with pytest.raises(ConfigError, match=message):
        _root(config, data, manager)


def test_callbacks_are_checked_before_anything_starts(
    root: TrainRoot, manager: ModelManager
) -> None:
    from train import train_model

    with pytest.raises(ConfigError, match="callbacks: object has none of"):
        asyncio.run(train_model(root, callbacks=[object()], manager=manager))
    assert not Path(str(root.trainer.output_dir)).exists()


def test_the_package_itself_imports_neither_torch_nor_ray() -> None:
    code = "import sys, train; print({'torch', 'ray'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
