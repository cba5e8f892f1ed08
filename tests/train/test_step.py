"""A step over a global batch: every label weighs the same, whichever worker holds it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from llamahome.attention import HybridAttention, build_policy
from llamahome.config import PolicyConfig
from train.objectives import Objective, cross_entropy
from train.objectives.chunked_head import ChunkedHead
from train.step import count, evaluate, gradient_scale, train_step

REPOSITORY = Path(__file__).parents[2]
FULL = HybridAttention(build_policy(PolicyConfig.dense()))
BATCH = {
    "input_ids": torch.tensor([[1, 2, 3]]),
    "attention_mask": torch.ones(1, 3),
    "labels": torch.tensor([[-100, 2, 3]]),
}


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of one."""
    dist.init_process_group("gloo", f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Uniform(ChunkedHead):
    """An output layer that gives four tokens the value of a hidden state."""

    def __init__(self) -> None: ...

    def over(self, states: torch.Tensor, read: Any) -> list[tuple[torch.Tensor, ...]]:
        return [read(states.unsqueeze(1).expand(-1, 4), slice(None))]


class Engine:
    """An engine that predicts the same logit for every token, and records its calls."""

    device = torch.device("cpu")

    def __init__(self, logit: float) -> None:
        self.logit = torch.tensor(logit, requires_grad=True)
        self.backwards: list[float] = []
        self.steps = 0
        self.boundaries: list[bool] = []

    def __call__(self, places: tuple[torch.Tensor, ...], read: Any, **_: object) -> Any:
        return read(self.logit.expand(len(places[0])), Uniform())

    def train(self) -> None: ...

    def eval(self) -> None: ...

    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> None:
        self.boundaries.append(is_boundary)

    def backward(self, loss: torch.Tensor, scale_wrt_gas: bool) -> None:
        assert not scale_wrt_gas  # the scale is ours
        self.backwards.append(loss.item())

    def step(self) -> None:
        self.steps += 1


@pytest.mark.usefixtures("alone")
def test_every_label_of_a_step_weighs_the_same() -> None:
    engine = Engine(0.0)
    losses, tokens = train_step(engine, [BATCH, BATCH], FULL, Objective(cross_entropy))
    nat = torch.tensor(4.0).log().item()  # four equally likely tokens
    assert losses == {"loss": pytest.approx(nat)}
    assert tokens == 6
    assert engine.backwards == pytest.approx([nat / 2, nat / 2])
    assert engine.steps == 2
    assert engine.boundaries == [False, True]


def halves(engine: Engine, batch: dict[str, torch.Tensor], attention: object) -> dict[str, Any]:
    """Report two columns of an objective's own."""
    loss = 3 * engine.logit
    return {"loss": loss, "first": loss / 3, "second": 2 * loss / 3}


@pytest.mark.usefixtures("alone")
def test_an_objective_brings_its_own_columns() -> None:
    engine = Engine(4.0)
    losses, _ = train_step(engine, [BATCH, BATCH], FULL, Objective(halves))
    assert losses == pytest.approx({"loss": 6.0, "first": 2.0, "second": 4.0})  # four labels
    assert engine.backwards == pytest.approx([3.0, 3.0])


@pytest.mark.usefixtures("alone")
def test_evaluation_is_a_mean_over_labels() -> None:
    assert evaluate(
        Engine(1.0), iter([BATCH, BATCH]), FULL, Objective(cross_entropy)
    ) == pytest.approx(1.3863, abs=1e-4)


def micro_batch(length: int, labelled: list[int]) -> dict[str, torch.Tensor]:
    labels = torch.full((1, length), -100)
    labels[0, labelled] = 7
    return {"labels": labels, "attention_mask": torch.ones(1, length)}


OTHER_WORKER = """
import sys
import torch
import torch.distributed as dist
from tests.train.test_step import micro_batch
from train.objectives import Objective, cross_entropy
from train.step import count
dist.init_process_group("gloo", f"file://{sys.argv[1]}", rank=1, world_size=2)
count([micro_batch(6, [1, 2, 3, 4, 5])], Objective(cross_entropy), torch.device("cpu"))
dist.destroy_process_group()
"""


def test_counts_span_workers_and_micro_batches(tmp_path: Path) -> None:
    meet = tmp_path / "meet"
    other = subprocess.Popen([sys.executable, "-c", OTHER_WORKER, str(meet)], cwd=REPOSITORY)
    dist.init_process_group("gloo", f"file://{meet}", rank=0, world_size=2)
    try:
        mine = [micro_batch(8, [0, 3, 4]), micro_batch(4, [2])]  # nothing predicts a first label
        assert count(mine, Objective(cross_entropy), torch.device("cpu")) == (8, 18)
        # Averaged over two workers, each label's gradient then weighs one eighth.
        assert gradient_scale(8) == 2 / 8
        assert gradient_scale(0) == 2
    finally:
        dist.destroy_process_group()
    assert other.wait(timeout=300) == 0
