"""The loss curve of a run is that of plain PyTorch, of transformers' Trainer and of TRL."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.training.orders import Order, rows_of
from benchmarks.training.peers import PEERS
from llamahome.config import PolicyConfig, TrainRoot
from llamahome.models import load_model
from tests.train.engine import QUIET, one_worker
from tests.train.test_run import changed
from tests.train.test_worker import start, values

STEPS = 4

pytestmark = [
    *QUIET,
    # from TRL and accelerate
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def test_a_run_has_the_curve_of_plain_pytorch_trainer_and_trl(
    root: TrainRoot, tmp_path: Path
) -> None:
    asked = {"steps": STEPS, "schedule": "constant", "warmup_steps": 0, "learning_rate": 1e-3}
    dense = replace(
        changed(root, "trainer", num_workers=1, **asked),
        policy=PolicyConfig.dense(interval=8),
        data=replace(root.data, batching="padding"),
    )
    with one_worker(tmp_path / "meet"):
        training = start(dense, tmp_path / "run")
        assert training.until_done()
    own = list(values(tmp_path / "run", "loss").values())

    loaded = load_model(dense.model)
    rows = rows_of(dense.data, loaded, STEPS, dense.trainer.batch_size)
    order = Order(
        rows=rows, steps=STEPS, batch_size=dense.trainer.batch_size, threads=1, learning_rate=1e-3
    )
    for name, train in PEERS.items():
        model = copy.deepcopy(loaded.model)
        model.set_attn_implementation("sdpa")
        assert train(model, loaded.tokenizer, order).losses == pytest.approx(own, abs=1e-5), name
