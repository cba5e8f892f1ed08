"""Pieces of the worker that need no second process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from llamahome.attention import HybridAttention, build_policy
from llamahome.config import PolicyConfig

FULL = HybridAttention(build_policy(PolicyConfig(name="full", budget=None)))
BATCH = {
    "input_ids": torch.tensor([[1, 2, 3]]),
    "attention_mask": torch.ones(1, 3),
    "labels": torch.tensor([[-100, 2, 3]]),
}


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process group of one."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    dist.init_process_group("gloo", f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Engine:
    """Predicts the same logit for every token, and records what it is asked to do."""

    device = torch.device("cpu")
    global_steps = 7

    def __init__(self, logit: float) -> None:
        self.logit = torch.tensor(logit, requires_grad=True)
        self.backwards: list[float] = []
        self.steps = 0

    def __call__(self, logits_to_keep: torch.Tensor, **_: object) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logit.expand(1, len(logits_to_keep), 4))

    def train(self) -> None: ...

    def eval(self) -> None: ...

    def backward(self, loss: torch.Tensor, scale_wrt_gas: bool) -> None:
        assert not scale_wrt_gas  # the scale is ours
        self.backwards.append(loss.item())

    def step(self) -> None:
        self.steps += 1


@pytest.mark.usefixtures("alone")
def test_a_step_weighs_every_label_of_its_micro_batches_alike() -> None:
    from train.worker import train_step

    engine = Engine(0.0)
    losses, tokens = train_step(engine, [BATCH, BATCH], FULL)
    nat = torch.tensor(4.0).log().item()  # four tokens, all as likely
    assert losses == {"loss": pytest.approx(nat)}
    assert tokens == 6
    assert engine.backwards == pytest.approx([nat / 2, nat / 2])
    assert engine.steps == 2


@pytest.mark.usefixtures("alone")
def test_a_loss_that_is_no_number_stops_the_run() -> None:
    from train.worker import train_step

    with pytest.raises(
        FloatingPointError, match=r"nan after 7 steps; lower trainer\.learning_rate"
    ):
        train_step(Engine(float("nan")), [BATCH], FULL)


@pytest.mark.usefixtures("alone")
def test_evaluation_is_a_mean_over_labels() -> None:
    from train.worker import evaluate

    assert evaluate(Engine(1.0), iter([BATCH, BATCH]), FULL) == pytest.approx(1.3863, abs=1e-4)


@pytest.mark.parametrize(
    ("step", "every", "due"),
    [(4, 2, True), (3, 2, False), (9, 0, True), (8, 0, False), (9, 2, True)],
)
def test_what_is_due_every_few_steps_is_due_at_the_end_too(
    step: int, every: int, due: bool
) -> None:
    from train.worker import is_due

    assert is_due(step, every, last=9) is due
