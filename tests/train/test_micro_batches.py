"""Micro-batches in parts: the same steps under every ZeRO stage, and what asks for them."""

from __future__ import annotations

import pickle
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import set_seed

from llamahome.config import DeepSpeedConfig, LoraConfig, TrainRoot
from tests.train.engine import QUIET, one_worker
from tests.train.objectives.rows import batch
from tests.train.test_run import changed
from tests.train.test_worker import start, values
from train import metrics
from train.errors import MemoryFullError
from train.micro_batches import FILE_NAME, halve, in_parts, memory_watched, parts_of
from train.model import bare_model
from train.objectives.chunked_head import attach_chunked_head
from train.pipeline import TrainingPipeline
from train.run import Run

pytestmark = QUIET


@pytest.mark.parametrize(("stage", "precision"), [(1, "fp32"), (2, "bf16"), (3, "fp32")])
def test_steps_in_parts_and_chunks_are_those_of_the_whole(
    root: TrainRoot, tmp_path: Path, stage: int, precision: str
) -> None:
    """The output layer is tied, has an adapter, and runs over chunks of few labels."""
    lora = LoraConfig(r=4, target_modules=["q_proj", "lm_head"])
    asked = {"num_workers": 1, "batch_size": 3, "accumulation": 2, "steps": 3, "method": "lora"}
    root = changed(root, "trainer", lora=lora, precision=precision, **asked)
    root = replace(root, deepspeed=DeepSpeedConfig(zero_stage=stage))
    for name, parts, chunk in (("whole", 1, 10**6), ("parts", 2, 260 * 8)):
        (tmp_path / name).mkdir()
        (tmp_path / name / FILE_NAME).write_text(f"{parts}\n")
        with one_worker(tmp_path / f"meet-{name}"):
            set_seed(0)  # adapters start equal
            training = start(root, tmp_path / name)
            attach_chunked_head(bare_model(training.engine.module), chunk)
            for _ in range(asked["steps"]):  # type: ignore[call-overload]
                training.step()
            training.evaluate()
    for name in ("loss", "grad_norm", "eval_loss"):
        whole, parts_ = values(tmp_path / "whole", name), values(tmp_path / "parts", name)
        assert len(whole) == (1 if name == "eval_loss" else 3)
        assert parts_ == pytest.approx(whole, rel=1e-5 if precision == "fp32" else 2e-2)


def test_rows_are_split_and_none_is_lost(tmp_path: Path) -> None:
    rows = batch([9, 7, 5], [[3], [4], [2]])
    with one_worker(tmp_path / "meet"):
        assert in_parts(rows, 1) == [(rows, 1)]
        for parts, sizes in ((2, [2, 1]), (4, [1, 1, 1])):
            split = in_parts(rows, parts)
            assert [len(part["labels"]) for part, _ in split] == sizes
            assert all(weight == 1 for _, weight in split)
            for name, tensor in rows.items():
                assert torch.equal(torch.cat([part[name] for part, _ in split]), tensor)


def test_full_memory_is_known_from_other_errors() -> None:
    rows = batch([9, 7], [[3], [4]])
    with (
        pytest.raises(MemoryFullError, match="2 rows of 9 tokens do not fit") as caught,
        memory_watched(rows),
    ):
        torch.empty(2**60)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.rows) == (str(caught.value), 2)
    with pytest.raises(RuntimeError, match="must match"), memory_watched(rows):
        torch.zeros(2) + torch.zeros(3)


class Cramped(TrainingPipeline):
    """A pipeline whose workers have memory for so many rows."""

    def __init__(self, root: TrainRoot, fits: int) -> None:
        self.text = StringIO()
        super().__init__(root, console=Console(file=self.text, width=200))
        self.fits = fits

    def _train(self, run: Run) -> None:
        rows = -(-run.root.trainer.batch_size // parts_of(run.directory))
        if rows > self.fits:
            raise MemoryFullError(rows, 160)


def test_the_run_goes_on_with_smaller_parts(root: TrainRoot, tmp_path: Path) -> None:
    run = Run(changed(root, "trainer", batch_size=8), tmp_path, root.model)
    for name in ("loss", "eval_loss"):
        metrics.append(tmp_path, {"step": 1, name: 1.0, "tokens": 1})
    pipeline = Cramped(run.root, fits=2)
    pipeline._fit(run)
    assert parts_of(tmp_path) == 4
    said = "8 rows of 160 tokens do not fit into memory, so micro-batches are computed in 2 parts"
    assert said in pipeline.text.getvalue()
    warnings = [r["warning"] for r in metrics.read(tmp_path) if "warning" in r]
    assert [said, warnings[1].endswith("in 4 parts")] == [warnings[0], True]
    Cramped(run.root, fits=2)._fit(run)  # a run that goes on keeps them
    assert parts_of(tmp_path) == 4


def test_a_row_that_does_not_fit_ends_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(MemoryFullError, match=r"^one row of 9 tokens .* lower data\.context") as e:
        halve(tmp_path, MemoryFullError(1, 9))
    assert "\n" not in str(e.value)
    assert parts_of(tmp_path) == 1


def hungry(*_: Any) -> Any:
    torch.empty(2**60)


@pytest.mark.parametrize("method", ["step", "evaluate"])
def test_a_worker_says_what_did_not_fit(root: TrainRoot, tmp_path: Path, method: str) -> None:
    with one_worker(tmp_path / "meet"):
        training = start(changed(root, "trainer", num_workers=1), tmp_path / "run")
        training.objective = replace(training.objective, sums=hungry, held_out=hungry)
        with pytest.raises(MemoryFullError, match="2 rows of"):
            getattr(training, method)()
